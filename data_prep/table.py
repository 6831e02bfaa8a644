"""Makes a catalog from a table of one's own products.

    python -m data_prep.table --table=items.csv --images=DIR --out=DIR [--test_fraction=0.1] [--max_rejected=0.01]

A row is an item, with `images` as a list or as names between "|", or an image, with `image` and perhaps `time`. Columns
`product`, `domain` (page, video or live), `item`; perhaps `text` and `split` (train or test). An item of several
products has a row for each.
"""

import hashlib
import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from absl import app, flags

from data_prep.catalog import make as making
from data_prep.catalog.assembly import DomainSources, Source
from data_prep.catalog.files import Catalog, CatalogError
from data_prep.catalog.lines import PRODUCT_MAX, Reason
from data_prep.catalog.rejects import Rejects
from data_prep.catalog.summary import format_summary
from data_prep.catalog.table_rows import SPLITS, read_table
from data_prep.catalog.text_blocks import START_BYTES
from data_prep.common.domains import DOMAINS

FLAGS = flags.FLAGS
IDS_FILE = "ids.parquet"
TEST_FRACTION = 0.1
_BATCH = 16384
_LOOKED_FOR = 1000  # names of which one at least must be in the images folder

_ROWS = pa.schema(
    [*((name, pa.string()) for name in ("split", "domain", "product", "item", "text")), ("line", pa.int64())]
)
_IMAGES = pa.schema(
    [
        *((name, pa.string()) for name in ("split", "domain", "item", "name")),
        *((name, pa.int64()) for name in ("time", "position", "line")),
    ]
)
# Whole numbers, as one writes them, stay what they are; where one id of a kind is none, all of them are numbered. So
# are products where a number is too large, as those of bar codes are.
_IDS = f"""
CREATE TABLE ids AS
WITH every AS (
    SELECT DISTINCT 'product' AS kind, product AS original FROM rows UNION ALL SELECT DISTINCT domain, item FROM rows
), kinds AS (
    SELECT kind, bool_and(
        regexp_full_match(original, '0|[1-9][0-9]{{0,17}}')
        AND (kind <> 'product' OR TRY_CAST(original AS BIGINT) <= {PRODUCT_MAX})
    ) AS whole FROM every GROUP BY kind
)
SELECT kind, original, whole,
    CASE WHEN whole THEN TRY_CAST(original AS BIGINT)
    ELSE row_number() OVER (PARTITION BY kind ORDER BY original) - 1 END AS id
FROM every JOIN kinds USING (kind)
"""
# An image that several rows name counts once. Without times, images come in the order in which the table names them.
_FRAMES = """
SELECT id AS item_id, name, line,
    CASE WHEN domain = 'page' THEN 0
    ELSE coalesce(time, row_number() OVER (PARTITION BY id ORDER BY line, position) - 1) END AS time
FROM (
    SELECT domain, item, name, time, min(line) AS line, arg_min(position, (line, position)) AS position
    FROM images WHERE split = '{split}' AND domain = '{domain}' GROUP BY ALL
) JOIN ids ON kind = domain AND original = item
"""
_PAIRS = """
SELECT products.id AS product_id, items.id AS item_id, min(line) AS line FROM rows
JOIN ids AS products ON products.kind = 'product' AND products.original = product
JOIN ids AS items ON items.kind = domain AND items.original = item
WHERE split = '{split}' AND domain = '{domain}' GROUP BY ALL
"""
_TEXTS = """
SELECT id AS item_id, text, min(line) AS line FROM rows JOIN ids ON kind = domain AND original = item
WHERE split = '{split}' AND domain = '{domain}' AND text <> '' GROUP BY ALL
"""


def make_catalog(
    table: Path,
    images: Path,
    out: Path,
    *,
    test_fraction: float = TEST_FRACTION,
    memory_limit: str = making.MEMORY_LIMIT,
    max_rejected: float = making.MAX_REJECTED,
    report: Callable[[str], None] = print,
) -> Catalog:
    """Makes the catalog of a table, or returns the finished one.

    Args:
      table: *.parquet, *.csv or *.jsonl.
      images: folder in which the names of images are paths.
      out: folder of the catalog. Its ids.parquet (kind, id, original) says which numbers stand for which ids, for the
        kinds (product, page, video, live) whose ids are not all whole numbers, and small ones for products.
      test_fraction: share of the products that go to the test split, by hash, where the table says no split.
      memory_limit: DuckDB's, e.g. "3GB".
      max_rejected: the fraction of rows that may be broken.
      report: takes lines of progress.

    Raises:
      CatalogError: no such table, columns or images; see also `making`.
    """
    if not table.is_file():
        raise CatalogError(f"table {table.absolute()} not found")
    if not images.is_dir():
        raise CatalogError(f"images folder {images.absolute()} not found")
    with table.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    source = {"table": content, "test_fraction": test_fraction}
    if catalog := making.finished_catalog(out, source):
        report(f"{out} is the finished catalog of {table}: nothing to do")
        return catalog

    def prepare(con: duckdb.DuckDBPyConnection, folder: Path) -> tuple[Rejects, ...]:
        rejects = Rejects("", table.name, partial(_starts, table))
        _load(con, table, test_fraction, rejects)
        _look_for_images(con, images)
        con.execute(_IDS)
        path = str(folder / IDS_FILE).replace("'", "''")
        con.execute(
            f"COPY (SELECT kind, id, original FROM ids WHERE NOT whole ORDER BY kind, id) TO '{path}' (FORMAT parquet)"
        )
        report(f"{table.name}: {rejects.lines:,} rows")
        return (rejects,)

    return making.make(
        out,
        source,
        SPLITS,
        partial(_sources, table),
        memory_limit=memory_limit,
        max_rejected=max_rejected,
        report=report,
        prepare=prepare,
    )


def _load(con: duckdb.DuckDBPyConnection, table: Path, test_fraction: float, rejects: Rejects) -> None:
    """Reads the table into the tables `rows` and `images`."""
    for name, schema in (("rows", _ROWS), ("images", _IMAGES)):
        con.register("none_yet", schema.empty_table())
        con.execute(f"CREATE TABLE {name} AS SELECT * FROM none_yet")
    by_hash = False
    numbered = read_table(table)
    while batch := list(itertools.islice(numbered, _BATCH)):
        rows, images = [], []
        for line, values, row in batch:
            if isinstance(row, Reason):
                rejects.add(line, row, _start(values))
                continue
            by_hash |= not row.split
            split = row.split or _split(row.product, test_fraction)
            rows.append((split, row.domain, row.product, row.item, row.text, line))
            images += [(split, row.domain, row.item, *image, i, line) for i, image in enumerate(row.images)]
        rejects.lines += len(batch)
        _insert(con, "rows", _ROWS, rows)
        _insert(con, "images", _IMAGES, images)
    if by_hash:
        _leave_to_test(con, rejects)


def _split(product: str, test_fraction: float) -> str:
    """Returns a product's split: the same in every table, whatever other products it has."""
    drawn = int.from_bytes(hashlib.sha256(product.encode()).digest()[:8], "big") / 2**64
    return "test" if drawn < test_fraction else "train"


def _insert(con: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema, rows: list[tuple]) -> None:
    if rows:
        columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)]
        con.register("batch", pa.Table.from_arrays(columns, schema=schema))
        con.execute(f"INSERT INTO {name} SELECT * FROM batch")


def _leave_to_test(con: duckdb.DuckDBPyConnection, rejects: Rejects) -> None:
    """Takes items out of training that also show a product of the test split, which would have been seen."""
    shared = "split = 'train' AND (domain, item) IN (SELECT (domain, item) FROM rows WHERE split = 'test')"
    lines = con.execute(f"SELECT line FROM rows WHERE {shared} ORDER BY line").fetchnumpy()["line"]
    rejects.add_lines(Reason.OTHER_SPLIT, lines)
    con.execute(f"DELETE FROM images WHERE {shared}")
    con.execute(f"DELETE FROM rows WHERE {shared}")


def _look_for_images(con: duckdb.DuckDBPyConnection, images: Path) -> None:
    names = [name for (name,) in con.execute(f"SELECT name FROM images LIMIT {_LOOKED_FOR}").fetchall()]
    if names and not any((images / name).is_file() for name in names):
        raise CatalogError(
            f"none of {len(names)} images of the table is in {images.absolute()}, e.g. {names[0]!r}: "
            "names are paths inside --images"
        )


def _sources(table: Path, con: duckdb.DuckDBPyConnection, split: str) -> dict[str, DomainSources] | None:
    rejects = Rejects(split, table.name, partial(_starts, table))
    [(rejects.lines,)] = con.execute(f"SELECT count(*) FROM rows WHERE split = '{split}'").fetchall()
    if not rejects.lines:
        return None

    def source(query: str, domain: str) -> Source:
        view = f"CREATE TEMP VIEW source AS {query.format(split=split, domain=domain)}"
        return Source(lambda con: con.execute(view), rejects)

    return {
        domain: DomainSources(source(_PAIRS, domain), source(_TEXTS, domain), source(_FRAMES, domain))
        for domain in DOMAINS
    }


def _starts(table: Path, numbers: np.ndarray) -> dict[int, str]:
    wanted = set(numbers.tolist())
    return {line: _start(values) for line, values, _ in read_table(table) if line in wanted}


def _start(values: object) -> str:
    return (json.dumps(values, ensure_ascii=True, default=str) if isinstance(values, dict) else "")[:START_BYTES]


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    flags.DEFINE_string("table", None, "The table: *.parquet, *.csv or *.jsonl.", required=True)
    flags.DEFINE_string("images", None, "Folder in which the names of images are paths.", required=True)
    flags.DEFINE_string("out", None, "Folder of the catalog.", required=True)
    flags.DEFINE_float("test_fraction", TEST_FRACTION, "Share of products to test, where the table has no split.", 0, 1)
    flags.DEFINE_string("memory_limit", making.MEMORY_LIMIT, "Memory for sorting; about 1 GB more is used beside it.")
    flags.DEFINE_float("max_rejected", making.MAX_REJECTED, "Fraction of rows that may be broken.", 0, 1)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        catalog = make_catalog(
            Path(FLAGS.table),
            Path(FLAGS.images),
            Path(FLAGS.out),
            test_fraction=FLAGS.test_fraction,
            memory_limit=FLAGS.memory_limit,
            max_rejected=FLAGS.max_rejected,
            report=partial(print, flush=True),
        )
    except (CatalogError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(format_summary(catalog.summary))
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(main)
