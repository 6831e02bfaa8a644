"""Finds and reads the images of frames, for more image names than fit in memory: DuckDB joins them out of core.

    INDEX/images.parquet             every image of the sources
    INDEX/<split>-<domain>.parquet   the place of each frame's image, in row order

Places are read by ranges of frames, so that the writer of a shard reads only its own.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.catalog.files import Catalog
from data_prep.common.domains import DOMAINS
from data_prep.common.files import TEMPORARY, atomic_write
from data_prep.images import decoding, sources
from data_prep.images.decoding import ImageProblem
from data_prep.images.sources import WHOLE_FILE, Location

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_LIMIT = "2GB"  # of DuckDB, which spills larger data to the index's folder
GROUP_ROWS = 16384
IMAGES_FILE = "images.parquet"

_SOURCE_BITS = 57  # bits of a preference within its source
_IMAGE_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("preference", pa.int64()),
        ("is_alias", pa.bool_()),
        ("source", pa.int8()),
        ("path", pa.string()),
        ("start", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
    ]
)
_PLACE_SCHEMA = pa.schema([_IMAGE_SCHEMA.field(name) for name in ("source", "path", "start", "size", "sha256")])


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where the image of a frame is stored."""

    source: int | None  # number of the source; None, like the other attributes, if no source has the image
    path: str  # of the file, relative to its source
    start: int  # offset of the image in a tar; WHOLE_FILE if the file is the image
    size: int  # in bytes
    sha256: str  # of bytes that are known to decode, or ""


class ImageReader:
    """Reads images from their places. Keeps the latest tar open, because the next image is mostly in it as well."""

    def __init__(self, sources: Sequence[Path]) -> None:
        self._sources = sources
        self._path: Path | None = None
        self._tar = -1  # file descriptor of `_path`

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            os.close(self._tar)
            self._path = None

    def read(self, place: Place) -> tuple[bytes, ImageProblem | None]:
        """Returns the image's bytes and None, or b"" and the reason why the image is skipped.

        Raises:
            OSError: A file cannot be read or a tar is missing, which is a problem of the machine and not of the data.
        """
        if place.source is None:
            return b"", ImageProblem.MISSING
        path = self._sources[place.source] / place.path
        if place.start == WHOLE_FILE:
            return decoding.read_image(path)
        if place.size > decoding.MAX_BYTES:
            return b"", ImageProblem.TOO_LARGE
        if path != self._path:
            self.__exit__()
            self._tar, self._path = os.open(path, os.O_RDONLY), path
        data = os.pread(self._tar, place.size, place.start)
        if not place.sha256:
            problem = decoding.find_problem(data)
        else:  # it decoded when it was downloaded; hashing takes a tenth of the time of decoding it again
            problem = None if hashlib.sha256(data).hexdigest() == place.sha256 else ImageProblem.CHANGED
        return (data, None) if problem is None else (b"", problem)


def places_path(index: Path, split: str, domain: str) -> Path:
    """Returns the path of a domain's places in an index."""
    return index / f"{split}-{domain}.parquet"


def read_places(path: Path, start: int, stop: int) -> Iterator[Place]:
    """Yields the places of the frames [start, stop) of a domain."""
    with pq.ParquetFile(path) as file:
        sizes = (file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
        for group, (first, end) in enumerate(itertools.pairwise(itertools.accumulate(sizes, initial=0))):
            if first < stop and end > start:
                rows = file.read_row_group(group).slice(max(start - first, 0), min(stop, end) - max(start, first))
                yield from map(Place, *(column.to_pylist() for column in rows.columns))


def write_index(index: Path, catalog: Catalog, splits: Iterable[str], folders: Sequence[Path]) -> None:
    """Writes the missing files of an index; call it in one process at a time.

    The first source with an image is used. Within a source, a file whose path is the whole name comes before one whose
    path ends in it. Shards of a download with the same name have the same URL: the first is used.

    Args:
        index: Folder of the index.
        catalog: Catalog with the names of the frames' images.
        splits: Splits of the catalog.
        folders: Sources of images.

    Raises:
        ValueError: A source is invalid, a name is ambiguous, or there is not enough memory or disk.
    """
    index.mkdir(parents=True, exist_ok=True)
    targets = {(split, domain): places_path(index, split, domain) for split in splits for domain in DOMAINS}
    todo = {key: path for key, path in targets.items() if not path.exists()}
    if not todo:
        return
    for path in index.glob(f"*{TEMPORARY}"):  # left by a killed process
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not (index / IMAGES_FILE).exists():
        _write_images(index / IMAGES_FILE, folders)
    with _database(index) as database:
        database.execute(f"CREATE VIEW images AS FROM read_parquet('{_quote(index / IMAGES_FILE)}')")
        # One number per name: such groups spill to disk, lists and strings would not.
        database.execute("CREATE TABLE chosen AS SELECT name, min(preference) AS preference FROM images GROUP BY name")
        for (split, domain), path in todo.items():
            _check_aliases(database, catalog.path(split, domain), folders)
            _write_places(database, catalog.path(split, domain), path)


def _write_images(path: Path, folders: Sequence[Path]) -> None:
    """Writes the images of all sources, keeping one row group in memory."""
    with atomic_write(path) as file, pq.ParquetWriter(file, _IMAGE_SCHEMA, compression="zstd") as writer:
        for number, folder in enumerate(folders):
            locations = sources.locate(folder)
            while batch := list(itertools.islice(locations, GROUP_ROWS)):
                writer.write_batch(_to_batch(batch, number))


def _to_batch(locations: Sequence[Location], source: int) -> pa.RecordBatch:
    columns: dict[str, list] = {name: [getattr(at, name) for at in locations] for name in Location.__slots__}
    columns["preference"] = [(source << _SOURCE_BITS) + at.preference for at in locations]
    columns["source"] = [source] * len(locations)
    return pa.RecordBatch.from_pydict(columns, schema=_IMAGE_SCHEMA)


@contextlib.contextmanager
def _database(index: Path) -> "Iterator[DuckDBPyConnection]":
    import duckdb  # here, so that processes that only read places do not load it

    scratch = index / f"duckdb{TEMPORARY}"
    scratch.mkdir()
    settings = {"memory_limit": MEMORY_LIMIT, "temp_directory": str(scratch), "preserve_insertion_order": False}
    try:
        with duckdb.connect(str(scratch / "index.duckdb"), config=settings) as database:
            yield database
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise ValueError(
            f"cannot index the images: {MEMORY_LIMIT} of memory or the disk of {index} are not enough: {error}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_aliases(database: "DuckDBPyConnection", items: Path, folders: Sequence[Path]) -> None:
    """Raises ValueError if a frame's name is the last part of several paths with different contents."""
    # Files of the same size count as copies; different images hardly ever have the same size.
    rows = database.execute(
        f"""
        SELECT images.name, any_value(source), min(path), max(path), count(*) OVER ()
        FROM images JOIN chosen USING (name)
        WHERE is_alias AND images.preference >> 56 = chosen.preference >> 56
          AND name IN (SELECT unnest(frame_names) FROM read_parquet('{_quote(items)}'))
        GROUP BY images.name HAVING min(size) < max(size) ORDER BY images.name LIMIT 1
        """
    ).fetchall()
    for name, source, first, last, count in rows:
        raise ValueError(
            f"{count} image names match several files each: {name!r} is {folders[source] / first} and "
            f"{folders[source] / last}; name images by their path from {folders[source]}"
        )


def _write_places(database: "DuckDBPyConnection", items: Path, path: Path) -> None:
    reader = database.sql(
        f"""
        WITH frames AS (
          SELECT file_row_number AS row, unnest(frame_names) AS name, generate_subscripts(frame_names, 1) AS place
          FROM read_parquet('{_quote(items)}', file_row_number = true)
        ), found AS (SELECT images.* FROM images JOIN chosen USING (name, preference))
        SELECT source, path, start, size, sha256 FROM frames LEFT JOIN found USING (name) ORDER BY row, place
        """
    ).to_arrow_reader(GROUP_ROWS)
    with atomic_write(path) as file, pq.ParquetWriter(file, _PLACE_SCHEMA, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch.cast(_PLACE_SCHEMA), row_group_size=GROUP_ROWS)


def _quote(path: Path) -> str:
    return str(path).replace("'", "''")
