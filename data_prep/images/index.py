"""Finds and reads the images of frames, for more image names than fit in memory: DuckDB joins them out of core.

    INDEX/locations.parquet          every image of the sources
    INDEX/<split>-<domain>.parquet   the place of each frame's image, in row order

Places are read by ranges of frames, so that the writer of a shard reads only its own.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.catalog.files import Catalog
from data_prep.common.files import TEMPORARY, atomic_write, plain_links
from data_prep.common.parquet import open_parquet, read_range, stream_parquet
from data_prep.images import decoding, lookup, sources
from data_prep.images.decoding import ImageProblem, shrink
from data_prep.images.lookup import Hint
from data_prep.images.sources import WHOLE_FILE, Location
from data_prep.videos.clip_names import FRAGMENT

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_LIMIT = "2GB"  # of DuckDB, which spills larger data to the index's folder
GROUP_ROWS = 16384
IMAGES_FILE = "locations.parquet"

_SOURCE_BITS = 57  # bits of a preference within its source
_IMAGE_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("whole", pa.string()),
        ("preference", pa.int64()),
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
    sha256: str  # of bytes that decoded when they were downloaded, or ""


class ImageReader:
    """Reads images from their places. Keeps the latest tar open, because the next image is mostly in it as well.

    Args:
        sources: Sources of images.
        max_side: Longer side in pixels, to which larger images are shrunk as JPEGs; None keeps all bytes.
    """

    def __init__(self, sources: Sequence[Path], max_side: int | None = None) -> None:
        self._sources, self._max_side = sources, max_side
        self._path: Path | None = None
        self._tar = -1  # file descriptor of `_path`

    def close(self) -> None:
        """Closes the tar."""
        if self._path is not None:
            os.close(self._tar)
            self._path = None

    def read(self, place: Place) -> tuple[bytes, ImageProblem | None]:
        """Returns the image's bytes and None, or b"" and the reason why the image is skipped.

        Raises:
            OSError: A file cannot be read or a tar is missing, which is a problem of the machine and not of the data.
        """
        data, problem = self._read(place)
        if problem is not None or self._max_side is None:
            return data, problem
        try:
            longer_side = max(decoding.image_size(data))
            return data if longer_side <= self._max_side else shrink(data, self._max_side / longer_side)[0], None
        except decoding.InvalidImageError as error:  # Pillow reads fewer JPEGs than simplejpeg
            return b"", error.problem

    def _read(self, place: Place) -> tuple[bytes, ImageProblem | None]:
        """Returns an image as it is stored."""
        if place.source is None:
            return b"", ImageProblem.MISSING
        path = self._sources[place.source] / place.path
        if place.start == WHOLE_FILE:
            return decoding.read_image(path)
        if place.size > decoding.MAX_BYTES:
            return b"", ImageProblem.TOO_LARGE
        if path != self._path:
            self.close()
            self._tar, self._path = os.open(path, os.O_RDONLY), path
        data = os.pread(self._tar, place.size, place.start)
        if place.sha256 and hashlib.sha256(data).hexdigest() != place.sha256:
            return b"", ImageProblem.CHANGED
        # Bytes with a hash were decoded when they arrived, but a ledger may claim anything: the limits hold for all.
        problem = decoding.find_problem(data, header_only=bool(place.sha256))
        return (data, None) if problem is None else (b"", problem)


def places_path(index: Path, split: str, domain: str) -> Path:
    """Returns the path of a domain's places in an index."""
    return index / f"{split}-{domain}.parquet"


def read_places(path: Path, start: int, stop: int) -> Iterator[Place]:
    """Yields the places of the frames [start, stop) of a domain."""
    with open_parquet(path) as file:
        for batch in read_range(file, start, stop):
            yield from map(Place, *(column.to_pylist() for column in batch.columns))


def count_missing(path: Path) -> tuple[int, int]:
    """Returns the number of a domain's frames without an image, and of all its frames, from the file of places."""
    nulls = [(batch.column(0).null_count, batch.num_rows) for batch in stream_parquet(path, ["source"])]
    return sum(count for count, _ in nulls), sum(count for _, count in nulls)


def explain_missing(index: Path, names: Collection[str], folders: Sequence[Path]) -> dict[str, Hint]:
    """Returns a hint for each name of an image that the index does not have; the names are kept in memory."""
    batches = stream_parquet(index / IMAGES_FILE, ["whole"])
    available = (whole for batch in batches for whole in batch.column(0).to_pylist())
    return lookup.explain_missing(names, available, folders)


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
    targets = {(split, domain): places_path(index, split, domain) for split in splits for domain in catalog.domains}
    todo = {key: path for key, path in targets.items() if not path.exists()}
    if not todo:
        return
    for path in index.glob(f"*{TEMPORARY}"):  # left by a killed process
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not (index / IMAGES_FILE).exists():
        _write_images(index / IMAGES_FILE, folders)
    with _database(index) as database:
        # One number per name: such groups spill to disk, lists and strings would not.
        database.register("locations", stream_parquet(index / IMAGES_FILE, ["name", "preference"]))
        database.execute(
            "CREATE TABLE chosen AS SELECT name, min(preference) AS preference FROM locations GROUP BY name"
        )
        for (split, domain), path in todo.items():
            _check_aliases(database, index, catalog.path(split, domain), folders)
            _write_places(database, index, catalog.path(split, domain), path)


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
    settings = {"memory_limit": MEMORY_LIMIT, "preserve_insertion_order": False}
    try:
        with plain_links() as link, duckdb.connect(config=settings | {"temp_directory": link(scratch)}) as database:
            yield database
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise ValueError(
            f"cannot index the images: {MEMORY_LIMIT} of memory or the disk of {index} are not enough: {error}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_aliases(database: "DuckDBPyConnection", index: Path, items: Path, folders: Sequence[Path]) -> None:
    """Raises ValueError if a frame's name is the last part of several paths or URLs with different contents."""
    database.register("locations", stream_parquet(index / IMAGES_FILE, _IMAGE_SCHEMA.names))
    database.register("frames", _frame_names(items))
    rows = database.execute(
        """
        SELECT locations.name, whole, source, path, start, size FROM locations JOIN chosen USING (name)
        WHERE locations.name <> whole AND locations.preference >> 56 = chosen.preference >> 56
          AND name IN (SELECT name FROM frames)
        QUALIFY min(whole) OVER (PARTITION BY locations.name) <> max(whole) OVER (PARTITION BY locations.name)
        ORDER BY locations.name, locations.preference
        """
    )
    previous: tuple[Any, ...] | None = None
    while row := rows.fetchone():
        name, whole, source, _, start, size = row
        if (
            previous
            and previous[0] == name
            and (size != previous[-1] or _read(folders, *row[2:]) != _read(folders, *previous[2:]))
        ):
            raise ValueError(
                f"image name {name!r} matches several images of {folders[source]}: {previous[1]} and {whole}; name "
                f"them by their whole {'path' if start == WHOLE_FILE else 'URL'}, as it is written here"
            )
        previous = row


def _read(folders: Sequence[Path], source: int, path: str, start: int, size: int) -> bytes:
    with (folders[source] / path).open("rb") as file:
        file.seek(max(start, 0))
        return file.read(size)


def _write_places(database: "DuckDBPyConnection", index: Path, items: Path, path: Path) -> None:
    database.register("locations", stream_parquet(index / IMAGES_FILE, [*_PLACE_SCHEMA.names, "name", "preference"]))
    database.register("frames", _frame_names(items))
    reader = database.sql(
        """
        WITH found AS (SELECT locations.* FROM locations JOIN chosen USING (name, preference))
        SELECT source, path, start, size, sha256 FROM frames LEFT JOIN found USING (name) ORDER BY position
        """
    ).to_arrow_reader(GROUP_ROWS)
    with atomic_write(path) as file, pq.ParquetWriter(file, _PLACE_SCHEMA, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch.cast(_PLACE_SCHEMA), row_group_size=GROUP_ROWS)


def _frame_names(items: Path) -> pa.RecordBatchReader:
    """Returns a stream of the names of a domain's frames and their positions in row order."""

    def batches() -> Iterator[pa.RecordBatch]:
        position = 0
        for batch in stream_parquet(items, ["frame_names"]):
            names = batch.column(0).flatten()
            if pc.any(pc.match_substring(names, "#t=")).as_py():  # of clips
                names = pc.replace_substring_regex(names, FRAGMENT, "")
            positions = np.arange(position, position := position + len(names))
            yield pa.RecordBatch.from_arrays([pa.array(positions), names], schema=schema)

    schema = pa.schema([("position", pa.int64()), ("name", pa.string())])
    return pa.RecordBatchReader.from_batches(schema, batches())
