"""Products, images with the same bytes, and near-duplicates that occur in more than one split.

Products and images are joined by DuckDB out of core. Near-duplicates of different products within a split, which
training takes for different things, are reported as well.
"""

import contextlib
import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.common.files import plain_links
from data_prep.common.parquet import open_parquet
from data_prep.common.payload import OWN_ITEM, parse_payload
from data_prep.common.process_pool import ProcessMap, process_map
from data_prep.images.decoding import decode_rgb
from data_prep.inspect import near_duplicates
from data_prep.inspect.distributions import read_sample
from data_prep.records.schema import find_record_files

MEMORY_LIMIT = "2GB"
MAX_EXAMPLES = 10  # of each kind
_SCHEMA = pa.schema(
    [
        pa.field("split", pa.string()),
        pa.field("kind", pa.string()),  # a domain, or "product"
        pa.field("id", pa.string()),  # of an item, in the user's table
        pa.field("products", pa.list_(pa.int64())),  # of an item
        pa.field("sha256", pa.binary(32)),  # of an image; null for a product
    ]
)
_PICTURES = 256  # described at once


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """A file of records of a kind (a domain, or "product"), and the Parquet file for its ids and image hashes.

    Files with the suffixes .thumbnails and .descriptors are written next to it.
    """

    path: Path
    split: str
    kind: str
    target: Path


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Numbers of products and of distinct images in more than one split, and the first of each.

    `leaks` are pairs of items with near-duplicates in different splits, `false_negatives` those of different products
    in one split.
    """

    products: int
    product_ids: list[int]
    images: int
    examples: list[str]
    leaks: Sequence[str] = ()
    false_negatives: Sequence[str] = ()


def check_split(data_dir: Path, *, processes: int | None = None) -> Overlap:
    """Finds the overlap of the splits; uses about 6 kB per image in the data folder while it runs."""
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
            overlap = find_overlap(scratch)
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            raise ValueError(f"{MEMORY_LIMIT} of memory or the disk of {data_dir} do not suffice: {error}") from error
        leaks, false_negatives = _find_near_duplicates(files, scratch, apply)
        return dataclasses.replace(overlap, leaks=leaks, false_negatives=false_negatives)


def extract_hashes(file: RecordFile) -> None:
    """Writes the ids, image hashes, thumbnails and descriptors of a file of records."""
    rows: list[tuple[str, str, str, list[int] | None, bytes | None]] = []
    pictures: list[np.ndarray] = []
    for record in read_sample(file.path):
        if file.kind == "product":
            rows.append((file.split, file.kind, str(record.integers("product_id")[0]), None, None))
            continue
        payload = parse_payload(b"".join(record.byte_strings("payload")).decode())
        item_id = str(payload.get(OWN_ITEM, record.integers("item_id")[0]))
        products, side = record.integers("product_ids"), near_duplicates.SIDE
        for frame in record.byte_strings("frames"):
            rows.append((file.split, file.kind, item_id, products, hashlib.sha256(frame).digest()))
            try:
                pixels = decode_rgb(frame, min_height=side, min_width=side)
            except ValueError:  # a blank picture has no near-duplicates
                pixels = np.zeros((side, side, 3), np.uint8)
            pictures.append(near_duplicates.thumbnail(pixels))
    with (
        file.target.with_suffix(".thumbnails").open("wb") as thumbnails,
        file.target.with_suffix(".descriptors").open("wb") as descriptors,
    ):
        for start in range(0, len(pictures), _PICTURES):
            batch = np.stack(pictures[start : start + _PICTURES])
            thumbnails.write(batch.tobytes())
            descriptors.write(near_duplicates.describe(batch).tobytes())
    columns = zip(*rows, strict=True) if rows else [[]] * len(_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    with file.target.open("wb") as target:
        pq.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), target)


def _find_near_duplicates(files: Sequence[RecordFile], scratch: Path, apply: ProcessMap) -> tuple[list[str], list[str]]:
    """Returns the pairs of items with near-duplicates in different splits, and of different products in one split."""
    files = sorted((file for file in files if file.kind != "product"), key=lambda file: file.split)
    for suffix in (".thumbnails", ".descriptors"):
        with (scratch / f"all{suffix}").open("wb") as target:
            for file in files:
                with file.target.with_suffix(suffix).open("rb") as source:
                    shutil.copyfileobj(source, target)
                file.target.with_suffix(suffix).unlink()
    rows = pa.concat_tables(map(_read_ids, files))
    if not len(rows):
        return [], []
    shape = (len(rows), len(near_duplicates.REGIONS), near_duplicates.WIDTH)
    descriptors = np.memmap(scratch / "all.descriptors", np.uint8, "r", shape=shape)
    sizes = [pc.sum(pc.equal(rows["split"], split)).as_py() for split in sorted({file.split for file in files})]
    splits = [range(*bounds) for bounds in pairwise(accumulate(sizes, initial=0))]
    first = pc.list_element(rows["products"], 0).to_numpy()
    pairs = near_duplicates.find_near_duplicates(descriptors, scratch / "all.thumbnails", splits, first, apply)
    leaks, false_negatives = dict[str, None](), dict[str, None]()  # sets in order
    for a, b in pairs.tolist():
        one, two = (rows.slice(row, 1).to_pylist()[0] for row in (a, b))
        names = " and ".join(f"{row['split']} {row['kind']} {row['id']}" for row in (one, two))
        if one["split"] != two["split"]:
            leaks[names] = None
        elif not {*one["products"]} & {*two["products"]}:
            false_negatives[names] = None
    return list(leaks), list(false_negatives)


def _read_ids(file: RecordFile) -> pa.Table:
    with open_parquet(file.target) as parquet:
        return parquet.read(_SCHEMA.names[:-1])


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
    lines += [f"  {example}" for example in overlap.examples]
    lines.append(f"pairs of items with near-duplicate images in different splits: {len(overlap.leaks)}")
    lines += [f"  {example}" for example in overlap.leaks[:MAX_EXAMPLES]]
    count = len(overlap.false_negatives)
    lines.append(f"pairs of items with near-duplicate images, of different products in one split: {count}")
    return "\n".join([*lines, *(f"  {example}" for example in overlap.false_negatives[:MAX_EXAMPLES])])
