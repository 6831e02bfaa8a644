"""The ranks of positives: all that retrieval metrics need, for every query and exactly."""

from dataclasses import dataclass

import numpy as np

from cope_jax.evaluation.metrics.positive_pairs import pair_scores, shared_products
from cope_jax.evaluation.metrics.score_counts import Asked, count_between, count_within

# Scores this near tie: the sum of a dot product depends on its order, by 1e-16 on a CPU and by 1e-11 on an accelerator.
TIE = 2.0**-34


@dataclass(frozen=True)
class Ranks:
    """Of every query, its positives from the best to the worst.

    Query q's are at offsets[q] … offsets[q + 1] of the other arrays; one without positives has none.

    Attributes:
      offsets: i64[Q + 1].
      rows: i64[K] gallery rows of the positives.
      scores: f64[K], falling for each query.
      ranks: i64[K], from 1, rising for each query.
      gallery: number of items that a query is compared with.
    """

    offsets: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray
    gallery: int

    @property
    def asked(self) -> np.ndarray:
        """bool[Q]: queries with a positive."""
        return np.diff(self.offsets) > 0

    def positives(self, query: int) -> np.ndarray:
        """i64[n]: gallery rows of a query's positives, best first."""
        return self.rows[self.offsets[query] : self.offsets[query + 1]]

    @property
    def first(self) -> np.ndarray:
        """i64[queries with a positive]: the rank of the best one."""
        return self.ranks[self.offsets[:-1][self.asked]]

    @property
    def precision(self) -> np.ndarray:
        """f64[queries with a positive]: average precision, (1/P) Σ_k k / rank_k."""
        numbers = np.diff(self.offsets)
        k = np.arange(1, len(self.ranks) + 1) - np.repeat(self.offsets[:-1], numbers)
        starts = self.offsets[:-1][self.asked]
        sums = np.add.reduceat(k / self.ranks, starts) if len(starts) else np.zeros(0)
        return sums / numbers[self.asked]


def ranks_between(
    a: np.ndarray, b: np.ndarray, a_products: np.ndarray, b_products: np.ndarray, *, block: int | None = None
) -> tuple[Ranks, Ranks]:
    """Ranks of a's items as queries in the gallery b, and of b's as queries in the gallery a.

    A gallery item is *positive* for a query when they have a product in common. Ties count against the model: among
    equal scores, positives come last. So with a query's P positive scores s_1 ≥ … ≥ s_P, the k-th positive has

        rank_k = k + |{non-positives with score ≥ s_k}|

    For example, scores 0.9, 0.8⁺, 0.8, 0.3⁺ (⁺ positive) have the ranks 3 and 4 for their positives.

    Args:
      a, b: f32[A, E] and f32[B, E] embeddings of length 1.
      a_products, b_products: i32[A, M] and i32[B, N] ids of their products, padded with -1.
      block: items compared at once; ranks do not depend on it.
    """
    rows_a, rows_b = shared_products(a_products, b_products)
    scores = pair_scores(a, b, rows_a, rows_b)
    of_a, of_b = _sorted(rows_a, rows_b, scores, len(a), len(b)), _sorted(rows_b, rows_a, scores, len(b), len(a))
    counts_a, counts_b = count_between(_asked(a, of_a), _asked(b, of_b), block=block)
    return _ranked(of_a, counts_a), _ranked(of_b, counts_b)


def ranks_within(items: np.ndarray, products: np.ndarray, *, block: int | None = None) -> Ranks:
    """Ranks of items as queries in a gallery of all the others; arguments as in `ranks_between`."""
    rows, others = shared_products(products, products)
    rows, others = rows[rows != others], others[rows != others]
    positives = _sorted(rows, others, pair_scores(items, items, rows, others), len(items), len(items) - 1)
    counts = count_within(_asked(items, positives), block=block)
    every = np.arange(len(items))
    own = np.repeat(pair_scores(items, items, every, every), np.diff(positives.offsets))
    return _ranked(positives, counts - (own.astype(np.float32) >= thresholds(positives.scores)))


def thresholds(scores: np.ndarray) -> np.ndarray:
    """What a score must reach, rounded to float32, to stand before or tie with these: f32."""
    return (scores - TIE).astype(np.float32)


def _sorted(queries: np.ndarray, rows: np.ndarray, scores: np.ndarray, total: int, gallery: int) -> Ranks:
    """The positives of `total` queries, best first, without their ranks."""
    order = np.lexsort((rows, -scores, queries))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(queries, minlength=total))])
    return Ranks(offsets, rows[order], scores[order], np.zeros(len(order), np.int64), gallery)


def _asked(vectors: np.ndarray, positives: Ranks) -> Asked:
    return Asked(vectors, positives.offsets, thresholds(positives.scores))


def _ranked(positives: Ranks, counts: np.ndarray) -> Ranks:
    """The ranks, from how many gallery items, positives among them, reach each positive's threshold."""
    numbers = np.diff(positives.offsets)
    starts, ends = (np.repeat(side, numbers) for side in (positives.offsets[:-1], positives.offsets[1:]))
    k = np.arange(1, len(counts) + 1) - starts
    themselves = _reaching(positives.scores.astype(np.float32), thresholds(positives.scores), starts, ends)
    return Ranks(positives.offsets, positives.rows, positives.scores, k + counts - themselves, positives.gallery)


def _reaching(scores: np.ndarray, wanted: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How many of the falling scores[starts[k]:ends[k]] reach wanted[k], by bisection: i64[K]."""
    low, high = starts.copy(), ends.copy()  # the first `low` reach it, those from `high` on do not
    while (open_ := low < high).any():
        middle = (low + high) // 2
        reaches = open_ & (scores[np.minimum(middle, len(scores) - 1)] >= wanted)
        low, high = np.where(reaches, middle + 1, low), np.where(open_ & ~reaches, middle, high)
    return low - starts
