"""A shard's ledger: a row for each of its URLs, and what the shard covers of the catalog; Parquet, beside its tar.

Its first columns are those that img2dataset writes; the file is there once the shard is finished.
"""

import collections
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.catalog.files import Item
from data_prep.download.durable import replaced
from data_prep.download.failures import DownloadError
from data_prep.images import decoding as images

SUCCESS, FAILED = "success", "failed_to_download"  # img2dataset's words
_FOOTER = b"cope_download"

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_message", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),
        pa.field("original_height", pa.int32()),
        pa.field("sha256", pa.string()),  # as the next, of the bytes in the tar
        pa.field("bytes", pa.int64()),
        pa.field("start", pa.int64()),  # of these bytes in the tar, so that a build need not walk over it
        pa.field("extension", pa.string()),
        pa.field("name", pa.string(), nullable=False),  # as in the catalog
        pa.field("failure", pa.string()),  # one of `Failure`
        pa.field("http_status", pa.int32()),
        pa.field("tries", pa.int32(), nullable=False),  # of all runs
    ]
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One URL; see `SCHEMA`. What is only known of an image is None where none arrived, and the other way round."""

    key: str
    url: str
    status: str
    name: str
    tries: int
    http_status: int | None = None
    error_message: str | None = None
    failure: str | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None
    bytes: int | None = None
    start: int | None = None
    extension: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the image is in the tar."""
        return self.status == SUCCESS


@dataclasses.dataclass(frozen=True)
class Footer:
    """What a finished shard covers: rows [start, stop) of its domain, and how well."""

    start: int
    stop: int
    coverage: Mapping[str, Any]  # as `cover` returns


def write(path: Path, rows: Sequence[Row], footer: Footer) -> None:
    """Writes a ledger."""
    table = pa.Table.from_pylist([vars(row) for row in rows], SCHEMA)
    # The build need not decode again what these rules let pass.
    rules = {images.RULES_KEY: images.RULES}
    table = table.replace_schema_metadata(rules | {_FOOTER: json.dumps(dataclasses.asdict(footer))})
    with replaced(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_footer(path: Path) -> Footer:
    """Reads what a shard covers, without its rows. DownloadError where the file is damaged, as from the next two."""
    with _reading(path):
        return Footer(**json.loads(pq.read_schema(path).metadata[_FOOTER]))


def read_rows(path: Path) -> list[Row]:
    """Reads the rows, in row order."""
    with _reading(path):
        return [Row(**row) for row in pq.ParquetFile(path).read().to_pylist()]


def least_tar_bytes(path: Path) -> int:
    """Returns how long the tar of a ledger has to be at least, so that all its images are there."""
    with _reading(path):
        table = pq.ParquetFile(path).read(["start", "bytes"])
        return pc.max(pc.add(table["start"], table["bytes"])).as_py() or 0


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's own are among them
        if isinstance(error, OSError) and error.errno:  # of the system: the file itself may well be sound
            raise
        raise DownloadError(
            f"{path} is no whole ledger of a shard ({error}): remove it and run the same command again, "
            "which fetches the shard's images anew"
        ) from error


def cover(items: Sequence[Item], rows: Sequence[Row]) -> dict[str, Any]:
    """Counts what arrived for `items`. A frame that two items share counts for both, its bytes once.

    Returns:
      {"items": {"in", "complete", "partial", "missing", "without_frames"}, "frames": {"in", "ok", "failed":
      failure → count}, "bytes"}, where a missing item has frames in the catalog and none here.
    """
    failures = {row.name: row.failure for row in rows}
    items_by: collections.Counter[str] = collections.Counter()
    failed: collections.Counter[str] = collections.Counter()
    frames = 0
    for item in items:
        missing = [failure for frame in item.frames if (failure := failures[frame.name])]
        frames += len(item.frames)
        failed.update(missing)
        if not item.frames:
            items_by["without_frames"] += 1
        elif not missing:
            items_by["complete"] += 1
        else:
            items_by["missing" if len(missing) == len(item.frames) else "partial"] += 1
    kinds = ("complete", "partial", "missing", "without_frames")
    return {
        "items": {"in": len(items), **{kind: items_by[kind] for kind in kinds}},
        "frames": {"in": frames, "ok": frames - failed.total(), "failed": dict(sorted(failed.items()))},
        "bytes": sum(row.bytes for row in rows if row.ok),
    }
