"""Lines that say how far a download is, how fast, and how long it will still take."""

import collections
import datetime
import time

from data_prep.download.failures import Failure

SECONDS_BETWEEN_LINES = 10.0
_WINDOW = 12  # lines over which the rate is taken


class Progress:
    """Counts answers."""

    def __init__(self, frames: int):
        """`frames` are those of the domains to go through, finished ones included."""
        self._frames = frames
        self._passed = 0  # need no request in this run
        self._ok = 0
        self._failed: collections.Counter[Failure] = collections.Counter()
        self._marks = collections.deque([(time.monotonic(), 0)], maxlen=_WINDOW)

    @property
    def asked(self) -> int:
        """Answers so far."""
        return self._ok + self._failed.total()

    def skip(self, frames: int) -> None:
        """Counts frames that need no request."""
        self._passed += frames

    def add(self, failure: Failure | None) -> None:
        """Counts an answer."""
        if failure is None:
            self._ok += 1
        else:
            self._failed[failure] += 1

    def line(self, *, limit: float, paused: float) -> str:
        """Returns a line; `limit` is the rate that may be asked at now, `paused` the seconds to the end of a pause."""
        now = time.monotonic()
        since, asked = self._marks[0]
        rate = (self.asked - asked) / max(now - since, 1e-3)
        self._marks.append((now, self.asked))
        left = self._frames - self._passed - self.asked
        failed = "".join(f", {reason} {count:,}" for reason, count in self._failed.most_common())
        parts = [f"{self._ok:,} ok, {self._failed.total():,} failed{failed}", f"{rate:.1f}/s (limit {limit:.1f})"]
        if paused > 0:
            parts.append(f"most requests fail: pause of {paused:.0f} s")
        elif left > 0 and rate > 0:
            parts.append(f"{left:,} to go, about {datetime.timedelta(seconds=round(left / rate))}")
        return "; ".join(parts)
