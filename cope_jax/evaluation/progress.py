"""The progress line of embedding: what, how many items of how many, items a second, time left."""

import sys
import time

from cope_jax.runs.progress import clock


class Progress:
    """Rewrites one line on a terminal; elsewhere prints a line every half minute, and at the end."""

    def __init__(self, what: str, total: int):
        """Of `total` items; `what` is in front of the line."""
        self.what, self.total, self.done = what, total, 0
        self.terminal = sys.stdout.isatty()
        self.interval = 0.5 if self.terminal else 30.0
        # The clock starts behind the first batch, which compiles.
        self.began: tuple[float, int] | None = None
        self.printed = time.monotonic()

    def add(self, items: int) -> None:
        """Tells that some more items, or a batch that they fill in part, are done; prints where it is time to."""
        self.done = min(self.done + items, self.total)
        now = time.monotonic()
        self.began = self.began or (now, self.done)
        last = self.done == self.total
        if now - self.printed < self.interval and not last:
            return
        self.printed = now
        seconds, done = now - self.began[0], self.done - self.began[1]
        speed = f"  {done / seconds:.1f} items/s" if done else ""
        left = f"  {clock((self.total - self.done) * seconds / done)} left" if done and not last else ""
        line = f"{self.what} {self.done:>{len(str(self.total))}}/{self.total}{speed}{left}"
        print(f"\r{line}   " if self.terminal else line, end="\n" if last or not self.terminal else "", flush=True)
