"""Progress and speed of a training run."""

import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax

from cope_jax.runs.checkpoints import SavedStep
from data_prep.common.progress import Progress

DATA_WAIT_WARNING = 0.2  # share of the time spent waiting for batches that is worth a warning
WARNING_DELAY = 60.0  # seconds of training before that share is judged
PEAK_FLOPS: dict[str, float] = tomllib.loads(Path(__file__).with_name("peak_flops.toml").read_text(encoding="utf-8"))


def peak_flops() -> float:
    """Returns the peak FLOP/s of all devices together; 0 if that of one is unknown."""
    peaks = [PEAK_FLOPS.get(device.device_kind, 0.0) for device in jax.devices()]
    return sum(peaks) if all(peaks) else 0.0


class Moment(NamedTuple):
    """A step, when it was finished, and how many seconds the run had waited for data by then."""

    step: int
    time: float
    waited: float


class TrainingProgress:
    """Shows step, loss, speed, waiting time, time left and last checkpoint; measures the speed for the log.

    The clock starts after the first step, which compiles. `peak_seconds` is the duration of a step at the peak FLOP/s
    of the devices; 0 if unknown.
    """

    def __init__(self, *, steps: int, batch_size: int, peak_seconds: float = 0.0):
        self.steps, self.batch_size, self.peak_seconds = steps, batch_size, peak_seconds
        self.bar = Progress(
            total=steps,
            unit="steps",
            file=sys.stdout,
            bar_format="step {n_fmt}/{total_fmt}{postfix}",
            disable=jax.process_index() > 0,
        )
        self.first: Moment | None = None
        self.last_lap: Moment | None = None
        self.waited = self.paused_seconds = 0.0
        self.warned = False
        self.saved: SavedStep | None = None  # the last complete checkpoint

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside from the speed."""
        start = time.monotonic()
        yield
        self.paused_seconds += time.monotonic() - start

    def now(self, step: int) -> Moment:
        """Returns the current moment, with the last finished step."""
        return Moment(step, time.monotonic() - self.paused_seconds, self.waited)

    def lap(self, step: int) -> dict[str, float]:
        """Returns the speed since the last lap: examples/s, s/step, share of waiting, and MFU if known."""
        since, self.last_lap = self.last_lap, self.now(step)
        return self.speed_since(since, step)

    def speed_since(self, since: Moment | None, step: int) -> dict[str, float]:
        """Returns the speed between a moment and now; nothing before the second step."""
        if since is None or step == since.step:
            return {}
        now, steps = self.now(step), step - since.step
        seconds, waited = (now.time - since.time) / steps, (now.waited - since.waited) / steps
        speed = {"examples_per_s": self.batch_size / seconds, "step_s": seconds, "data_wait": waited / seconds}
        return speed | ({"mfu": self.peak_seconds / seconds} if self.peak_seconds else {})

    def update(self, step: int, loss: float) -> None:
        """Shows that a step is finished."""
        if self.first is None:
            self.first = self.last_lap = self.now(step)
        speed = self.speed_since(self.first, step)
        parts = [f"loss {loss:.4f}"]
        if speed:
            parts += [f"{speed['examples_per_s']:.1f} examples/s", f"{speed['step_s']:.3g} s/step"]
            parts += [f"data wait {speed['data_wait']:.0%}"]
            parts += [f"MFU {speed['mfu']:.0%}"] if "mfu" in speed else []
            parts += [f"{self.bar.format_interval((self.steps - step) * speed['step_s'])} left"]
        if self.saved:
            parts += [f"saved {self.saved}"]
        self.bar.n = step
        self.bar.set_postfix_str(", ".join(parts), refresh=not speed)  # shows the first step at once, later ones if due
        self.bar.update(0)
        self.warn_of_slow_data(speed, self.now(step).time - self.first.time)

    def warn_of_slow_data(self, speed: dict[str, float], seconds: float) -> None:
        """Warns once if devices wait for data."""
        if self.warned or speed.get("data_wait", 0.0) < DATA_WAIT_WARNING or seconds < WARNING_DELAY:
            return
        self.warned = True
        self.bar.write(
            f"the input pipeline is the bottleneck: {speed['data_wait']:.0%} of the time is spent waiting for batches. "
            "More config.data.threads than cores hardly help; smaller images (./run.sh build --max_side=256), fewer "
            "frames or more hosts do"
        )
