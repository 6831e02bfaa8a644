"""Ends a run that hangs, and reports what it was waiting for."""

import faulthandler
import os
import signal
import sys
import threading
import time

from cope_jax.parallel.monitor import EXIT_RETRY, RESUME_HINT
from cope_jax.runs.checkpoints import SavedStep

CHECK_INTERVAL = 1.0  # seconds
REPORT_TIMEOUT = 20  # seconds


class Watchdog:
    """Ends the process if it makes no progress for some time, as when a disk, data worker, device or host hangs.

    A context manager. 0 seconds disable it.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.exiting = threading.Event()
        self.finished = 0  # last finished step
        self.saved: SavedStep | None = None  # last saved step
        self.reset("the start")

    def reset(self, activity: str) -> None:
        """Restarts the timer for the next activity, such as "the batch of step 5"."""
        self.activity, self.since = activity, time.monotonic()

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            threading.Thread(target=self.watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.exiting.set()

    def watch(self) -> None:
        """Checks the timer until the context is left."""
        while not self.exiting.wait(min(CHECK_INTERVAL, self.seconds / 4)):
            if time.monotonic() - self.since > self.seconds:
                self.end()

    def end(self) -> None:
        """Prints the stacks of all threads and ends the process."""
        # Kills the process if the log hangs, too. Not a thread: none runs while this one writes the stacks.
        signal.alarm(REPORT_TIMEOUT)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        print(
            f"\nno progress for {self.seconds:.0f} s (config.train.stall_seconds) while waiting for {self.activity}; "
            f"last finished step: {self.finished}, last saved step: {self.saved or 'none'}. The stacks above show what "
            f"each thread is doing; {RESUME_HINT}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_RETRY)
