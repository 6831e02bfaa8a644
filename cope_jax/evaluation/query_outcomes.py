"""Outcomes of the queries of an evaluation, stored as a table next to its metrics.

The report's failures are computed from it, and `compare` pairs the queries of two runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cope_jax.evaluation.embed_items import Items
from cope_jax.evaluation.metrics.bootstrap import first_product
from cope_jax.evaluation.metrics.ranks import Ranks, nearest_neighbors
from data_prep.common.domains import directions
from data_prep.common.files import atomic_write
from data_prep.common.parquet import open_parquet

DIRECTION = "direction"  # column of the table


@dataclass(frozen=True)
class Outcomes:
    """The queries of a direction that have a positive, by row. Items are rows of their domain's records."""

    query: np.ndarray  # int64[Q], ascending
    product: np.ndarray  # int64[Q] that the query counts for
    rank: np.ndarray  # int64[Q] of the best positive
    precision: np.ndarray  # float64[Q] average precision
    best: np.ndarray  # int64[Q] best positive
    nearest: np.ndarray  # int64[Q] nearest item: `best`, or a wrong one
    nearest_product: np.ndarray  # int64[Q], -1 if it has none
    chance: np.ndarray  # float64[Q] R@1 of a random order
    has_text: np.ndarray  # bool[Q]

    @property
    def metrics(self) -> np.ndarray:
        """R@1, R@5, R@10 and average precision of each query, float64[Q, 4]."""
        return np.stack([*(self.rank <= k for k in (1, 5, 10)), self.precision], axis=-1).astype(np.float64)


def query_outcomes(items: Mapping[str, Items], ranks: Mapping[str, Ranks]) -> dict[str, Outcomes]:
    """Finds the nearest item of each query that has a positive, by direction; `ranks` has these queries."""
    pairs = directions(items)
    return {name: _outcomes(items[pairs[name][0]], items[pairs[name][1]], own) for name, own in ranks.items()}


def _outcomes(source: Items, target: Items, ranks: Ranks) -> Outcomes:
    queries = np.flatnonzero(ranks.has_positive)
    best = ranks.rows[ranks.offsets[queries]]
    nearest, missed = best.copy(), queries[ranks.best > 1]
    if len(missed):
        vectors = source.vectors[missed], target.vectors
        without = missed if source is target else None
        positives = [ranks.positives(query) for query in missed.tolist()]
        nearest[ranks.best > 1] = nearest_neighbors(*vectors, positives, k=1, without=without)[0][:, 0]
    return Outcomes(
        query=source.rows[queries],
        product=first_product(source.products)[queries],
        rank=ranks.best,
        precision=ranks.average_precision,
        best=target.rows[best],
        nearest=target.rows[nearest],
        nearest_product=first_product(target.products)[nearest],
        chance=np.diff(ranks.offsets)[queries] / ranks.gallery,
        has_text=source.has_text[queries],
    )


def write_outcomes(outcomes: Mapping[str, Outcomes], path: Path) -> None:
    """Writes outcomes as a Parquet file with a column for the direction."""
    tables = [pa.table({DIRECTION: [name] * len(own.query)} | vars(own)) for name, own in outcomes.items()]
    with atomic_write(path) as file:
        pq.write_table(pa.concat_tables(tables) if tables else pa.table({DIRECTION: pa.array([], pa.string())}), file)


def read_outcomes(path: Path) -> dict[str, Outcomes]:
    """Reads outcomes; {} if the file does not exist, as after evaluations by earlier versions."""
    if not path.exists():
        return {}
    with open_parquet(path) as file:
        table = file.read()
    columns: dict[str, Any] = {name: table[name].to_numpy() for name in table.column_names}
    names = columns.pop(DIRECTION)
    if missing := {field.name for field in fields(Outcomes)} - columns.keys() if len(names) else set():
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}: evaluate again")
    return {
        name: Outcomes(**{field.name: columns[field.name][names == name] for field in fields(Outcomes)})
        for name in dict.fromkeys(names.tolist())
    }


def same_queries(first: Mapping[str, Outcomes], other: Mapping[str, Outcomes]) -> bool:
    """Returns whether both have the same queries, at least one."""
    return (
        bool(first)
        and first.keys() == other.keys()
        and all(np.array_equal(own.query, other[name].query) for name, own in first.items())
    )
