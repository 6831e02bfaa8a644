"""From a catalog's rows of products to rows of records: the same but for the items that were left out."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from data_prep.catalog.files import Catalog, Product
from data_prep.common.domains import DOMAINS
from data_prep.records import shards


class KeptRows:
    """The rows that are left of a domain's catalog rows, counted anew without gaps.

    Of rows 0 to 4 with 1 and 3 left out, [0, 1, 4] become [0, 2].
    """

    def __init__(self, dropped: np.ndarray):
        """Takes the rows left out, i64[n], ascending."""
        self._dropped = dropped

    def __call__(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the rows in the records of those catalog rows that were kept; keeps their order."""
        # How many before each row were left out, with it and without it: equal where it was kept.
        before = np.searchsorted(self._dropped, rows, side="left")
        kept = before == np.searchsorted(self._dropped, rows, side="right")
        return tuple((np.asarray(rows, np.int64) - before)[kept].tolist())


def read_kept_rows(folder: Path, split: str) -> KeptRows:
    """Returns the kept rows of the finished records in `folder`."""
    reports = map(shards.read_report, shards.report_paths(folder, split))
    return KeptRows(np.concatenate([np.array(report.dropped_rows, np.int64) for report in reports]))


def kept_products(catalog: Catalog, split: str, kept: Mapping[str, KeptRows]) -> Iterator[Product]:
    """Yields the products that have an item left, with their rows in the records of each domain."""
    for product in catalog.products(split):
        rows = {domain: kept[domain](product.rows[domain]) for domain in DOMAINS}
        if any(rows.values()):
            yield Product(product.product_id, rows)
