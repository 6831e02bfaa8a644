"""Counts what a build keeps and drops, and says how far it is."""

import collections
import time
from collections.abc import Callable, Sequence
from typing import Any

from data_prep.records.shards import ShardReport, Span

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Adds up the reports of a domain's shards as they come, in any order, and reports lines of progress.

    A line has the items done, images a second and what earlier runs had finished.
    """

    def __init__(self, label: str, spans: Sequence[Span], report: Callable[[str], None]):
        self._label = label
        self._items = spans[-1].stop
        self._frames = spans[-1].last_frame
        self._report = report
        self._rows = [0] * len(spans)
        self._kept_frames = self._bytes = 0
        self._dropped_items: collections.Counter[str] = collections.Counter()
        self._dropped_frames: collections.Counter[str] = collections.Counter()
        self._done = self._resumed = self._images = 0
        self._start = self._last_line = time.monotonic()

    @property
    def shard_lengths(self) -> list[int]:
        """Rows of each shard."""
        return self._rows

    def add(self, index: int, shard: ShardReport, resumed: bool) -> None:
        """Counts the shard of number `index`; `resumed` says that an earlier run wrote it."""
        self._rows[index] = shard.rows
        self._kept_frames += shard.frames
        self._bytes += shard.num_bytes
        self._dropped_items.update(shard.dropped_items)
        self._dropped_frames.update(shard.dropped_frames)
        items = shard.span.stop - shard.span.start
        self._done += items
        if resumed:
            self._resumed += items
        else:
            self._images += shard.span.last_frame - shard.span.first_frame
        self._say()

    def summary(self) -> dict[str, Any]:
        """Returns items and frames in, kept, dropped by reason, and bytes."""
        items = {"in": self._items, "kept": sum(self._rows), "dropped": dict(sorted(self._dropped_items.items()))}
        frames = {"in": self._frames, "kept": self._kept_frames, "dropped": dict(sorted(self._dropped_frames.items()))}
        return {"items": items, "frames": frames, "bytes": self._bytes}

    def _say(self) -> None:
        now = time.monotonic()
        if self._done == self._items or now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = self._images / max(now - self._start, 1e-3)
            earlier = f", {self._resumed} of them by an earlier run" if self._resumed else ""
            self._report(f"{self._label}: {self._done}/{self._items} items{earlier}, {rate:.0f} images/s")
