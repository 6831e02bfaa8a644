"""Joins and orders the rows of a split into a catalog's files, out of core: DuckDB sorts, Arrow makes the lists.

No `list()` over all frames: DuckDB holds such lists in memory. Rows are sorted externally instead, and what comes
in order is cut into lists a row group at a time.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.catalog import files as catalog_files
from data_prep.catalog.files import ITEM_SCHEMA, PRODUCT_SCHEMA, parquet_path, write_batches
from data_prep.catalog.lines import Reason
from data_prep.catalog.ordered_rows import OrderedRows, first_of_each, lists
from data_prep.catalog.rejects import Rejects
from data_prep.common.domains import DOMAINS
from data_prep.common.files import plain_links


@dataclasses.dataclass(frozen=True)
class Source:
    """Rows of one kind, in any order, and where those that are left out are noted.

    `feed` makes them the table `source` of a connection. Its columns are `product_id, item_id` for pairs,
    `item_id, text` for texts, `item_id, time, name` for frames (pages may lack `time`), each with `line`: where two
    rows contradict one another, the smaller line wins.
    """

    feed: Callable[[duckdb.DuckDBPyConnection], object]
    rejects: Rejects


@dataclasses.dataclass(frozen=True)
class DomainSources:
    """All rows of a domain in one split."""

    pairs: Source
    texts: Source
    frames: Source

    @property
    def rejects(self) -> tuple[Rejects, ...]:
        """What is noted of the three, without repetition where they are one file."""
        return tuple(dict.fromkeys(source.rejects for source in (self.pairs, self.texts, self.frames)))


@dataclasses.dataclass
class Counts:
    """What a domain's file holds."""

    items: int = 0
    texts: int = 0
    frames: int = 0
    items_without_frames: int = 0
    items_of_several_products: int = 0


def write_split(
    con: duckdb.DuckDBPyConnection,
    folder: Path,
    split: str,
    sources: Mapping[str, DomainSources],
    *,
    max_rejected: float,
    report: Callable[[str], None],
) -> dict[str, dict[str, int]]:
    """Writes the four files of a split.

    Args:
      con: a database with room for the pairs; its memory limit is what sorting keeps to.
      folder: the catalog.
      split: name of the split.
      sources: domain → its rows.
      max_rejected: the fraction of a file's lines that may be broken.
      report: takes lines of progress.

    Returns:
      domain → its counts, and "product" → {"products": …}.

    Raises:
      CatalogError: too many broken lines in a file, or a split without products.
    """
    counts = {}
    for domain in DOMAINS:
        domain_counts = _write_domain(con, folder, split, domain, sources[domain], max_rejected, report)
        counts[domain] = dataclasses.asdict(domain_counts)
    products = _write_products(con, parquet_path(folder, split, "product"))
    if not products:
        raise catalog_files.CatalogError(f"split {split!r}: no products, empty pair files")
    return counts | {"product": {"products": products}}


def _write_domain(
    con: duckdb.DuckDBPyConnection,
    folder: Path,
    split: str,
    domain: str,
    sources: DomainSources,
    max_rejected: float,
    report: Callable[[str], None],
) -> Counts:
    count = _number_items(con, domain, sources.pairs)
    sources.pairs.rejects.check(max_rejected)
    pairs = _staged(
        con,
        f"SELECT row, item_id, product_id, line FROM pairs_{domain} JOIN items_{domain} USING (item_id) "
        "ORDER BY row, product_id, line",
        folder / "pairs.staged",
    )
    cursor, query = _ordered(con, domain, sources.texts, count, ("text",), by=("line",))
    texts = _staged(cursor, query, folder / "texts.staged")
    sources.texts.rejects.check(max_rejected)
    cursor, query = _ordered(con, domain, sources.frames, count, ("time", "name"), by=("time", "name", "line"))
    frames = _streamed(cursor, query)
    sources.frames.rejects.check(max_rejected)
    counts = Counts()
    batches = _item_batches(count, pairs, texts, frames, sources, counts)
    write_batches(parquet_path(folder, split, domain), ITEM_SCHEMA, batches)
    for rows, source in ((texts, sources.texts), (frames, sources.frames)):
        for batch in rows.rest():
            source.rejects.add_lines(Reason.NO_PAIR, batch.column("line").to_numpy())
    sources.texts.rejects.check(max_rejected)  # once more: by now contradictions are known
    for path in folder.glob("*.staged"):
        path.unlink()
    report(f"{split} {domain}: {counts.items:,} items, {counts.frames:,} frames")
    return counts


def _number_items(con: duckdb.DuckDBPyConnection, domain: str, pairs: Source) -> int:
    """Makes the tables `pairs_<domain>`, and `items_<domain>` with every item's row; returns the number of items."""
    cursor = con.cursor()  # what is named `source` is its own
    pairs.feed(cursor)
    cursor.execute(f"CREATE OR REPLACE TABLE pairs_{domain} AS SELECT product_id, item_id, line FROM source")
    con.execute(
        f"CREATE OR REPLACE TABLE items_{domain} AS "
        "SELECT item_id, row_number() OVER (ORDER BY first, item_id) - 1 AS row "
        f"FROM (SELECT item_id, min(product_id) AS first FROM pairs_{domain} GROUP BY item_id)"
    )
    [(count,)] = con.execute(f"SELECT count(*) FROM items_{domain}").fetchall()
    return count


def _ordered(
    con: duckdb.DuckDBPyConnection,
    domain: str,
    source: Source,
    count: int,
    columns: tuple[str, ...],
    by: tuple[str, ...],
) -> tuple[duckdb.DuckDBPyConnection, str]:
    """Returns a cursor and a query of a source's rows with their items' rows, in order; `count` is that of no item."""
    cursor = con.cursor()  # of its own: another query on it would end this one
    source.feed(cursor)
    given = set(cursor.table("source").columns)
    chosen = ", ".join(column if column in given else f"0::BIGINT AS {column}" for column in columns)
    query = (
        f"SELECT coalesce(items.row, {count}) AS place, {chosen}, line "
        f"FROM source LEFT JOIN items_{domain} AS items USING (item_id)"
    )
    return cursor, f"SELECT place AS row, * EXCLUDE (place) FROM ({query}) ORDER BY place, {', '.join(by)}"


def _streamed(con: duckdb.DuckDBPyConnection, query: str) -> OrderedRows:
    """Returns a query's rows as DuckDB gives them out: until the last one it holds on to them."""
    reader = con.sql(query).to_arrow_reader()
    return OrderedRows(reader.schema, reader)


def _staged(con: duckdb.DuckDBPyConnection, query: str, path: Path) -> OrderedRows:
    """Returns a query's rows from a file, so that the next sort has all the memory."""
    with plain_links() as link:
        con.execute(f"COPY ({query}) TO '{link(path.parent)}/{path.name}' (FORMAT parquet)")
    file = pq.ParquetFile(path.absolute())
    return OrderedRows(file.schema_arrow, file.iter_batches())


def _item_batches(
    count: int, pairs: OrderedRows, texts: OrderedRows, frames: OrderedRows, sources: DomainSources, counts: Counts
) -> Iterator[pa.RecordBatch]:
    """Yields row groups of items, noting what was said twice, and adds to `counts`."""
    for start in range(0, count, catalog_files.GROUP_ROWS):
        stop = min(start + catalog_files.GROUP_ROWS, count)
        some_pairs = _distinct(pairs.until(stop), ("row", "product_id"), sources.pairs.rejects)
        some_texts = _first_texts(texts.until(stop), sources.texts.rejects)
        some_frames = _distinct(frames.until(stop), ("row", "time", "name"), sources.frames.rejects)
        firsts = some_pairs.filter(pa.array(first_of_each(some_pairs, ("row",))))
        columns = {
            "item_id": firsts.column("item_id"),
            "text": pc.binary_join(lists(some_texts, "text", start, stop), ""),  # of one text or none
            "product_ids": lists(some_pairs, "product_id", start, stop),
            "frame_names": lists(some_frames, "name", start, stop),
            "frame_times": lists(some_frames, "time", start, stop),
        }
        without = pc.equal(pc.list_value_length(columns["frame_names"]), 0)
        sources.pairs.rejects.add_lines(Reason.NO_FRAMES, firsts.column("line").filter(without).to_numpy())
        counts.items += stop - start
        counts.texts += pc.sum(pc.not_equal(columns["text"], "")).as_py()
        counts.frames += some_frames.num_rows
        counts.items_without_frames += pc.sum(without).as_py()
        counts.items_of_several_products += pc.sum(pc.greater(pc.list_value_length(columns["product_ids"]), 1)).as_py()
        yield pa.RecordBatch.from_arrays([columns[field.name] for field in ITEM_SCHEMA], schema=ITEM_SCHEMA)


def _distinct(batch: pa.RecordBatch, columns: tuple[str, ...], rejects: Rejects) -> pa.RecordBatch:
    """Returns the batch without rows that repeat the one before."""
    first = first_of_each(batch, columns)
    if first.all():
        return batch
    rejects.add_lines(Reason.DUPLICATE, batch.column("line").to_numpy()[~first])
    return batch.filter(pa.array(first))


def _first_texts(batch: pa.RecordBatch, rejects: Rejects) -> pa.RecordBatch:
    """Returns the first text of each row; the others are either the same or contradict it."""
    first = first_of_each(batch, ("row",))
    if first.all():
        return batch
    winner = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    texts, line = batch.column("text"), batch.column("line").to_numpy()
    same = pc.equal(texts, texts.take(pa.array(winner))).to_numpy(zero_copy_only=False)
    rejects.add_lines(Reason.DUPLICATE, line[~first & same])
    rejects.add_lines(Reason.CONFLICT, line[~same])
    return batch.filter(pa.array(first))


def _write_products(con: duckdb.DuckDBPyConnection, path: Path) -> int:
    """Writes the products and their rows from the domains' tables; returns the number of products."""
    every = " UNION ".join(f"SELECT product_id FROM pairs_{domain}" for domain in DOMAINS)
    con.execute(
        "CREATE OR REPLACE TABLE products AS "
        f"SELECT product_id, row_number() OVER (ORDER BY product_id) - 1 AS row FROM ({every})"
    )
    ids = _streamed(con.cursor(), "SELECT row, product_id FROM products ORDER BY row")
    rows = {
        domain: _streamed(
            con.cursor(),
            "SELECT DISTINCT products.row AS row, items.row AS item_row "
            f"FROM pairs_{domain} JOIN items_{domain} AS items USING (item_id) JOIN products USING (product_id) "
            "ORDER BY 1, 2",
        )
        for domain in DOMAINS
    }
    [(count,)] = con.execute("SELECT count(*) FROM products").fetchall()

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, count, catalog_files.GROUP_ROWS):
            stop = min(start + catalog_files.GROUP_ROWS, count)
            columns = [lists(rows[domain].until(stop), "item_row", start, stop) for domain in DOMAINS]
            arrays = [ids.until(stop).column("product_id"), *columns]
            yield pa.RecordBatch.from_arrays(arrays, schema=PRODUCT_SCHEMA)

    write_batches(path, PRODUCT_SCHEMA, batches())
    return count
