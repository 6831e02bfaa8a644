"""A run that is asked to stop, by a scheduler, a cloud or Ctrl-C."""

import ctypes
import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

NUMBERS = (signal.SIGTERM, signal.SIGINT)
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
# signal(2), for handlers that are not Python's: number, address of the new one, 0 the default → address of the old one.
set_handler = ctypes.CDLL(None).signal
set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


class StopSignal:
    """Turns the first SIGTERM or SIGINT into a flag that the loop looks at between steps; the second one kills.

    Of several processes each may get the signal, at another step or not at all, so they must agree. JAX has them do so
    and catches SIGTERM in C++ for it: here its handler is called instead of, for else nothing would count to two.
    """

    def __enter__(self) -> "StopSignal":
        self.asked, self.alone, self.fresh = False, jax.process_count() == 1, True
        if not self.alone:
            self.tell_jax = HANDLER(set_handler(signal.SIGTERM, 0))
        self.previous = {number: signal.signal(number, self.note) for number in NUMBERS}
        heard, self.pipe = os.pipe()
        os.set_blocking(self.pipe, False)
        self.previous_pipe = signal.set_wakeup_fd(self.pipe)
        threading.Thread(target=end_at_the_second, args=(heard,), name="signals", daemon=True).start()
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        self.asked = True
        if not self.alone:
            self.tell_jax(signal.SIGTERM)

    def behind(self, step: int) -> bool:
        """Whether to stop behind this step, the same in all processes; each must ask at every step."""
        if self.alone:
            return self.asked
        # JAX has them stop at the number behind the largest that one has asked for: 1 where that came before all steps.
        before, self.fresh = self.fresh and multihost_utils.reached_preemption_sync_point(1), False
        return before or multihost_utils.reached_preemption_sync_point(step)

    def now(self) -> bool:
        """Whether to stop between two steps; several processes agree at steps only."""
        return self.alone and self.asked

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(self.previous_pipe)
        os.close(self.pipe)
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def end_at_the_second(pipe: int) -> None:
    """Ends the process at the second signal that Python writes to a pipe, until that is closed.

    Handlers in Python run on the main thread only, which may be in C++ for minutes: it compiles, or waits for devices.
    """
    count = 0
    with open(pipe, "rb", buffering=0) as signals:
        while number := signals.read(1):
            count += number[0] in NUMBERS
            if count == 2:
                os._exit(128 + number[0])  # as shells tell a signal
