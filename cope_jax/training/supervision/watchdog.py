"""Ends a run that stands still, and says what it waited for."""

import faulthandler
import os
import signal
import sys
import threading
import time

from cope_jax.parallel.cluster import GO_ON, LOST
from cope_jax.runs.progress import Saved

LOOK = 1.0  # seconds between two looks at the clock
LAST_WORDS = 20  # seconds that the last message may take


class Watchdog:
    """Ends the process when nothing was noted for a number of seconds: a stuck disk, data worker, device or host.

    A context manager; 0 seconds watches nothing.
    """

    def __init__(self, seconds: float):
        """Begins to watch once entered."""
        self.seconds = seconds
        self.leaving = threading.Event()
        self.finished = 0
        self.saved: Saved | None = None
        self.begin("the start")

    def begin(self, what: str) -> None:
        """Notes what is waited for from now on."""
        self.waiting, self.since = what, time.monotonic()

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            threading.Thread(target=self.watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.leaving.set()

    def watch(self) -> None:
        """Looks at the clock until the run is left."""
        while not self.leaving.wait(min(LOOK, self.seconds / 4)):
            if time.monotonic() - self.since > self.seconds:
                self.end()

    def end(self) -> None:
        """Shows where every thread stands, and ends the process: killed by an alarm where not even the log moves."""
        signal.alarm(LAST_WORDS)  # of the system: no other thread of Python runs while one waits in the dump
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        print(
            f"\nnothing moved for {self.seconds:.0f} s (config.train.stall_seconds) while waiting for {self.waiting}; "
            f"the last finished step is {self.finished}, the last one saved "
            f"{self.saved or 'none'}. The stacks above tell where each thread stands; {GO_ON}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)
