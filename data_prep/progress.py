"""Lines that say how far a build is, and the count of what it kept and dropped."""

import collections
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from data_prep.release import Item
from data_prep.shards import ShardReport

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Reports items done, images a second and what earlier runs had finished, as shards are written."""

    def __init__(self, label: str, items: Sequence[Item], report: Callable[[str], None]):
        self._label = label
        self._total = len(items)
        self._report = report
        self._done = self._resumed = self._images = 0
        self._start = self._last_line = time.monotonic()

    def add(self, shard: ShardReport, resumed: bool) -> None:
        """Counts a shard; `resumed` says that an earlier run wrote it."""
        items = len(shard.item_ids) + sum(shard.dropped_items.values())
        self._done += items
        if resumed:
            self._resumed += items
        else:
            self._images += shard.frames + sum(shard.dropped_frames.values())
        now = time.monotonic()
        if self._done == self._total or now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = self._images / max(now - self._start, 1e-3)
            earlier = f", {self._resumed} of them by an earlier run" if self._resumed else ""
            self._report(f"{self._label}: {self._done}/{self._total} items{earlier}, {rate:.0f} images/s")


def summarize(items: Sequence[Item], reports: Iterable[ShardReport]) -> dict[str, Any]:
    """Returns a domain's counts in one split: items and frames in, kept, dropped by reason, and bytes."""
    kept_items = kept_frames = num_bytes = 0
    dropped_items: collections.Counter[str] = collections.Counter()
    dropped_frames: collections.Counter[str] = collections.Counter()
    for report in reports:
        kept_items += len(report.item_ids)
        kept_frames += report.frames
        num_bytes += report.num_bytes
        dropped_items.update(report.dropped_items)
        dropped_frames.update(report.dropped_frames)
    frames = sum(len(item.frames) for item in items)
    return {
        "items": {"in": len(items), "kept": kept_items, "dropped": dict(sorted(dropped_items.items()))},
        "frames": {"in": frames, "kept": kept_frames, "dropped": dict(sorted(dropped_frames.items()))},
        "bytes": num_bytes,
    }
