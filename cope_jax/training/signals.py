"""Stops a run after a step when a scheduler, a cloud or Ctrl-C asks for it."""

import ctypes
import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOPPED = 75  # exit code of a run that a signal stopped and that is saved (EX_TEMPFAIL: try again)


class Stopped(Exception):
    """The run was asked to stop after a step.

    Args:
        step: Last step that was run.
        steps: Number of steps of the run.
        saved: Step of the last checkpoint.
    """

    def __init__(self, step: int, steps: int, saved: int):
        which = "which is saved" if saved == step else f"which was skipped; the last checkpoint is of step {saved}"
        super().__init__(f"stopped at step {step} of {steps}, {which}; run the same command again to continue")


class StopSignal:
    """Turns the first SIGTERM or SIGINT into a request that the training loop checks; the second one kills.

    A process that trains alone ends at the first one if nothing is `unsaved`, even while it compiles.

    With several processes, each may get the signal at another step or not at all, so they have to agree. JAX's
    preemption service does that. It catches SIGTERM in C++; here a Python handler calls that one, to count signals.
    """

    def __enter__(self) -> "StopSignal":
        self.requested, self.alone, self.started = False, jax.process_count() == 1, False
        self.unsaved = False
        if not self.alone:
            set_handler = ctypes.CDLL(None).signal
            set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
            self.notify_jax = ctypes.CFUNCTYPE(None, ctypes.c_int)(set_handler(signal.SIGTERM, None))  # None: default
        self.previous = {number: signal.signal(number, self.handle) for number in SIGNALS}
        reader, self.pipe = os.pipe()
        os.set_blocking(self.pipe, False)
        self.previous_pipe = signal.set_wakeup_fd(self.pipe)
        threading.Thread(target=self.watch, args=(reader,), name="signals", daemon=True).start()
        return self

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal; `notify_jax` is the handler that JAX had set."""
        self.requested = True
        if not self.alone:
            self.notify_jax(signal.SIGTERM)

    def agreed(self, step: int) -> bool:
        """Returns whether to stop after this step, the same in all processes; each must ask after every step."""
        if self.alone:
            return self.requested
        # JAX chooses the step after the latest one that any process has asked for: 1 if the signal came before that.
        early, self.started = not self.started and multihost_utils.reached_preemption_sync_point(1), True
        return early or multihost_utils.reached_preemption_sync_point(step)

    def interrupts(self) -> bool:
        """Returns whether to stop between two steps, which only a single process can."""
        return self.alone and self.requested

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(self.previous_pipe)
        os.close(self.pipe)
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def watch(self, pipe: int) -> None:
        """Ends the process at a signal that Python writes to a pipe, if it is the second one or nothing is unsaved.

        Python's handlers run on the main thread only, which may be in C++ for minutes, compiling or waiting.
        """
        count = 0
        with open(pipe, "rb", buffering=0) as signals:
            while number := signals.read(1):
                count += number[0] in SIGNALS
                if count == 2:
                    os._exit(128 + number[0])  # as shells report a signal
                if count and self.alone and not self.unsaved:
                    os.write(2, b"\nstopped with nothing to save; run the same command again to continue\n")
                    os._exit(STOPPED)
                if count:
                    os.write(2, b"\nstopping after this step; a second signal stops at once\n")
