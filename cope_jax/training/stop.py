"""A run that is asked to stop, by a scheduler, a cloud or Ctrl-C."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


class StopSignal:
    """Turns the first SIGTERM or SIGINT into a flag that the loop looks at between steps; the second one kills.

    Of several processes each may get the signal, at another step or not at all, so they must agree. JAX has them do so
    and catches SIGTERM itself for it.
    """

    def __enter__(self) -> "StopSignal":
        self.asked, self.alone = False, jax.process_count() == 1
        numbers = (signal.SIGTERM, signal.SIGINT) if self.alone else (signal.SIGINT,)
        self.previous = {number: signal.signal(number, self.note) for number in numbers}
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
        if not self.alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def behind(self, step: int) -> bool:
        """Whether to stop behind this step, the same in all processes; each must ask at every step."""
        return self.asked if self.alone else multihost_utils.reached_preemption_sync_point(step)

    def now(self) -> bool:
        """Whether to stop between two steps; several processes agree at steps only."""
        return self.alone and self.asked

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
