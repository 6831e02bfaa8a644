"""Products, and images with the same bytes, that occur in more than one split; joined by DuckDB out of core."""

import contextlib
import dataclasses
import hashlib
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.common.files import plain_links
from data_prep.common.payload import OWN_ITEM, parse_payload
from data_prep.common.process_pool import process_map
from data_prep.inspect.distributions import read_sample
from data_prep.rope.rope_dataset_builder import find_record_files

MEMORY_LIMIT = "2GB"
MAX_EXAMPLES = 10  # of each kind
_SCHEMA = pa.schema(
    [
        pa.field("split", pa.string()),
        pa.field("kind", pa.string()),  # a domain, or "product"
        pa.field("id", pa.string()),  # of an item, in the user's table
        pa.field("sha256", pa.binary(32)),  # of an image; null for a product
    ]
)


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """A file of records of a kind (a domain, or "product"), and the Parquet file for its ids and image hashes."""

    path: Path
    split: str
    kind: str
    target: Path


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Numbers of products and of distinct images in more than one split, and the first of each."""

    products: int
    product_ids: list[int]
    images: int
    examples: list[str]


def check_split(data_dir: Path, *, processes: int | None = None) -> Overlap:
    """Finds the overlap of the splits; uses about 60 bytes per image in the data folder while it runs."""
    import duckdb  # here, so that the processes that read records need not import it

    data_sets = find_record_files(data_dir)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix="check_split-") as name, process_map(processes) as apply:
        scratch = Path(name)
        files = [
            RecordFile(path, split, config, scratch / f"{config}-{path.name}.parquet")
            for config, splits in data_sets.items()
            for split, paths in splits.items()
            for path in paths
        ]
        for _ in apply(extract_hashes, files):
            pass
        try:
            return find_overlap(scratch)
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            raise ValueError(f"{MEMORY_LIMIT} of memory or the disk of {data_dir} do not suffice: {error}") from error


def extract_hashes(file: RecordFile) -> None:
    """Writes the ids and image hashes of a file of records."""
    rows: list[tuple[str, str, str, bytes | None]] = []
    for record in read_sample(file.path):
        if file.kind == "product":
            rows.append((file.split, file.kind, str(record.integers("product_id")[0]), None))
            continue
        payload = parse_payload(b"".join(record.byte_strings("payload")).decode())
        item_id = str(payload.get(OWN_ITEM, record.integers("item_id")[0]))
        hashes = (hashlib.sha256(frame).digest() for frame in record.byte_strings("frames"))
        rows += [(file.split, file.kind, item_id, digest) for digest in hashes]
    columns = zip(*rows, strict=True) if rows else [[]] * len(_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    with file.target.open("wb") as target:
        pq.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), target)


def find_overlap(scratch: Path) -> Overlap:
    """Joins the files of `extract_hashes` in a folder; what does not fit in memory goes to the same folder."""
    import duckdb

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(plain_links())(scratch)
        database = duckdb.connect(config={"memory_limit": MEMORY_LIMIT, "temp_directory": folder})
        stack.enter_context(database)
        database.read_parquet(f"{folder}/*.parquet", hive_partitioning=False).create_view("rows")
        products = database.sql(
            "SELECT id FROM rows WHERE kind = 'product' GROUP BY id HAVING count(DISTINCT split) > 1 "
            "ORDER BY id::BIGINT"
        )
        database.execute(
            "CREATE TABLE shared AS SELECT sha256 FROM rows WHERE kind <> 'product' "
            "GROUP BY sha256 HAVING min(split) < max(split)"
        )
        images = database.sql("SELECT count(*) FROM shared").fetchall()[0][0]
        examples = database.sql(
            "SELECT list(DISTINCT split || ' ' || kind || ' ' || id ORDER BY split || ' ' || kind || ' ' || id) "
            f"FROM rows JOIN (FROM shared ORDER BY sha256 LIMIT {MAX_EXAMPLES}) USING (sha256) "
            "GROUP BY sha256 ORDER BY sha256"
        ).fetchall()
        ids = [int(row[0]) for row in products.limit(MAX_EXAMPLES).fetchall()]
        return Overlap(products.count("*").fetchall()[0][0], ids, images, [", ".join(row[0]) for row in examples])


def format_overlap(overlap: Overlap) -> str:
    """Returns the overlap as lines of text."""
    lines = [f"products in more than one split: {overlap.products}"]
    lines += [f"  product {product}" for product in overlap.product_ids]
    lines.append(f"images whose bytes occur in more than one split: {overlap.images}")
    return "\n".join([*lines, *(f"  {example}" for example in overlap.examples)])
