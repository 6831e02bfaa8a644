"""Writes the items of a domain as shards: each a range of items, written by one pure function in any process.

A shard is finished once it has a report. Reports say which items were kept, and so which row each has: rows
count the kept items of one shard after the other.
"""

import collections
import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from pathlib import Path

from data_prep import images, records
from data_prep.release import Item

# Images a shard. The upper bound keeps a shard near 200 MB at 50 kB an image, the lower one spares a small
# data set files of a few images; between them 16 shards keep a pool busy and lose little to a kill.
MIN_FRAMES, MAX_FRAMES, SHARDS = 64, 4096, 16
NO_FRAMES = "no frames listed"
NO_FRAMES_LEFT = "no frames left"


def reports_folder(folder: Path) -> Path:
    """Returns where the reports of the shards in `folder` lie."""
    return folder / "reports"


@dataclasses.dataclass(frozen=True)
class Shard:
    """The order to write `items` to the file `path`, with images from the folder `images`."""

    path: Path
    items: tuple[Item, ...]
    images: Path

    @property
    def report_path(self) -> Path:
        return reports_folder(self.path.parent) / f"{self.path.name}.json"


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What was written: ids of the kept items in row order, frames kept, file size, the dropped by reason."""

    item_ids: tuple[int, ...]
    frames: int
    num_bytes: int
    dropped_items: Mapping[str, int]
    dropped_frames: Mapping[str, int]


def plan_shards(items: Sequence[Item], *, max_frames: int | None = None) -> list[range]:
    """Cuts `items` into ranges of at most `max_frames` frames, or of one item where that has more.

    An item without frames counts as one. Depends on the items alone, so that any number of processes gives
    the same files. Items of 2, 2, 1 and 5 frames at `max_frames=4`: [0, 2), [2, 3), [3, 4).
    """
    weights = [max(1, len(item.frames)) for item in items]
    if max_frames is None:
        max_frames = min(MAX_FRAMES, max(MIN_FRAMES, -(-sum(weights) // SHARDS)))
    ranges, start, filled = [], 0, 0
    for index, weight in enumerate(weights):
        if filled and filled + weight > max_frames:
            ranges.append(range(start, index))
            start, filled = index, 0
        filled += weight
    return [*ranges, range(start, len(items))] if items else []


def write_shard(shard: Shard) -> ShardReport:
    """Writes a shard and its report. Pure but for these two files: same arguments and images, same bytes.

    Raises:
      OSError: an image or the shard cannot be read or written (an image that does not exist is dropped).
    """
    kept: list[tuple[int, int]] = []  # item id, number of frames
    dropped_items: collections.Counter[str] = collections.Counter()
    dropped_frames: collections.Counter[str] = collections.Counter()

    def examples() -> Iterator[dict]:
        for item in shard.items:
            times, frames = _read_frames(item, shard.images, dropped_frames)
            if not frames:
                dropped_items[NO_FRAMES_LEFT if item.frames else NO_FRAMES] += 1
                continue
            kept.append((item.item_id, len(frames)))
            fields = {"item_id": item.item_id, "text": item.text, "product_ids": item.product_ids}
            yield {**fields, "frames": frames, "frame_times": times}

    num_bytes = records.write_records(shard.path, records.item_features(), examples())
    report = ShardReport(
        item_ids=tuple(item_id for item_id, _ in kept),
        frames=sum(frames for _, frames in kept),
        num_bytes=num_bytes,
        dropped_items=dict(sorted(dropped_items.items())),
        dropped_frames=dict(sorted(dropped_frames.items())),
    )
    shard.report_path.parent.mkdir(exist_ok=True)
    # Last, for the report is what makes the shard a finished one.
    records.write_text(shard.report_path, json.dumps(dataclasses.asdict(report)))
    return report


def _read_frames(item: Item, folder: Path, dropped: collections.Counter[str]) -> tuple[list[int], list[bytes]]:
    """Returns times and bytes of the frames that decode, and counts the others in `dropped`."""
    times, frames = [], []
    for frame in item.frames:
        data, fault = images.read_image(folder / frame.name)
        if fault is not None:
            dropped[fault.value] += 1
        else:
            times.append(frame.time)
            frames.append(data)
    return times, frames


def read_report(path: Path) -> ShardReport:
    """Reads a shard's report."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return ShardReport(**{**fields, "item_ids": tuple(fields["item_ids"])})


def read_item_ids(folder: Path, split: str) -> Iterator[int]:
    """Yields the item ids of the finished records in `folder`, in row order."""
    for path in sorted(reports_folder(folder).glob(f"*-{split}.*.json")):
        yield from read_report(path).item_ids


def finished(shard: Shard) -> ShardReport | None:
    """Returns the report of a shard that an earlier run finished, None where it has to be written."""
    if not shard.report_path.exists():
        return None
    report = read_report(shard.report_path)
    # After a power cut a file system may hold the report and not all of the shard.
    complete = shard.path.exists() and shard.path.stat().st_size == report.num_bytes
    # Another version of `plan_shards` may have given this name to other items.
    same_items = len(report.item_ids) + sum(report.dropped_items.values()) == len(shard.items)
    same_items &= {item.item_id for item in shard.items}.issuperset(report.item_ids)
    return report if complete and same_items else None


@contextlib.contextmanager
def process_pool(processes: int | None = None) -> Iterator[Executor | None]:
    """Gives a pool for `write_shards`, whose processes start with the first shard that needs one.

    None stands for one process a core, and for one alone inside a worker of another pool, which may have no
    children. For one process the pool is None: it is this one.
    """
    if processes is None:
        processes = 1 if multiprocessing.current_process().daemon else len(os.sched_getaffinity(0))
    if processes == 1:
        yield None
        return
    # Spawned, not forked: the caller may have threads (jax, gRPC), whose locks a fork copies in any state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_follow_parent) as pool:
        yield pool


def write_shards(
    shards: Sequence[Shard], *, pool: Executor | None, on_report: Callable[[ShardReport, bool], None]
) -> list[ShardReport]:
    """Writes those of `shards` that are not finished and returns the reports of all, in order.

    Args:
      shards: what to write. An error in one stops the others; those written by then stay.
      pool: where to write them; None is this process.
      on_report: called with each report, and whether its shard was finished by an earlier run.
    """
    reports = {index: report for index, shard in enumerate(shards) if (report := finished(shard))}
    for report in reports.values():
        on_report(report, True)
    todo = {index: shard for index, shard in enumerate(shards) if index not in reports}
    written = _write_here(todo) if pool is None or len(todo) <= 1 else _write_in_pool(pool, todo)
    for index, report in written:
        reports[index] = report
        on_report(report, False)
    return [reports[index] for index in range(len(shards))]


def _write_here(todo: Mapping[int, Shard]) -> Iterator[tuple[int, ShardReport]]:
    for index, shard in todo.items():
        yield index, write_shard(shard)


def _write_in_pool(pool: Executor, todo: Mapping[int, Shard]) -> Iterator[tuple[int, ShardReport]]:
    futures = {pool.submit(write_shard, shard): index for index, shard in todo.items()}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for future in futures:
            future.cancel()


def _follow_parent() -> None:
    """Makes a worker leave Ctrl-C to its parent and end when that is killed (a pool's waits for ever)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
