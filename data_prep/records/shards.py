"""Writes the items of a domain as shards: each a range of items, written by one pure function in any process.

A shard is finished once it has a report. Reports say which items were left out, and so which row each of the
others has: rows count the kept items of one shard after the other.
"""

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data_prep.catalog.files import Catalog, Item
from data_prep.images import index as image_index
from data_prep.images.reader import ImageReader
from data_prep.records import schema as records

# Images a shard. The upper bound keeps a shard below 1 GB at 50 kB an image and ROPE's files, all of which a training
# keeps open, at 4,000; the lower one spares a small data set files of a few images; between them 16 shards keep a pool
# busy and lose little to a kill.
MIN_FRAMES, MAX_FRAMES, SHARDS = 64, 16_384, 16
NO_FRAMES = "no frames listed"
NO_FRAMES_LEFT = "no frames left"


class ReportError(ValueError):
    """A file that is no report of a shard."""


def report_path(path: Path) -> Path:
    """Returns where the report of the shard `path` lies."""
    return path.parent / "reports" / f"{path.name}.json"


@dataclasses.dataclass(frozen=True)
class Span:
    """The items [start, stop) of a domain, whose frames are its frames [first_frame, last_frame)."""

    start: int
    stop: int
    first_frame: int
    last_frame: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """The order to write the items of a span to the file `path`.

    Attributes:
      path: where to write.
      catalog, split, domain, span: which items.
      places: the index's file of the domain's places (`image_index.places_path`).
      sources: what these places are in.
    """

    path: Path
    catalog: Path
    split: str
    domain: str
    span: Span
    places: Path
    sources: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What was written.

    Attributes:
      span: the items in order.
      dropped_rows: those of them that were left out, ascending.
      frames: how many were kept.
      num_bytes: of the file.
      crc32: of the records, `records.Tally`.
      dropped_items, dropped_frames: reason → count.
    """

    span: Span
    dropped_rows: tuple[int, ...]
    frames: int
    num_bytes: int
    crc32: int
    dropped_items: Mapping[str, int]
    dropped_frames: Mapping[str, int]

    @property
    def rows(self) -> int:
        return self.span.stop - self.span.start - len(self.dropped_rows)


def plan_shards(frame_counts: Iterable[int], *, max_frames: int) -> list[Span]:
    """Cuts items of so many frames into spans of at most `max_frames`, or of one item where that has more.

    An item without frames counts as one. Depends on the items alone, so that any number of processes gives
    the same files. Items of 2, 2, 1 and 5 frames at `max_frames=4`: items [0, 2), [2, 3), [3, 4).
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
    """Returns the most images that a shard of a domain with `frames` images gets."""
    return min(MAX_FRAMES, max(MIN_FRAMES, -(-frames // SHARDS)))


def write_shard(shard: Shard) -> ShardReport:
    """Writes a shard and its report. Pure but for these two files: same arguments and images, same bytes.

    Raises:
      OSError: an image or the shard cannot be read or written (an image that does not exist is dropped).
    """
    dropped_rows: list[int] = []
    dropped_items: collections.Counter[str] = collections.Counter()
    dropped_frames: collections.Counter[str] = collections.Counter()
    kept_frames = 0

    def examples() -> Iterator[dict]:
        nonlocal kept_frames
        span = shard.span
        items = Catalog(shard.catalog).items(shard.split, shard.domain, span.start, span.stop)
        places = image_index.read_places(shard.places, span.first_frame, span.last_frame)
        with ImageReader(shard.sources) as reader:
            for row, item in enumerate(items, start=span.start):
                times, frames = _read_frames(item, places, reader, dropped_frames)
                if not frames:
                    dropped_rows.append(row)
                    dropped_items[NO_FRAMES_LEFT if item.frames else NO_FRAMES] += 1
                    continue
                kept_frames += len(frames)
                fields = {"item_id": item.item_id, "text": item.text, "product_ids": item.product_ids}
                yield {**fields, "frames": frames, "frame_times": times}

    tally = records.write_records(shard.path, examples())
    report = ShardReport(
        span=shard.span,
        dropped_rows=tuple(dropped_rows),
        frames=kept_frames,
        num_bytes=shard.path.stat().st_size,
        crc32=tally.crc32,
        dropped_items=dict(sorted(dropped_items.items())),
        dropped_frames=dict(sorted(dropped_frames.items())),
    )
    # Last, for the report is what makes the shard a finished one.
    report_path(shard.path).parent.mkdir(exist_ok=True)
    records.write_text(report_path(shard.path), json.dumps(dataclasses.asdict(report)))
    return report


def _read_frames(
    item: Item, places: Iterator[image_index.Place], reader: ImageReader, dropped: collections.Counter[str]
) -> tuple[list[int], list[bytes]]:
    """Returns times and bytes of the frames that decode, and counts the others in `dropped`."""
    times, frames = [], []
    for frame, place in zip(item.frames, places, strict=False):  # the places go on with the next item's
        data, fault = reader.read(place)
        if fault is not None:
            dropped[fault.value] += 1
        else:
            times.append(frame.time)
            frames.append(data)
    return times, frames


def read_report(path: Path) -> ShardReport:
    """Reads a shard's report.

    Raises:
      FileNotFoundError: there is none.
      ReportError: it is not whole, as after a power cut, or of another version.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        more = {"span": Span(**fields["span"]), "dropped_rows": tuple(fields["dropped_rows"])}
        return ShardReport(**{**fields, **more})
    except (ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path} is no report of a shard: {error!r}") from error


def report_paths(folder: Path, split: str) -> list[Path]:
    """Returns the paths of the reports of a split's finished shards in `folder`, in row order."""
    return sorted((folder / "reports").glob(f"*-{split}.*.json"))


def finished(shard: Shard) -> ShardReport | None:
    """Returns the report of a shard that an earlier run finished, None where it has to be written.

    The shard is read whole: after a power cut a file system may hold the report and not all of the shard.
    """
    try:
        report = read_report(report_path(shard.path))
        size = shard.path.stat().st_size
        tally = records.tally_records(shard.path)
    except (FileNotFoundError, ReportError, RuntimeError):
        return None
    # Another version of `plan_shards` may have given this name to other items.
    same_items, same_size = report.span == shard.span, size == report.num_bytes
    return report if same_items and same_size and tally == records.Tally(report.rows, report.crc32) else None


def finish_shard(shard: Shard) -> tuple[ShardReport, bool]:
    """Returns the report of a shard, written now or, which the second value says, by an earlier run."""
    report = finished(shard)
    return (report, True) if report is not None else (write_shard(shard), False)
