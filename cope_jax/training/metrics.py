"""Metrics as values, and the two files they are written to."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import struct

from cope_jax.training.progress import Progress


@struct.dataclass
class Mean:
    """A mean that can be merged: sum and count, float32[]."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, value: jax.Array) -> "Mean":
        """The mean of one value."""
        return cls(total=value, count=np.float32(1))

    def merge(self, other: "Mean") -> "Mean":
        """The mean over both."""
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> float:
        """The mean; NaN of nothing."""
        return float(self.total) / float(self.count) if float(self.count) else float("nan")


def merge_all(windows: list[Mapping[str, Mean]]) -> dict[str, float]:
    """Means over the steps of a report window."""
    merged = dict(windows[0])
    for window in windows[1:]:
        merged = {name: mean.merge(window[name]) for name, mean in merged.items()}
    return {name: mean.compute() for name, mean in merged.items()}


class MetricsLog:
    """Writes one JSON line a report to `metrics.jsonl` and the same numbers to TensorBoard."""

    def __init__(self, workdir: Path, *, step: int):
        """Continues the log of a run at `step`: lines of later steps, which will be written again, go."""
        # Not at the top: this import takes torch along wherever that is installed, seconds that nothing else needs.
        from tensorboardX import SummaryWriter

        self.path = workdir / "metrics.jsonl"
        keep_lines_until(self.path, step)
        self.file = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1, write_to_disk=True)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of one report."""
        rounded = {name: float(f"{value:.6g}") if np.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, **rounded}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()
        self.board.close()


class Reporter:
    """Brings a run's metrics to the log and the progress line, one step late so that the device never waits."""

    def __init__(self, log: MetricsLog | None, progress: Progress, *, every: int, last: int):
        """Reports windows that end at multiples of `every` and at step `last`; without a log, nothing."""
        self.log, self.progress, self.every, self.last = log, progress, every, last
        self.window: list[dict[str, Mean]] = []
        self.late: tuple[int, dict[str, Mean]] | None = None

    def add(self, step: int, metrics: dict[str, Mean]) -> None:
        """Takes the metrics of a step that may still be running."""
        self.flush()
        self.late = step, metrics

    def flush(self) -> None:
        """Waits for the step last added and reports what it completes."""
        if self.late is None:
            return
        step, metrics = self.late
        self.late = None
        self.window.append(jax.device_get(metrics))
        if self.log is None:  # one process of several reports for all
            self.window = []
            return
        self.progress.update(step, self.window[-1]["loss"].compute())
        if step % self.every == 0 or step == self.last:
            self.log.write(step, merge_all(self.window))
            self.window = []


def keep_lines_until(path: Path, step: int) -> None:
    """Drops the lines of a metrics file that are later than `step` or cut off, in one atomic replacement."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
