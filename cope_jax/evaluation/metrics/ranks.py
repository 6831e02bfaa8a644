"""Exact ranks of the positives of every query, from which all retrieval metrics follow, and nearest neighbors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64

from cope_jax.evaluation.metrics.score_counts import ItemThresholds, count_between

# Scores this close tie: far more than the 1e-16 by which the order of summation changes them.
TIE = 2.0**-34
PAIRS_AT_ONCE = 2048  # small enough to stay in the cache
QUERIES_AT_ONCE = 64  # 16 MB of scores with ROPE's 31,000 gallery items


@dataclass(frozen=True)
class Ranks:
    """Positives of every query, best first.

    Those of query q are at `offsets[q]` to `offsets[q + 1]` of the other arrays. A query may have none.
    """

    offsets: Int64[np.ndarray, " _"]  # Q + 1 positions
    rows: Int64[np.ndarray, " K"]  # in the gallery
    scores: Float[np.ndarray, " K"]  # falling
    ranks: Int64[np.ndarray, " K"]  # from 1
    gallery: int  # number of items that queries are compared with, one less if each is left out of its own gallery

    @property
    def has_positive(self) -> Bool[np.ndarray, " Q"]:
        """Whether each query has a positive. The following properties leave out queries without one."""
        return np.diff(self.offsets) > 0

    @property
    def best(self) -> Int64[np.ndarray, " q"]:
        """Rank of each query's best positive."""
        return self.ranks[self.offsets[:-1][self.has_positive]]

    @property
    def average_precision(self) -> Float[np.ndarray, " q"]:
        """Average precision of each query, (1/P) Σ_k k / rank_k."""
        numbers = np.diff(self.offsets)
        k = np.arange(1, len(self.ranks) + 1) - np.repeat(self.offsets[:-1], numbers)
        starts = self.offsets[:-1][self.has_positive]
        sums = np.add.reduceat(k / self.ranks, starts) if len(starts) else np.zeros(0)
        return sums / numbers[self.has_positive]

    def ndcg(self, k: int) -> Float[np.ndarray, " q"]:
        """Normalized discounted cumulative gain of each query: Σ 1 / log2(1 + rank) over ranks ≤ k, of the largest."""
        numbers = np.diff(self.offsets)[self.has_positive]
        gains = np.where(self.ranks <= k, 1 / np.log2(1 + self.ranks), 0)
        starts = self.offsets[:-1][self.has_positive]
        ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
        return (np.add.reduceat(gains, starts) if len(starts) else np.zeros(0)) / ideal[np.minimum(numbers, k) - 1]

    def positives(self, query: int) -> Int64[np.ndarray, " n"]:
        """Gallery rows of a query's positives, best first."""
        return self.rows[self.offsets[query] : self.offsets[query + 1]]


def ranks_between(
    a: Float[np.ndarray, "A E"],
    b: Float[np.ndarray, "B E"],
    a_products: Int[np.ndarray, "A M"],
    b_products: Int[np.ndarray, "B N"],
    *,
    block: int | None = None,
) -> tuple[Ranks, Ranks]:
    """Ranks the positives of a's items in the gallery b, and those of b's items in the gallery a.

    A gallery item is a *positive* of a query if they have a product in common. Ties count against the model: among
    equal scores, positives come last. So if s_1 ≥ … ≥ s_P are the scores of a query's positives, the k-th has

        rank_k = k + |{non-positives with score ≥ s_k}|

    For example, the positives (⁺) among the scores 0.9, 0.8⁺, 0.8, 0.3⁺ have the ranks 3 and 4.

    Embeddings have unit length, product ids are padded with -1, and at most `block` items are compared at once.
    """
    rows_a, rows_b = positive_pairs(a_products, b_products)
    scores = pair_scores(a, b, rows_a, rows_b)
    of_a, of_b = _sorted(rows_a, rows_b, scores, len(a), len(b)), _sorted(rows_b, rows_a, scores, len(b), len(a))
    counts_a, counts_b = count_between(_thresholds(a, of_a), _thresholds(b, of_b), block=block)
    return _ranked(of_a, counts_a), _ranked(of_b, counts_b)


def ranks_within(
    items: Float[np.ndarray, "N E"], products: Int[np.ndarray, "N M"], *, block: int | None = None
) -> Ranks:
    """Ranks the positives of each item in a gallery of all other items; see `ranks_between`."""
    return ranks_without(items, items, products, products, np.arange(len(items)), block=block)


def ranks_without(
    queries: Float[np.ndarray, "Q E"],
    items: Float[np.ndarray, "N E"],
    query_products: Int[np.ndarray, "Q M"],
    products: Int[np.ndarray, "N O"],
    own: Int64[np.ndarray, " Q"],
    *,
    block: int | None = None,
) -> Ranks:
    """Ranks the positives of queries in a gallery; see `ranks_between`.

    `own` has a gallery row for each query that is left out for it, or -1.
    """
    rows, others = positive_pairs(query_products, products)
    rows, others = rows[others != own[rows]], others[others != own[rows]]
    size = len(items) - int(len(own) > 0 and (own >= 0).all())
    positives = _sorted(rows, others, pair_scores(queries, items, rows, others), len(queries), size)
    gallery = ItemThresholds(items, np.zeros(len(items) + 1, np.int64), np.zeros(0, np.float32))
    counts, _ = count_between(_thresholds(queries, positives), gallery, block=block)
    scores = np.full(len(queries), -np.inf)
    left_out = np.flatnonzero(own >= 0)
    scores[left_out] = pair_scores(queries, items, left_out, own[left_out])
    counted = np.repeat(scores, np.diff(positives.offsets)).astype(np.float32) >= tie_thresholds(positives.scores)
    return _ranked(positives, counts - counted)


def positive_pairs(
    a: Int[np.ndarray, "A M"], b: Int[np.ndarray, "B N"]
) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, " K"]]:
    """Lists all pairs of rows that have a product id in common, sorted and without repetition.

    Products (1), (2, 3) and (3), (2, 3), (1) give the pairs 0-2, 1-0 and 1-1.
    """
    (rows_a, ids_a), (rows_b, ids_b) = _listed(a), _listed(b)
    order = np.argsort(ids_b, kind="stable")
    rows_b, ids_b = rows_b[order], ids_b[order]
    starts, ends = np.searchsorted(ids_b, ids_a, "left"), np.searchsorted(ids_b, ids_a, "right")
    sizes = ends - starts
    places = np.arange(sizes.sum()) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
    pairs = np.unique(np.repeat(rows_a, sizes) * len(b) + rows_b[places])  # two common products list a pair twice
    return pairs // max(len(b), 1), pairs % max(len(b), 1)


def _listed(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and id of every product of every item."""
    rows, columns = np.nonzero(products >= 0)
    return rows, products[rows, columns]


def pair_scores(
    a: Float[np.ndarray, "A E"],
    b: Float[np.ndarray, "B E"],
    rows_a: Int[np.ndarray, " K"],
    rows_b: Int[np.ndarray, " K"],
) -> Float[np.ndarray, " K"]:
    """Computes the dot products of pairs of rows in float64."""
    scores = np.empty(len(rows_a))
    for start in range(0, len(rows_a), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        left, right = a[rows_a[part]].astype(np.float64), b[rows_b[part]].astype(np.float64)
        scores[part] = np.einsum("ke,ke->k", left, right)
    return scores


def tie_thresholds(scores: Float[np.ndarray, " K"]) -> Float32[np.ndarray, " K"]:
    """Returns what a score, rounded to float32, must reach to precede or tie with each of these."""
    return (scores - TIE).astype(np.float32)


def _sorted(queries: np.ndarray, rows: np.ndarray, scores: np.ndarray, total: int, gallery: int) -> Ranks:
    """Positives of `total` queries, best first, without their ranks."""
    order = np.lexsort((rows, -scores, queries))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(queries, minlength=total))])
    return Ranks(offsets, rows[order], scores[order], np.zeros(len(order), np.int64), gallery)


def _thresholds(vectors: np.ndarray, positives: Ranks) -> ItemThresholds:
    return ItemThresholds(vectors, positives.offsets, tie_thresholds(positives.scores))


def _ranked(positives: Ranks, counts: np.ndarray) -> Ranks:
    """Adds the ranks, given how many gallery items, including positives, reach each positive's threshold."""
    numbers = np.diff(positives.offsets)
    starts, queries = np.repeat(positives.offsets[:-1], numbers), np.repeat(np.arange(len(numbers)), numbers)
    # Falling scores and their thresholds as rising integers, which grow from query to query.
    both = np.concatenate([positives.scores.astype(np.float32), tie_thresholds(positives.scores)])
    values, order = np.unique(-both, return_inverse=True)
    scores, thresholds = np.tile(queries, 2).reshape(2, -1) * len(values) + order.reshape(2, -1)
    among_positives = np.searchsorted(scores, thresholds, "right") - starts
    k = np.arange(1, len(counts) + 1) - starts
    return Ranks(positives.offsets, positives.rows, positives.scores, k + counts - among_positives, positives.gallery)


def nearest_neighbors(
    queries: Float[np.ndarray, "Q E"],
    gallery: Float[np.ndarray, "G E"],
    positives: Sequence[Int[np.ndarray, " _"]],
    *,
    k: int,
    without: Int[np.ndarray, " Q"] | None = None,
) -> tuple[Int64[np.ndarray, "Q k"], Float[np.ndarray, "Q k"]]:
    """Returns the gallery rows of the k nearest items of each query, best first, and their scores.

    Among equal scores, positives come last, as in the ranks: with the scores 0.9, 0.8⁺, 0.8, 0.3⁺ of rows 0 to 3
    (⁺ positive) and k = 3, the rows are 0, 2, 1. `positives` has the gallery rows of each query's positives. If the
    gallery has fewer than k items, all are returned. `without` has a gallery row for each query that is left out.
    """
    k = min(k, len(gallery) - (without is not None))
    rows = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k))
    for query, line in _query_scores(queries, gallery):
        own = positives[query]
        keys = line.astype(np.float32)
        keys[own] = tie_thresholds(line[own])
        if without is not None:
            keys[without[query]] = -np.inf
        found = np.flatnonzero(keys >= np.partition(keys, -k)[-k])  # includes all that tie with the k-th
        order = np.lexsort((found, np.isin(found, own), -keys[found]))[:k]
        rows[query] = found[order]
        scores[query] = line[rows[query]]
    return rows, scores


def nearest_negative_scores(
    queries: Float[np.ndarray, "Q E"], gallery: Float[np.ndarray, "G E"], positives: Sequence[Int[np.ndarray, " _"]]
) -> Float[np.ndarray, " Q"]:
    """Returns each query's highest score with an item that is not a positive, or NaN if all items are positives."""
    best = np.full(len(queries), np.nan)
    for query, line in _query_scores(queries, gallery):
        line[positives[query]] = -np.inf
        if np.isfinite(highest := line.max()):
            best[query] = highest
    return best


def _query_scores(queries: np.ndarray, gallery: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the number of each query and its scores with all gallery items."""
    columns = gallery.astype(np.float64).T
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        scores = queries[start : start + QUERIES_AT_ONCE].astype(np.float64) @ columns
        yield from enumerate(scores, start)
