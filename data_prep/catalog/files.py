"""The files of a catalog: a split's items by domain in row order, and its products with their rows, as Parquet.

    CATALOG/summary.json    version, fingerprint and counts; written last: a folder without it is unfinished
    CATALOG/rejected.jsonl  lines that were left out
    CATALOG/<split>/page.parquet, video.parquet, live.parquet, product.parquet

Row i of a domain's file is the domain's item i, ordered by (smallest product id, item id).
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.common.domains import DOMAINS

VERSION = 1  # raise when the files change in form or meaning
SUMMARY_FILE = "summary.json"
REJECTED_FILE = "rejected.jsonl"
GROUP_ROWS = 8192  # rows a row group: what a reader of a few rows decodes, and what is held in memory at once
_READ_ROWS = 1024

ITEM_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),  # "" is none
        pa.field("product_ids", pa.list_(pa.int64()), nullable=False),  # ascending, at least one
        pa.field("frame_names", pa.list_(pa.string()), nullable=False),  # by (time, name), as the times
        pa.field("frame_times", pa.list_(pa.int64()), nullable=False),
    ]
)
PRODUCT_SCHEMA = pa.schema(
    [
        pa.field("product_id", pa.int64(), nullable=False),
        *(pa.field(f"{domain}_rows", pa.list_(pa.int64()), nullable=False) for domain in DOMAINS),
    ]
)


class CatalogError(ValueError):
    """A catalog that cannot be read or made; the message says what to change."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One image of an item: `time` (frame number or ms; 0 for pages) orders it, `name` is its file name."""

    time: int
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One page, video or live clip. `text` is "" where it is missing; products and frames are sorted."""

    item_id: int
    text: str
    product_ids: tuple[int, ...]
    frames: tuple[Frame, ...]


@dataclasses.dataclass(frozen=True)
class Product:
    """A product and, for each domain, the rows of its items, ascending."""

    product_id: int
    rows: Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Catalog:
    """A finished catalog. All but `path` raise CatalogError where it is unfinished or of another version."""

    folder: Path

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """What summary.json says."""
        path = Path(self.folder) / SUMMARY_FILE
        if not path.is_file():
            raise CatalogError(
                f"no {SUMMARY_FILE} in {path.parent.absolute()}: no catalog, or one that was not finished; "
                "make it with ./run.sh catalog, or ./run.sh table"
            )
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["version"] != VERSION:
            raise CatalogError(
                f"{path} is of version {summary['version']}, wanted {VERSION}: remove the folder and make it again"
            )
        return summary

    @property
    def fingerprint(self) -> str:
        """Hex digest of what the catalog holds."""
        return self.summary["fingerprint"]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.summary["splits"])

    def path(self, split: str, name: str) -> Path:
        """Returns the path of a domain's items, or of the products where `name` is "product"."""
        return parquet_path(Path(self.folder), split, name)

    def count(self, split: str, name: str) -> int:
        """Returns the number of a domain's items, or of the products where `name` is "product"."""
        return self._open(split, name).metadata.num_rows

    def items(self, split: str, domain: str, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """Yields the items of rows [start, stop), a row group in memory at a time; None is the end."""
        for batch in self._batches(split, domain, start, stop):
            yield from _items(batch)

    def products(self, split: str) -> Iterator[Product]:
        """Yields the products in the order of their ids."""
        for batch in self._batches(split, "product", 0, None):
            columns = [batch.column(0).to_pylist(), *(_lists(batch, f"{domain}_rows") for domain in DOMAINS)]
            for product_id, *rows in zip(*columns, strict=True):
                yield Product(product_id, dict(zip(DOMAINS, rows, strict=True)))

    def _open(self, split: str, name: str) -> pq.ParquetFile:
        if split not in self.splits:
            raise CatalogError(f"{self.folder} has no split {split!r}: it has {', '.join(self.splits)}")
        return pq.ParquetFile(self.path(split, name))

    def _batches(self, split: str, name: str, start: int, stop: int | None) -> Iterator[pa.RecordBatch]:
        with self._open(split, name) as file:
            stop = file.metadata.num_rows if stop is None else stop
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            bounds = list(itertools.accumulate(groups, initial=0))
            # One iterator over the groups in question, not one a group: opening costs more than a batch.
            wanted = [i for i in range(len(groups)) if bounds[i] < stop and bounds[i + 1] > start]
            if not wanted:
                return
            row = bounds[wanted[0]]
            for batch in file.iter_batches(_READ_ROWS, row_groups=wanted):
                first, last = max(start - row, 0), min(stop - row, batch.num_rows)
                if first < last:
                    yield batch.slice(first, last - first)
                row += batch.num_rows


def parquet_path(folder: Path, split: str, name: str) -> Path:
    """Returns where a catalog in `folder` has a domain's items, or the products where `name` is "product"."""
    return (folder / split / f"{name}.parquet").absolute()  # pyarrow expands "~"


def _items(batch: pa.RecordBatch) -> Iterator[Item]:
    columns = (
        batch.column("item_id").to_pylist(),
        batch.column("text").to_pylist(),
        _lists(batch, "product_ids"),
        _lists(batch, "frame_times"),
        _lists(batch, "frame_names"),
    )
    for item_id, text, products, times, names in zip(*columns, strict=True):
        yield Item(item_id, text, products, tuple(map(Frame, times, names)))


def _lists(batch: pa.RecordBatch, name: str) -> Iterator[tuple]:
    """Yields the tuples of a column of lists; converted flat, in a fifth of the time of `to_pylist` on lists."""
    column = batch.column(name)
    values = column.flatten().to_pylist()
    ends = itertools.accumulate(column.value_lengths().to_pylist(), initial=0)
    for start, stop in itertools.pairwise(ends):
        yield tuple(values[start:stop])


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Writes a domain's items in their order; the file appears when it is complete."""
    rows = (
        (
            item.item_id,
            item.text,
            item.product_ids,
            [frame.name for frame in item.frames],
            [frame.time for frame in item.frames],
        )
        for item in items
    )
    _write_rows(path, ITEM_SCHEMA, rows)


def write_products(path: Path, products: Iterable[Product]) -> None:
    """Writes the products in their order; the file appears when it is complete."""
    rows = ((product.product_id, *(product.rows[domain] for domain in DOMAINS)) for product in products)
    _write_rows(path, PRODUCT_SCHEMA, rows)


def _write_rows(path: Path, schema: pa.Schema, rows: Iterable[tuple]) -> None:
    rows = iter(rows)
    groups = iter(lambda: list(itertools.islice(rows, GROUP_ROWS)), [])
    arrays = (
        [pa.array(column, field.type) for column, field in zip(zip(*group, strict=True), schema, strict=True)]
        for group in groups
    )
    write_batches(path, schema, (pa.RecordBatch.from_arrays(columns, schema=schema) for columns in arrays))


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes record batches as a row group each; the file appears when it is complete. Same batches, same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
    unfinished.rename(path)


def write_summary(folder: Path, splits: Mapping[str, Mapping[str, Any]], **more: Any) -> None:
    """Writes summary.json, which makes the catalog in `folder` a finished one.

    Args:
      folder: the catalog, with the files of all splits.
      splits: split → its counts.
      **more: further entries of the summary.
    """
    summary = {"version": VERSION, "fingerprint": _fingerprint(folder, splits), **more, "splits": splits}
    path = folder / SUMMARY_FILE
    unfinished = path.with_name(f"{path.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(summary, file, ensure_ascii=False, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)


def _fingerprint(folder: Path, splits: Iterable[str]) -> str:
    digest = hashlib.sha256(f"catalog {VERSION}\n".encode())
    for split in splits:
        for name in (*DOMAINS, "product"):
            with parquet_path(folder, split, name).open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{split} {name} {content}\n".encode())
    return digest.hexdigest()


def write_catalog(folder: Path, splits: Mapping[str, Mapping[str, Iterable[Item]]]) -> Catalog:
    """Writes a small catalog of items in memory: split → domain → items, which it puts in row order."""
    for split, domains in splits.items():
        products: dict[int, dict[str, list[int]]] = {}
        for domain in DOMAINS:
            items = sorted(domains[domain], key=lambda item: (item.product_ids[0], item.item_id))
            write_items(parquet_path(folder, split, domain), items)
            for row, item in enumerate(items):
                for product_id in item.product_ids:
                    products.setdefault(product_id, {name: [] for name in DOMAINS})[domain].append(row)
        rows = (Product(product_id, products[product_id]) for product_id in sorted(products))
        write_products(parquet_path(folder, split, "product"), rows)
    write_summary(folder, {split: {} for split in splits})
    return Catalog(folder)
