"""The ledger of a shard: a Parquet file next to its tar, with a row per URL and the shard's coverage of the catalog.

Its first columns are those of img2dataset. It exists if and only if the shard is finished.
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
from data_prep.common.files import atomic_write
from data_prep.common.parquet import open_parquet
from data_prep.images.decoding import RULES, RULES_KEY
from data_prep.videos.clip_names import strip_fragment

SUCCESS, FAILED = "success", "failed_to_download"  # as in img2dataset
ITEM_STATES = ("complete", "partial", "missing", "without_frames")
_FOOTER = b"cope_download"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The answer for a URL: either the fields of an image are None or those of a failure."""

    key: str
    url: str
    status: str
    error_message: str | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None  # like the next two, of the bytes in the tar
    bytes: int | None = None
    start: int | None = None  # offset in the tar, so that a build need not walk over it
    extension: str | None = None
    name: str  # as in the catalog
    failure: str | None = None  # one of `Failure`
    http_status: int | None = None
    tries: int  # in all runs

    @property
    def ok(self) -> bool:
        """Whether the image arrived."""
        return self.status == SUCCESS


_TYPES = {str: pa.string(), str | None: pa.string(), int: pa.int32(), int | None: pa.int32()}
_LARGE: dict[str, pa.DataType] = {"bytes": pa.int64(), "start": pa.int64()}
SCHEMA = pa.schema(
    [
        pa.field(field.name, _LARGE.get(field.name, _TYPES[field.type]), nullable=field.default is None)
        for field in dataclasses.fields(Row)
    ]
)


@dataclasses.dataclass(frozen=True)
class Footer:
    """The rows [start, stop) of its domain that a finished shard covers, and their coverage as of `count_coverage`."""

    start: int
    stop: int
    coverage: Mapping[str, Any]


def write_ledger(path: Path, rows: Sequence[Row], footer: Footer) -> None:
    """Writes a ledger."""
    table = pa.Table.from_pylist([vars(row) for row in rows], SCHEMA)
    # A build by the same rules need not decode the images again.
    table = table.replace_schema_metadata({RULES_KEY: RULES, _FOOTER: json.dumps(dataclasses.asdict(footer))})
    with atomic_write(path, durable=True) as file:
        pq.write_table(table, file, compression="zstd")


def read_footer(path: Path) -> Footer:
    """Reads the footer of a ledger. Raises ValueError if the ledger is invalid, like the next two functions."""
    with _open(path) as file:
        return Footer(**json.loads(file.schema_arrow.metadata[_FOOTER]))


def read_rows(path: Path) -> list[Row]:
    """Reads the rows of a ledger in order."""
    with _open(path) as file:
        return [Row(**row) for row in file.read().to_pylist()]


def min_tar_bytes(path: Path) -> int:
    """Returns the smallest size of a tar that has all images of its ledger."""
    with _open(path) as file:
        table = file.read(["start", "bytes"])
        return pc.max(pc.add(table["start"], table["bytes"])).as_py() or 0


@contextlib.contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with open_parquet(path) as file:
            yield file
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not the ledger of a shard ({error.__cause__ or error}): remove it and run the same command "
            "again to fetch the shard's images anew"
        ) from error


def count_coverage(items: Sequence[Item], rows: Sequence[Row]) -> dict[str, Any]:
    """Counts what arrived for `items`. A frame of two items counts for both, its bytes once.

    Returns:
        {"items": {"in", "complete", "partial", "missing", "without_frames"}, "frames": {"in", "ok", "failed":
        failure → count}, "bytes"}. A missing item has frames in the catalog, none of which arrived.
    """
    failures = {row.name: row.failure for row in rows}
    states: collections.Counter[str] = collections.Counter()
    failed: collections.Counter[str] = collections.Counter()
    frames = 0
    for item in items:
        missing = [failure for frame in item.frames if (failure := failures[strip_fragment(frame.name)])]
        frames += len(item.frames)
        failed.update(missing)
        if not item.frames:
            states["without_frames"] += 1
        elif not missing:
            states["complete"] += 1
        else:
            states["missing" if len(missing) == len(item.frames) else "partial"] += 1
    return {
        "items": {"in": len(items), **{state: states[state] for state in ITEM_STATES}},
        "frames": {"in": frames, "ok": frames - failed.total(), "failed": dict(sorted(failed.items()))},
        "bytes": sum(row.bytes or 0 for row in rows),
    }
