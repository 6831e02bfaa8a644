"""The progress line of a run: step, loss, speed, what it waits for, time left."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

HUNGRY = 0.2  # share of the time spent waiting for batches from which on that is worth a warning
LOOKS = 60.0  # seconds of training before that is judged


class Moment(NamedTuple):
    """Where a run was at a time: its last step, and the seconds it had waited for data by then."""

    step: int
    time: float
    waited: float


class Saved(NamedTuple):
    """A step whose checkpoint is complete, and when the step was done."""

    step: int
    time: float

    def __str__(self) -> str:
        """ "995, 0:12 ago" """
        return f"{self.step}, {clock(time.monotonic() - self.time)} ago"


class Progress:
    """Rewrites one line on a terminal; elsewhere prints a line every half minute.

    Attributes:
        saved: what a kill would leave; None before the first save.
    """

    def __init__(self, *, steps: int, batch_size: int, peak_seconds: float = 0.0):
        """A run, or the rest of one.

        Args:
            steps: of the run.
            batch_size: examples a step.
            peak_seconds: that a step would take at the devices' peak; 0 where that is not known.
        """
        self.steps, self.batch_size, self.peak_seconds = steps, batch_size, peak_seconds
        self.terminal = sys.stdout.isatty()
        self.interval = 0.5 if self.terminal else 30.0
        # The clock starts behind the first step, which compiles.
        self.first: Moment | None = None
        self.last_lap: Moment | None = None
        self.printed = self.waited = 0.0
        self.warned = False
        self.saved: Saved | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Round what waits for a batch."""
        since = time.monotonic()
        yield
        self.waited += time.monotonic() - since

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Round what is no training and shall not count as slow steps."""
        since = time.monotonic()
        yield
        if self.first is not None and self.last_lap is not None:
            seconds = time.monotonic() - since
            self.first = self.first._replace(time=self.first.time + seconds)
            self.last_lap = self.last_lap._replace(time=self.last_lap.time + seconds)

    def speed(self, step: int) -> dict[str, float]:
        """Examples a second, seconds a step, the share of the time spent waiting for data; MFU where it is known.

        Empty until a step behind the first one is done.
        """
        return self.speed_since(self.first, step) if self.first else {}

    def lap(self, step: int) -> dict[str, float]:
        """The speed since the last lap."""
        since, self.last_lap = self.last_lap, Moment(step, time.monotonic(), self.waited)
        return self.speed_since(since, step) if since else {}

    def speed_since(self, since: Moment, step: int) -> dict[str, float]:
        """The speed between a moment and now."""
        done = step - since.step
        if done < 1:
            return {}
        seconds = (time.monotonic() - since.time) / done
        waited = (self.waited - since.waited) / done / seconds
        speed = {"examples_per_s": self.batch_size / seconds, "step_s": seconds, "data_wait": waited}
        return speed | ({"mfu": self.peak_seconds / seconds} if self.peak_seconds else {})

    def update(self, step: int, loss: float) -> None:
        """Tells that `step` steps are done; prints where it is time to."""
        now = time.monotonic()
        if self.first is None:
            self.first = self.last_lap = Moment(step, now, self.waited)
        last = step == self.steps
        if now - self.printed < self.interval and not last:
            return
        self.printed = now
        saved = f"  saved {self.saved}" if self.saved else ""
        line = f"step {step:>6}/{self.steps}  loss {loss:8.4f}  {self.describe(step)}{saved}"
        print(
            f"\r{line}   " if self.terminal else line,
            end="\n" if last or not self.terminal else "",
            flush=True,
        )
        self.warn(step)

    def describe(self, step: int) -> str:
        """The part of the line that tells speed and time left."""
        speed = self.speed(step)
        if not speed:
            return "      – examples/s  – left"
        mfu = f"  MFU {speed['mfu']:.0%}" if "mfu" in speed else ""
        return (
            f"{speed['examples_per_s']:7.1f} examples/s  {speed['step_s']:.3g} s/step  "
            f"data {speed['data_wait']:.0%}{mfu}  {clock((self.steps - step) * speed['step_s'])} left"
        )

    def warn(self, step: int) -> None:
        """Tells once where devices wait for data."""
        assert self.first is not None
        speed = self.speed(step)
        if self.warned or time.monotonic() - self.first.time < LOOKS or speed.get("data_wait", 0.0) < HUNGRY:
            return
        self.warned = True
        print(
            f"\nthe input pipeline is the bottleneck: {speed['data_wait']:.0%} of the time goes into waiting for "
            "batches. config.data.threads beyond the cores helps little; smaller images on disk, fewer frames or more "
            "hosts do",
            flush=True,
        )


def clock(seconds: float) -> str:
    """Seconds as 4:05 or 1:02:03.

    >>> clock(245), clock(3723)
    ('4:05', '1:02:03')
    """
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
