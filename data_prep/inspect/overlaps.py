"""What occurs in more than one split: products, and images with the same bytes. Joined by DuckDB, out of core."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from data_prep.catalog.files import GROUP_ROWS, write_batches

MEMORY_LIMIT = "2GB"
SHOWN = 10  # examples of each kind
_SCHEMA = pa.schema(
    [
        pa.field("split", pa.string()),
        pa.field("kind", pa.string()),  # a domain, or "product"
        pa.field("id", pa.int64()),
        pa.field("sha256", pa.binary(32)),  # of an image; null for a product
    ]
)


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """A file of records to take down into the Parquet file `target`; `kind` is a domain or "product"."""

    path: Path
    split: str
    kind: str
    target: Path


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What several splits share: how many products or distinct images, and the first of them in words."""

    products: int
    product_ids: list[int]
    images: int
    examples: list[str]


def take_down(file: RecordFile) -> None:
    """Writes the ids and images' checksums of a file of records."""
    rows = _rows(file)
    batches = iter(lambda: list(itertools.islice(rows, GROUP_ROWS)), [])
    columns = ([list(column) for column in zip(*batch, strict=True)] for batch in batches)
    write_batches(file.target, _SCHEMA, (pa.record_batch(arrays, schema=_SCHEMA) for arrays in columns))


def _rows(file: RecordFile) -> Iterator[tuple[str, str, int, bytes | None]]:
    reader = ArrayRecordReader(str(file.path))
    for number in range(reader.num_records()):
        record = tf_example_pb2.Example.FromString(reader.read([number])[0]).features.feature
        if file.kind == "product":
            yield file.split, file.kind, record["product_id"].int64_list.value[0], None
            continue
        item_id = record["item_id"].int64_list.value[0]
        for frame in record["frames"].bytes_list.value:
            yield file.split, file.kind, item_id, hashlib.sha256(frame).digest()
    reader.close()


def find_overlap(taken: Sequence[Path], scratch: Path) -> Overlap:
    """Returns what the files written by `take_down` share over splits.

    Args:
      taken: these files.
      scratch: folder for what does not fit in memory.
    """
    import duckdb  # here, so that the processes that only read records are spared it

    settings = {"memory_limit": MEMORY_LIMIT, "temp_directory": str(scratch)}
    with duckdb.connect(str(scratch / "overlap.duckdb"), config=settings) as database:
        database.read_parquet([str(path) for path in taken]).create_view("rows")
        products = database.sql(
            "SELECT id FROM rows WHERE kind = 'product' GROUP BY id HAVING count(DISTINCT split) > 1 ORDER BY id"
        )
        database.execute(
            "CREATE TABLE shared AS SELECT sha256 FROM rows WHERE kind <> 'product' "
            "GROUP BY sha256 HAVING min(split) < max(split)"
        )
        images = database.sql("SELECT count(*) FROM shared").fetchall()[0][0]
        examples = database.sql(
            "SELECT list(DISTINCT split || ' ' || kind || ' ' || id ORDER BY split || ' ' || kind || ' ' || id) "
            f"FROM rows JOIN (FROM shared ORDER BY sha256 LIMIT {SHOWN}) USING (sha256) GROUP BY sha256 ORDER BY sha256"
        ).fetchall()
        ids = [row[0] for row in products.limit(SHOWN).fetchall()]
        return Overlap(products.count("*").fetchall()[0][0], ids, images, [", ".join(row[0]) for row in examples])
