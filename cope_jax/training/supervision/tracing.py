"""A trace of some steps for TensorBoard's or Perfetto's profiler."""

from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces the steps from `first` to `last` to a folder; with None, nothing."""

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        """Nothing is traced yet."""
        self.folder = folder
        self.first, self.last = steps or (0, 0)
        self.running = False

    def before(self, step: int) -> None:
        """Begins the trace where `step` is the first, or the run began in the middle."""
        if not self.running and self.first <= step <= self.last:
            jax.profiler.start_trace(self.folder)
            self.running = True

    def behind(self, step: int, result: Any) -> None:
        """Ends the trace where `step` is the last, once its result is computed."""
        if self.running and step >= self.last:
            jax.block_until_ready(result)
            self.close()
            print(f"\ntrace of steps {self.first} to {self.last} in {self.folder}: tensorboard --logdir={self.folder}")

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()


def parse_steps(text: str) -> tuple[int, int] | None:
    """ "10:15" → (10, 15), "" → None.

    Raises:
        ValueError: it is no such thing.
    """
    if not text:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--profile_steps is {text!r}; it must be FIRST:LAST, such as 10:15, counted from 1")
    return int(first), int(last)
