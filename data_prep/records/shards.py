"""Writes the items of a domain as shards: each is a range of items, written by one pure function in any process.

A shard is finished once it has a report. The report lists the items that were dropped and thus determines the rows of
the others: rows count the kept items of all shards in order.
"""

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.files import atomic_write
from data_prep.images import index as image_index
from data_prep.records import schema
from data_prep.records.clips import ClipReader
from data_prep.records.dropped import dropped_image, list_path, write_lines
from data_prep.records.inputs import Inputs
from data_prep.videos.clip_names import parse_clip

# Frames per shard. The maximum keeps shards below 1 GB at 50 kB per image, and ROPE at 4,000 files, all of which are
# open during training. The minimum spares small data sets files of a few images. In between, 16 shards keep a pool busy
# and lose little when a build is killed.
MIN_FRAMES, MAX_FRAMES, SHARDS = 64, 16_384, 16


@dataclasses.dataclass(frozen=True)
class Span:
    """The items [start, stop) of a domain and their frames [first_frame, last_frame)."""

    start: int
    stop: int
    first_frame: int
    last_frame: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard to write: a span of the items of a domain."""

    path: Path
    inputs: Inputs
    split: str
    domain: str
    span: Span
    places: Path  # file of the image index with the places of the domain's frames


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """The content of a finished shard."""

    span: Span
    dropped_rows: tuple[int, ...]  # rows of the catalog, ascending
    frames: int  # number of frames kept
    num_bytes: int
    crc32: int  # of the records, see `schema.Tally`
    dropped_items: Mapping[str, int]  # counts by reason
    dropped_frames: Mapping[str, int]
    clips: Mapping[str, int] = dataclasses.field(default_factory=dict)  # see `ClipReader.counts`; {} without any

    @property
    def rows(self) -> int:
        """Number of records."""
        return self.span.stop - self.span.start - len(self.dropped_rows)


def plan_shards(frame_counts: Iterable[int], *, max_frames: int) -> list[Span]:
    """Divides items into spans of at most `max_frames` frames, or of one item if that has more.

    An item without frames counts as one frame. The result depends on the items alone, so that any number of processes
    writes the same files. For example, items of 2, 2, 1 and 5 frames with `max_frames=4` become [0, 2), [2, 3), [3, 4).
    """
    spans, start, first_frame, filled = [], 0, 0, 0
    index, frame = -1, 0
    for index, count in enumerate(frame_counts):
        weight = max(1, count)
        if filled and filled + weight > max_frames:
            spans.append(Span(start, index, first_frame, frame))
            start, first_frame, filled = index, frame, 0
        filled += weight
        frame += count
    return [*spans, Span(start, index + 1, first_frame, frame)] if filled else []


def frames_per_shard(frames: int) -> int:
    """Returns the maximum number of frames per shard of a domain with `frames` frames in total."""
    return min(MAX_FRAMES, max(MIN_FRAMES, -(-frames // SHARDS)))


def finish_shard(shard: Shard) -> tuple[ShardReport, bool]:
    """Writes a shard unless an earlier run finished it; returns its report and whether one did."""
    report = find_finished(shard)
    return (report, True) if report is not None else (write_shard(shard), False)


def find_finished(shard: Shard) -> ShardReport | None:
    """Returns the report of a shard that an earlier run finished, or None if the shard must be written.

    This reads the whole shard: after a power failure the report may be on disk but only part of the shard.
    """
    try:
        report = read_report(report_path(shard.path))
        size = shard.path.stat().st_size
        tally = schema.tally_records(shard.path)
    except (FileNotFoundError, ValueError, RuntimeError):
        return None
    # Another version of `plan_shards` may have given this name to other items.
    same_items, same_size = report.span == shard.span, size == report.num_bytes
    return report if same_items and same_size and tally == schema.Tally(report.rows, report.crc32) else None


def write_shard(shard: Shard) -> ShardReport:
    """Writes a shard and its report; the same arguments and images give the same bytes.

    An image that does not exist is dropped, but one that cannot be read raises OSError.
    """
    dropped_rows: list[int] = []
    dropped_items: collections.Counter[str] = collections.Counter()
    dropped_images: list[dict[str, object]] = []
    kept_frames = 0

    def examples() -> Iterator[dict[str, Any]]:
        nonlocal kept_frames
        span, inputs = shard.span, shard.inputs
        items = inputs.opened_catalog.items(shard.split, shard.domain, span.start, span.stop)
        places = image_index.read_places(shard.places, span.first_frame, span.last_frame)
        with closing(image_index.ImageReader(inputs.images, inputs.max_side)) as reader:
            for row, item in enumerate(items, start=span.start):
                times, frames = [], []
                for frame, place in zip(item.frames, places, strict=False):  # the rest are of the next items
                    if clip := parse_clip(frame.name):
                        found, found_times, problem = clips.read(clip, place)
                    else:
                        data, problem = reader.read(place)
                        found, found_times = [data], [frame.time]
                    if problem is not None:
                        line = dropped_image(shard.split, shard.domain, item.own_id, frame.name, str(problem))
                        dropped_images.append(line)
                        continue
                    frames += found
                    # What follows a clip is not before its last frame. Times of images ascend in the catalog.
                    times += [max(time, times[-1]) if times else time for time in found_times]
                if not frames:
                    dropped_rows.append(row)
                    dropped_items["no frames left" if item.frames else "no frames listed"] += 1
                    continue
                kept_frames += len(frames)
                fields = {"item_id": item.item_id, "text": item.text, "product_ids": item.product_ids}
                fields |= {"payload": item.payload} if item.payload else {}
                yield {**fields, "frames": frames, "frame_times": times}

    with closing(ClipReader(shard.inputs.images, shard.inputs.choice)) as clips:
        tally = schema.write_records(shard.path, examples())
    report = ShardReport(
        span=shard.span,
        dropped_rows=tuple(dropped_rows),
        frames=kept_frames,
        num_bytes=shard.path.stat().st_size,
        crc32=tally.crc32,
        dropped_items=dict(sorted(dropped_items.items())),
        dropped_frames=dict(sorted(collections.Counter(str(line["reason"]) for line in dropped_images).items())),
        clips=dict(clips.counts),
    )
    report_path(shard.path).parent.mkdir(exist_ok=True)
    if dropped_images:
        write_lines(list_path(report_path(shard.path)), dropped_images)
    # Last, because the report marks the shard as finished.
    with atomic_write(report_path(shard.path), "w") as file:
        json.dump(dataclasses.asdict(report), file)
    return report


def report_path(path: Path) -> Path:
    """Returns the path of the report of the shard `path`."""
    return path.parent / "reports" / f"{path.name}.json"


def read_report(path: Path) -> ShardReport:
    """Reads the report of a shard; raises ValueError if it is incomplete, as after a power failure."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields |= {"span": Span(**fields["span"]), "dropped_rows": tuple(fields["dropped_rows"])}
        return ShardReport(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the report of a shard: {error!r}") from error


def read_dropped_rows(folder: Path, split: str) -> np.ndarray:
    """Returns the dropped catalog rows of a split whose finished shards are in `folder`, i64[n], ascending."""
    paths = sorted((folder / "reports").glob(f"*-{split}.*.json"))
    return np.concatenate([np.array(read_report(path).dropped_rows, np.int64) for path in paths])


def kept_rows(rows: Sequence[int], dropped: np.ndarray) -> tuple[int, ...]:
    """Maps ascending rows of the catalog to rows of the records, which skip the dropped items.

    For example, if rows [1, 3] are dropped, (0, 1, 4) becomes (0, 2).
    """
    before = np.searchsorted(dropped, rows, side="left")
    kept = before == np.searchsorted(dropped, rows, side="right")
    return tuple((np.asarray(rows, np.int64) - before)[kept].tolist())


def summarize(reports: Sequence[ShardReport]) -> dict[str, Any]:
    """Returns the counts of a domain's shards for the build summary: items, frames, bytes and, if any, clips.

    A clip counts as one frame "in", while those that are kept are counted as frames.
    """
    dropped_items = sum((collections.Counter(report.dropped_items) for report in reports), collections.Counter())
    dropped_frames = sum((collections.Counter(report.dropped_frames) for report in reports), collections.Counter())
    clips = collections.Counter()
    for report in reports:
        clips.update(report.clips)
    return {
        "items": {
            "in": sum(report.span.stop - report.span.start for report in reports),
            "kept": sum(report.rows for report in reports),
            "dropped": dict(sorted(dropped_items.items())),
        },
        "frames": {
            "in": sum(report.span.last_frame - report.span.first_frame for report in reports),
            "kept": sum(report.frames for report in reports),
            "dropped": dict(sorted(dropped_frames.items())),
        },
        "bytes": sum(report.num_bytes for report in reports),
        **({"clips": dict(clips)} if clips else {}),
    }
