"""Writes catalogs of items in memory, for benchmarks and tests."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from data_prep.catalog import files
from data_prep.catalog.files import ITEM_SCHEMA, Catalog, Item, product_schema, write_batches, write_summary
from data_prep.common.domains import DOMAINS, ROPE_DOMAINS


def write_catalog(folder: Path, splits: Mapping[str, Mapping[str, Iterable[Item]]]) -> Catalog:
    """Writes a catalog of split → domain → items, in any order."""
    catalog = Catalog(folder)
    for split, domains in splits.items():
        products: dict[int, dict[str, list[int]]] = {}
        for domain in DOMAINS:
            items = sorted(domains[domain], key=lambda item: (item.product_ids[0], item.item_id))
            rows = [
                {
                    "item_id": item.item_id,
                    "text": item.text,
                    "product_ids": item.product_ids,
                    "frame_names": [frame.name for frame in item.frames],
                    "frame_times": [frame.time for frame in item.frames],
                }
                for item in items
            ]
            _write_rows(catalog.path(split, domain), ITEM_SCHEMA, rows)
            for row, item in enumerate(items):
                for product_id in item.product_ids:
                    product = products.setdefault(product_id, {f"{name}_rows": [] for name in DOMAINS})
                    product[f"{domain}_rows"].append(row)
        rows = [{"product_id": product_id, **products[product_id]} for product_id in sorted(products)]
        _write_rows(catalog.path(split, "product"), product_schema(DOMAINS), rows)
    write_summary(
        folder, {split: {"domains": {}, "files": {}} for split in splits}, domains=ROPE_DOMAINS, source={}, files={}
    )
    return catalog


def _write_rows(path: Path, schema: pa.Schema, rows: Sequence[Mapping[str, object]]) -> None:
    groups = (rows[start : start + files.GROUP_ROWS] for start in range(0, len(rows), files.GROUP_ROWS))
    write_batches(path, schema, (pa.RecordBatch.from_pylist(group, schema) for group in groups))
