"""The progress line of a run: step, loss, examples a second, time left."""

import sys
import time


class Progress:
    """Rewrites one line on a terminal; elsewhere prints a line every half minute."""

    def __init__(self, *, start: int, steps: int, batch_size: int):
        """A run that begins at step `start` of `steps`."""
        self.start, self.steps, self.batch_size = start, steps, batch_size
        self.terminal = sys.stdout.isatty()
        self.interval = 0.5 if self.terminal else 30.0
        # The clock starts behind the first step, which compiles.
        self.began: float | None = None
        self.printed = 0.0

    def update(self, step: int, loss: float) -> None:
        """Tells that `step` steps are done; prints where it is time to."""
        now = time.monotonic()
        if self.began is None:
            self.began, self.start = now, step
        last = step == self.steps
        if now - self.printed < self.interval and not last:
            return
        self.printed = now
        done, seconds = step - self.start, now - self.began
        rate = f"{done * self.batch_size / seconds:7.1f}" if done else "      –"
        left = clock((self.steps - step) * seconds / done) if done else "–"
        line = f"step {step:>6}/{self.steps}  loss {loss:8.4f}  {rate} examples/s  {left} left"
        print(
            f"\r{line}   " if self.terminal else line,
            end="\n" if last or not self.terminal else "",
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
