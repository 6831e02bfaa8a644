"""Joins and orders the rows of a split and writes its Parquet files, out of core.

DuckDB sorts, which works out of core, and Arrow builds the lists from the ordered rows, a row group at a time. DuckDB's
own `list()` would hold all lists in memory.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.catalog.files import GROUP_ROWS, ITEM_SCHEMA, PAYLOAD_SCHEMA, Catalog, product_schema, write_batches
from data_prep.catalog.rejected_lines import Reason, RejectedLines
from data_prep.common.files import plain_links


@dataclasses.dataclass(frozen=True)
class RowSource:
    """Rows of one kind, in any order.

    Attributes:
        load: Creates a table `source` of the rows in a connection. Its columns are `product_id, item_id` for pairs,
            `item_id, text` for texts and payloads, `item_id, name` and, if known, `time` and `position` (the order
            within a line) for frames, and `line`, a number. If rows contradict each other, the one with the smallest
            `line` wins.
        rejected: Collects the rows that are left out.
    """

    load: Callable[[duckdb.DuckDBPyConnection], object]
    rejected: RejectedLines


class DomainRows(NamedTuple):
    """All rows of a domain in one split."""

    pairs: RowSource
    texts: RowSource
    frames: RowSource
    payloads: RowSource | None = None  # for all domains or none


_COUNTS = """
SELECT count(*) AS items, count(*) FILTER (text <> '') AS texts, coalesce(sum(len(frame_names)), 0) AS frames,
    count(*) FILTER (len(frame_names) = 0) AS items_without_frames,
    count(*) FILTER (len(product_ids) > 1) AS items_of_several_products
FROM read_parquet('{path}')
"""


def write_split(
    con: duckdb.DuckDBPyConnection,
    folder: Path,
    split: str,
    sources: Mapping[str, DomainRows],
    domains: Mapping[str, str],
    report: Callable[[str], None],
) -> dict[str, dict[str, int]]:
    """Writes the Parquet files of a split from its rows by domain, and the kinds of all domains.

    Sorting keeps to the memory limit of `con`, which needs room for the pairs.

    Returns:
        Domain → its counts, and "product" → {"products": …}.
    """
    counts = {}
    for domain, kind in domains.items():
        counts[domain] = _write_domain(con, folder, split, domain, kind, sources[domain])
        report(f"{split} {domain}: {counts[domain]['items']:,} items, {counts[domain]['frames']:,} frames")
    products = _write_products(con, Catalog(folder).path(split, "product"), list(domains))
    if not products:
        raise ValueError(f"split {split!r} has no products: its pair files are empty")
    return counts | {"product": {"products": products}}


def _write_domain(
    con: duckdb.DuckDBPyConnection, folder: Path, split: str, domain: str, kind: str, sources: DomainRows
) -> dict[str, int]:
    count = _number_items(con, domain, sources.pairs)
    sources.pairs.rejected.check()
    pairs = _staged_rows(
        con,
        f"SELECT row, item_id, product_id, line FROM pairs_{domain} JOIN items_{domain} USING (item_id) "
        "ORDER BY row, product_id, line",
        folder / "pairs.staged",
    )

    def stage_texts(source: RowSource, name: str) -> OrderedRows:
        return _staged_rows(*_ordering(con, domain, source, count, ("text",), by="line"), folder / f"{name}.staged")

    texts = stage_texts(sources.texts, "texts")
    payloads = stage_texts(sources.payloads, "payloads") if sources.payloads else None
    sources.texts.rejected.check()
    frames = _streamed_rows(
        *_ordering(con, domain, sources.frames, count, ("time", "name", "position"), by="time, name, line")
    )
    sources.frames.rejected.check()
    path = Catalog(folder).path(split, domain)
    in_line_order = kind == "image"  # the main picture comes first; frames at the same time go by name
    schema = PAYLOAD_SCHEMA if payloads else ITEM_SCHEMA
    write_batches(path, schema, _item_batches(count, pairs, texts, frames, payloads, sources, in_line_order))
    for rows, source in ((texts, sources.texts), (frames, sources.frames)):
        for batch in rows.rest():
            source.rejected.add(Reason.NO_PAIR, batch.column("line").to_numpy())
    sources.texts.rejected.check()  # again, now that contradictions are known
    for staged in folder.glob("*.staged"):
        staged.unlink()
    with plain_links() as link:
        counts = con.sql(_COUNTS.format(path=link(path)))
        return dict(zip(counts.columns, map(int, counts.fetchall()[0]), strict=True))


def _number_items(con: duckdb.DuckDBPyConnection, domain: str, pairs: RowSource) -> int:
    """Creates the tables `pairs_<domain>` and `items_<domain>` (item_id, row); returns the number of items."""
    cursor = con.cursor()  # each cursor has its own `source`
    pairs.load(cursor)
    cursor.execute(f"CREATE OR REPLACE TABLE pairs_{domain} AS SELECT product_id, item_id, line FROM source")
    con.execute(
        f"CREATE OR REPLACE TABLE items_{domain} AS "
        "SELECT item_id, row_number() OVER (ORDER BY first, item_id) - 1 AS row "
        f"FROM (SELECT item_id, min(product_id) AS first FROM pairs_{domain} GROUP BY item_id)"
    )
    [(count,)] = con.execute(f"SELECT count(*) FROM items_{domain}").fetchall()
    return count


def _ordering(
    con: duckdb.DuckDBPyConnection, domain: str, source: RowSource, count: int, columns: tuple[str, ...], by: str
) -> tuple[duckdb.DuckDBPyConnection, str]:
    """Returns a cursor and its query for a source's rows ordered by item. Rows without an item have row `count`."""
    cursor = con.cursor()  # a second query on a cursor would end the first
    source.load(cursor)
    given = set(cursor.table("source").columns)
    chosen = ", ".join(column if column in given else f"0::BIGINT AS {column}" for column in columns)
    query = (
        f"SELECT coalesce(items.row, {count}) AS place, {chosen}, line "
        f"FROM source LEFT JOIN items_{domain} AS items USING (item_id)"
    )
    return cursor, f"SELECT place AS row, * EXCLUDE (place) FROM ({query}) ORDER BY place, {by}"


class OrderedRows:
    """Record batches ordered by an int64 column `row`, taken a range of rows at a time."""

    def __init__(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]):
        """Reads the first batch."""
        self._schema, self._batches = schema, iter(batches)
        self._held: pa.RecordBatch | None = next(self._batches, None)
        self._start = 0

    def take_until(self, stop: int) -> pa.RecordBatch:
        """Takes the remaining rows below `stop`, as one batch."""
        parts = []
        while self._held is not None:
            cut = int(np.searchsorted(self._held.column("row").to_numpy(), stop))
            parts.append(self._held.slice(0, cut))
            if cut < self._held.num_rows:
                self._held = self._held.slice(cut)
                break
            self._held = next(self._batches, None)
        batch = pa.concat_batches(parts) if parts else pa.RecordBatch.from_pylist([], self._schema)
        rows = batch.column("row").to_numpy()
        assert (np.diff(rows, prepend=self._start) >= 0).all()  # rows out of order would silently split items
        self._start = stop
        return batch

    def rest(self) -> Iterator[pa.RecordBatch]:
        """Yields the remaining rows."""
        if self._held is not None:
            yield self._held
            yield from self._batches


def _streamed_rows(con: duckdb.DuckDBPyConnection, query: str) -> OrderedRows:
    """Returns the rows of a query as DuckDB produces them; it keeps its memory until the last one."""
    reader = con.sql(query).to_arrow_reader()
    return OrderedRows(reader.schema, reader)


def _staged_rows(con: duckdb.DuckDBPyConnection, query: str, path: Path) -> OrderedRows:
    """Returns the rows of a query from a file, which leaves all memory to the next sort."""
    write_query(con, query, path)
    file = pq.ParquetFile(path.absolute())  # pyarrow expands "~"
    return OrderedRows(file.schema_arrow, file.iter_batches())


def write_query(con: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Writes the rows of a query to a Parquet file."""
    with plain_links() as link:
        con.execute(f"COPY ({query}) TO '{link(path.parent)}/{path.name}' (FORMAT parquet)")


def _item_batches(
    count: int,
    pairs: OrderedRows,
    texts: OrderedRows,
    frames: OrderedRows,
    payloads: OrderedRows | None,
    sources: DomainRows,
    in_line_order: bool,
) -> Iterator[pa.RecordBatch]:
    """Yields row groups of items, and notes duplicates, contradictions and items without frames."""
    for start in range(0, count, GROUP_ROWS):
        stop = min(start + GROUP_ROWS, count)
        some_pairs = _drop_repeated(pairs.take_until(stop), ("row", "product_id"), sources.pairs.rejected)
        some_texts = _drop_repeated(texts.take_until(stop), ("row",), sources.texts.rejected, value="text")
        some_frames = _drop_repeated(frames.take_until(stop), ("row", "time", "name"), sources.frames.rejected)
        if in_line_order:
            keys = [some_frames.column(name).to_numpy() for name in ("position", "line", "time", "row")]
            some_frames = some_frames.take(pa.array(np.lexsort(keys)))
        items = some_pairs.filter(pa.array(_is_first(some_pairs, ("row",))))
        columns = {
            "item_id": items.column("item_id"),
            "text": pc.binary_join(_lists(some_texts, "text", start, stop), ""),  # of one text or none
            "product_ids": _lists(some_pairs, "product_id", start, stop),
            "frame_names": _lists(some_frames, "name", start, stop),
            "frame_times": _lists(some_frames, "time", start, stop),
        }
        if payloads:
            columns["payload"] = pc.binary_join(_lists(payloads.take_until(stop), "text", start, stop), "")
        no_frames = pc.equal(pc.list_value_length(columns["frame_names"]), 0)
        sources.pairs.rejected.add(Reason.NO_FRAMES, items.column("line").filter(no_frames).to_numpy())
        schema = PAYLOAD_SCHEMA if payloads else ITEM_SCHEMA
        yield pa.RecordBatch.from_arrays([columns[field.name] for field in schema], schema=schema)


def _is_first(batch: pa.RecordBatch, columns: tuple[str, ...]) -> np.ndarray:
    """Returns a mask of the rows that differ from the one before in any of the columns, bool [rows]."""
    differs = np.zeros(batch.num_rows, bool)
    differs[:1] = True
    for name in columns:
        column = batch.column(name)
        differs[1:] |= pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return differs


def _drop_repeated(
    batch: pa.RecordBatch, key: tuple[str, ...], rejected: RejectedLines, *, value: str | None = None
) -> pa.RecordBatch:
    """Keeps the first of the rows that share a key. The others are duplicates, or conflicts if `value` differs."""
    first = _is_first(batch, key)
    if first.all():
        return batch
    lines, conflict = batch.column("line").to_numpy(), np.zeros(len(first), bool)
    if value:
        kept = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
        values = batch.column(value)
        conflict = pc.not_equal(values, values.take(pa.array(kept))).to_numpy(zero_copy_only=False)
    rejected.add(Reason.DUPLICATE, lines[~first & ~conflict])
    rejected.add(Reason.CONFLICT, lines[conflict])
    return batch.filter(pa.array(first))


def _lists(batch: pa.RecordBatch, name: str, start: int, stop: int) -> pa.ListArray:
    """Returns the list of values of each row in [start, stop)."""
    ends = np.searchsorted(batch.column("row").to_numpy(), np.arange(start, stop + 1))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), batch.column(name))


def _write_products(con: duckdb.DuckDBPyConnection, path: Path, domains: list[str]) -> int:
    """Writes the products and their rows in each domain; returns the number of products."""
    every = " UNION ".join(f"SELECT DISTINCT product_id FROM pairs_{domain}" for domain in domains)
    con.execute(
        "CREATE OR REPLACE TABLE products AS "
        f"SELECT product_id, row_number() OVER (ORDER BY product_id) - 1 AS row FROM ({every})"
    )
    ids = _streamed_rows(con.cursor(), "SELECT row, product_id FROM products ORDER BY row")
    item_rows = [
        _streamed_rows(
            con.cursor(),
            "SELECT DISTINCT products.row AS row, items.row AS item_row "
            f"FROM pairs_{domain} JOIN items_{domain} AS items USING (item_id) JOIN products USING (product_id) "
            "ORDER BY 1, 2",
        )
        for domain in domains
    ]
    [(count,)] = con.execute("SELECT count(*) FROM products").fetchall()

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, count, GROUP_ROWS):
            stop = min(start + GROUP_ROWS, count)
            columns = [_lists(rows.take_until(stop), "item_row", start, stop) for rows in item_rows]
            arrays = [ids.take_until(stop).column("product_id"), *columns]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    schema = product_schema(domains)
    write_batches(path, schema, batches())
    return count
