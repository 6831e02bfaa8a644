"""Image name → where its bytes are, for more names than fit in memory: joined by DuckDB, out of core.

    INDEX/images.parquet         every image of the sources
    INDEX/<split>-<domain>.parquet   for each frame of a catalog's items, in row order, its place

Places are read back by range of frames, so that whoever writes a shard sees no other shard's.
"""

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.catalog.files import Catalog
from data_prep.common.domains import DOMAINS
from data_prep.images import sources as image_sources
from data_prep.images.sources import ImageSourceError, Location

MEMORY_LIMIT = "2GB"  # of DuckDB, which spills to the index's folder beyond
GROUP_ROWS = 16384
IMAGES_FILE = "images.parquet"

_SOURCE_BITS = 57  # those of a preference within its source
_IMAGE_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("preference", pa.int64()),
        pa.field("is_alias", pa.bool_()),
        pa.field("source", pa.int8()),
        pa.field("path", pa.string()),
        pa.field("start", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("sha256", pa.string()),
    ]
)
_PLACE_SCHEMA = pa.schema([_IMAGE_SCHEMA.field(name) for name in ("source", "path", "start", "size", "sha256")])


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a frame's image is. `source` counts the folders given; None, like the rest, where it is in none.

    `path` is relative to its source, `start` the offset in it (image_sources.WHOLE_FILE: the file is the
    image), `sha256` that of bytes known to decode, or "".
    """

    source: int | None
    path: str
    start: int
    size: int
    sha256: str


def places_path(index: Path, split: str, domain: str) -> Path:
    """Returns where `write_index` puts the places of a domain's frames."""
    return index / f"{split}-{domain}.parquet"


def write_index(index: Path, catalog: Catalog, splits: Iterable[str], sources: Sequence[Path]) -> None:
    """Finds the images of the frames of `catalog` in `sources`; what is there already is kept. One process at a time.

    Of several sources with a name the first is taken, and within one a path that is the whole name goes before
    one that ends in it; two shards of a download with the same name hold the same URL: the first is taken.

    Raises:
      ImageSourceError: as of `image_sources.locate`, a name that means several different files of a folder, or memory
        or disk that do not suffice.
    """
    index.mkdir(parents=True, exist_ok=True)
    targets = {(split, domain): places_path(index, split, domain) for split in splits for domain in DOMAINS}
    todo = {key: path for key, path in targets.items() if not path.exists()}
    if not todo:
        return
    if not (index / IMAGES_FILE).exists():
        _write_images(index / IMAGES_FILE, sources)
    with _database(index) as database:
        database.execute(f"CREATE VIEW images AS FROM read_parquet('{_quoted(index / IMAGES_FILE)}')")
        # One number a name: such groups spill to disk, lists and strings would not.
        database.execute("CREATE TABLE chosen AS SELECT name, min(preference) AS preference FROM images GROUP BY name")
        for (split, domain), path in todo.items():
            _check_aliases(database, catalog.path(split, domain), sources)
            _write_places(database, catalog.path(split, domain), path)


def read_places(path: Path, start: int, stop: int) -> Iterator[Place]:
    """Yields the places of the frames [start, stop) of a domain."""
    with pq.ParquetFile(path) as file:
        sizes = (file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
        for group, (first, end) in enumerate(itertools.pairwise(itertools.accumulate(sizes, initial=0))):
            if first < stop and end > start:
                rows = file.read_row_group(group).slice(max(start - first, 0), min(stop, end) - max(start, first))
                yield from map(Place, *(column.to_pylist() for column in rows.columns))


def _write_images(path: Path, sources: Sequence[Path]) -> None:
    """Writes the images of all sources, a row group in memory at a time."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with pq.ParquetWriter(unfinished, _IMAGE_SCHEMA, compression="zstd") as writer:
        for number, source in enumerate(sources):
            locations = image_sources.locate(source)
            while batch := list(itertools.islice(locations, GROUP_ROWS)):
                writer.write_batch(_as_rows(batch, number))
    unfinished.rename(path)


def _as_rows(locations: Sequence[Location], source: int) -> pa.RecordBatch:
    columns = {
        "name": [at.name for at in locations],
        "preference": [(source << _SOURCE_BITS) + at.preference for at in locations],
        "is_alias": [at.is_alias for at in locations],
        "source": [source] * len(locations),
        "path": [at.path for at in locations],
        "start": [at.offset for at in locations],
        "size": [at.size for at in locations],
        "sha256": [at.sha256 for at in locations],
    }
    return pa.RecordBatch.from_pydict(columns, schema=_IMAGE_SCHEMA)


@contextlib.contextmanager
def _database(index: Path):
    import duckdb  # here, so that the processes that only read places are spared it

    scratch = index / "duckdb.tmp"
    shutil.rmtree(scratch, ignore_errors=True)  # a killed build left it
    scratch.mkdir()
    settings = {"memory_limit": MEMORY_LIMIT, "temp_directory": str(scratch), "preserve_insertion_order": False}
    try:
        with duckdb.connect(str(scratch / "index.duckdb"), config=settings) as database:
            yield database
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise ImageSourceError(
            f"no index of the images: {MEMORY_LIMIT} of memory or the disk of {index} do not suffice: {error}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_aliases(database, items: Path, sources: Sequence[Path]) -> None:
    """Raises ImageSourceError where a frame's name is the last part of several paths with different contents."""
    # Files of one size are taken for copies; what differs in content hardly ever has the same size.
    rows = database.execute(
        f"""
        SELECT images.name, any_value(source), min(path), max(path), count(*) OVER ()
        FROM images JOIN chosen USING (name)
        WHERE is_alias AND images.preference >> 56 = chosen.preference >> 56
          AND name IN (SELECT unnest(frame_names) FROM read_parquet('{_quoted(items)}'))
        GROUP BY images.name HAVING min(size) < max(size) ORDER BY images.name LIMIT 1
        """
    ).fetchall()
    for name, source, first, last, count in rows:
        raise ImageSourceError(
            f"{count} image names mean several files each: {name!r} is {sources[source] / first} and "
            f"{sources[source] / last}; name images by their path from {sources[source]}"
        )


def _write_places(database, items: Path, path: Path) -> None:
    reader = database.sql(
        f"""
        WITH frames AS (
          SELECT file_row_number AS row, unnest(frame_names) AS name, generate_subscripts(frame_names, 1) AS place
          FROM read_parquet('{_quoted(items)}', file_row_number = true)
        ), found AS (SELECT images.* FROM images JOIN chosen USING (name, preference))
        SELECT source, path, start, size, sha256 FROM frames LEFT JOIN found USING (name) ORDER BY row, place
        """
    ).to_arrow_reader(GROUP_ROWS)
    unfinished = path.with_name(f"{path.name}.tmp")
    with pq.ParquetWriter(unfinished, _PLACE_SCHEMA, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch.cast(_PLACE_SCHEMA), row_group_size=GROUP_ROWS)
    unfinished.rename(path)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
