"""Profiler traces of chosen steps, for TensorBoard or Perfetto."""

from pathlib import Path
from typing import Any

import jax

PyTree = Any


class Profiler:
    """Writes a trace of some steps to a folder.

    Args:
        folder: Where to write.
        steps: First and last step to trace; None traces nothing.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self.folder = folder
        self.first, self.last = steps or (0, 0)
        self.running = False

    def before_step(self, step: int) -> None:
        """Starts the trace before the first of its steps that this process runs."""
        if not self.running and self.first <= step <= self.last:
            jax.profiler.start_trace(self.folder)
            self.running = True

    def after_step(self, step: int, result: PyTree) -> None:
        """Stops the trace after its last step, once the result is computed."""
        if self.running and step >= self.last:
            jax.block_until_ready(result)
            self.close()
            print(f"\ntrace of steps {self.first} to {self.last} in {self.folder}: tensorboard --logdir={self.folder}")

    def close(self) -> None:
        """Stops a running trace."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()


def parse_steps(text: str) -> tuple[int, int] | None:
    """Parses "10:15" as (10, 15) and "" as None; anything else raises ValueError."""
    if not text:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--profile_steps is {text!r}; it must be FIRST:LAST, such as 10:15, counted from 1")
    return int(first), int(last)
