"""Metrics as values, and the files they are written to."""

from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from cope_jax.data.bad_items import Faults
from cope_jax.domains import DOMAINS
from cope_jax.runs.log_file import LogFile
from cope_jax.runs.log_lines import EVALUATIONS, as_line, keep_lines_until, rounded
from cope_jax.runs.progress import Progress
from cope_jax.training.tensorboard import Board

SHOWN = 4  # examples that TensorBoard shows at the start


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

    def where(self, kept: jax.Array) -> "Mean":
        """The same where `kept` (bool[]) holds, else the mean of nothing."""
        return Mean(jnp.where(kept, self.total, 0), jnp.where(kept, self.count, 0))

    def compute(self) -> float:
        """The mean; NaN of nothing."""
        return float(self.total) / float(self.count) if float(self.count) else float("nan")


def merge(window: Mapping[str, Mean], metrics: Mapping[str, Mean]) -> dict[str, Mean]:
    """A report window with the metrics of one more step; an empty window becomes these."""
    return {name: window[name].merge(mean) if window else mean for name, mean in metrics.items()}


def merge_all(steps: Iterable[Mapping[str, Mean]]) -> dict[str, float]:
    """Means over some steps."""
    return {name: mean.compute() for name, mean in reduce(merge, steps, {}).items()}


class MetricsLog:
    """Writes one JSON line a report to `metrics.jsonl`, its speed to `speed.jsonl`, and all of it to TensorBoard.

    And one line an evaluation to `evaluations.jsonl`. What a full disk refuses is tried again.
    """

    def __init__(self, workdir: Path, *, step: int):
        """Continues the log of a run at `step`: lines of later steps, which will be written again, go."""
        paths = [workdir / name for name in ("metrics.jsonl", "speed.jsonl", EVALUATIONS)]
        for path in paths:
            keep_lines_until(path, step)
        self.reports, self.speeds, self.evaluations = map(LogFile, paths)
        self.board = Board(workdir / "tensorboard", step=step)

    def show(self, step: int, batch: Mapping[str, Any]) -> None:
        """Adds the first examples of a batch, as the model sees them: page, video and live in a picture."""
        for example in range(min(SHOWN, len(batch["product_id"]))):
            clips = [np.concatenate(list(batch[domain]["frames"][example]), axis=1) for domain in DOMAINS]
            name = f"batch/product {batch['product_id'][example]}: page, video, live"
            self.board.add_image(step, name, np.concatenate(clips, axis=1))

    def write(self, step: int, values: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """Adds the values of one report; its speed, which no two runs have in common, to a file of its own."""
        self.reports.add(as_line({"step": step, **rounded(values)}))
        if speed:
            self.speeds.add(as_line({"step": step, **speed}))
        self.board.add_scalars(step, {**values, **{f"speed/{name}": value for name, value in speed.items()}})

    def write_evaluation(self, step: int, values: Mapping[str, float], samples: Mapping[str, np.ndarray]) -> None:
        """Adds what an evaluation found, and histograms of samples to TensorBoard."""
        self.evaluations.add(as_line({"step": step, **rounded(values)}))
        self.board.add_scalars(step, {f"eval/{name}": value for name, value in values.items()})
        for name, sample in samples.items():
            self.board.add_histogram(step, name, sample)

    def sync(self) -> None:
        """Waits until all reports and evaluations are on the disk for good.

        Raises:
            OSError: they are not; names the file.
        """
        for file in (self.reports, self.evaluations):
            file.sync()


class Reporter:
    """Brings a run's metrics to the log and the progress line, one step late so that the device never waits."""

    def __init__(
        self,
        log: MetricsLog | None,
        progress: Progress,
        *,
        every: int,
        last: int,
        max_skipped: int,
        max_bad_fraction: float,
        faults: Faults,
        window: Mapping[str, tuple[float, float]],
    ):
        """Reports windows that end at multiples of `every` and at step `last`; without a log only to the limit.

        Args:
            log: None in all processes but the first, which reports for all.
            progress: the progress line.
            every: steps a window.
            last: step of the run.
            max_skipped: steps that may be skipped in a row.
            max_bad_fraction: of a window's items that may be unreadable.
            faults: what could not be read.
            window: the open one of the run that goes on, as `open_window` gave it.
        """
        self.log, self.progress, self.every, self.last = log, progress, every, last
        self.max_skipped, self.skipped = max_skipped, 0
        self.max_bad_fraction, self.faults = max_bad_fraction, faults
        self.window = {name: Mean(np.float32(total), np.float32(count)) for name, (total, count) in window.items()}
        self.late: tuple[int, dict[str, Mean], np.ndarray] | None = None

    def show(self, step: int, batch: Mapping[str, Any]) -> None:
        """Shows what is learned from."""
        if self.log is not None:
            self.log.show(step, batch)

    def add(self, step: int, metrics: dict[str, Mean], product_ids: np.ndarray) -> None:
        """Takes the metrics of a step that may still be running, and the products of its batch."""
        self.flush()
        self.late = step, metrics, product_ids

    def flush(self) -> None:
        """Waits for the step last added and reports what it completes.

        Raises:
            ValueError: too many steps in a row had a loss or gradients that were not finite, or too many items of a
                window could not be read.
        """
        if self.late is None:
            return
        (step, metrics, product_ids), self.late = self.late, None
        metrics = jax.device_get(metrics)
        self.count_skipped(step, metrics, product_ids)
        self.window = merge(self.window, metrics)
        if self.log is not None:
            self.progress.update(step, metrics["loss"].compute())
        if step % self.every == 0 or step == self.last:
            if self.log is not None:
                means = {name: mean.compute() for name, mean in self.window.items()}
                self.log.write(step, means, self.progress.lap(step))
            bad, self.window = self.window["bad_items"].compute(), {}
            if bad > self.max_bad_fraction:
                raise ValueError(
                    f"{bad:.2%} of the items of the {self.every} steps until {step} could not be read; "
                    f"config.data.max_bad_fraction allows {self.max_bad_fraction:.2%}. Verify or rebuild the data; the "
                    f"last ones here: {'; '.join(self.faults.last) or 'see the other hosts'}"
                )

    def count_skipped(self, step: int, metrics: Mapping[str, Mean], product_ids: np.ndarray) -> None:
        """Tells of a skipped step and what was in it; ends a run of them."""
        if not metrics["skipped"].compute():
            self.skipped = 0
            return
        self.skipped += 1
        print(
            f"\nstep {step} skipped: its loss or gradients were not finite; products of the batch: "
            f"{', '.join(map(str, product_ids))}",
            flush=True,
        )
        if self.skipped > self.max_skipped:
            raise ValueError(
                f"{self.skipped} steps in a row had a loss or gradients that were not finite, the last one step "
                f"{step}; config.train.max_skipped allows less. Lower config.optimizer.rate or "
                "config.optimizer.clip_norm, or look at the products named above; the newest checkpoint is as good as "
                "the ones before, for skipped steps change nothing"
            )

    def begin_evaluation(self, step: int) -> None:
        """Tells why the progress line stands still."""
        if self.log is not None:
            print(f"\nstep {step}: evaluating", flush=True)

    def add_evaluation(self, step: int, values: Mapping[str, float], samples: Mapping[str, np.ndarray]) -> None:
        """Reports what an evaluation found."""
        if self.log is None:
            return
        self.log.write_evaluation(step, values, samples)
        means = ", ".join(f"{name} {value:.3f}" for name, value in values.items() if "mean" in name)
        print(f"\nstep {step} evaluated: {means}", flush=True)

    def sync(self) -> None:
        """Waits until all that was reported is on the disk for good.

        Raises:
            OSError: it is not; names the file.
        """
        if self.log is not None:
            self.log.sync()

    def open_window(self) -> dict[str, tuple[float, float]]:
        """(total, count) of each metric in the window that is not reported yet."""
        return {name: (float(mean.total), float(mean.count)) for name, mean in self.window.items()}
