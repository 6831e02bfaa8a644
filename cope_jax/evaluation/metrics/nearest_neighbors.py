"""What a query finds: the nearest gallery items, in the order that its ranks were counted in."""

from collections.abc import Iterator, Sequence

import numpy as np

from cope_jax.evaluation.metrics.ranks import thresholds

BLOCK = 64  # queries compared at once: 16 MB of scores with ROPE's 31 thousand gallery items


def top_hits(
    queries: np.ndarray, gallery: np.ndarray, positives: Sequence[np.ndarray], *, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest items of each query, best first; among equal scores positives come last, as in `ranks`.

    With scores 0.9, 0.8⁺, 0.8, 0.3⁺ of rows 0 to 3 (⁺ positive) and k = 3, the rows are 0, 2, 1.

    Args:
      queries, gallery: f32[Q, E] and f32[G, E] embeddings of length 1.
      positives: of each query the gallery rows that share a product with it, i64[n].
      k: of fewer gallery items, all.

    Returns:
      i64[Q, k] gallery rows, and f64[Q, k] scores.
    """
    k = min(k, len(gallery))
    rows = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k))
    for query, line in score_lines(queries, gallery):
        own = positives[query]
        keys = line.astype(np.float32)
        keys[own] = thresholds(line[own])
        found = np.flatnonzero(keys >= np.partition(keys, -k)[-k])  # all that tie with the k-th
        order = np.lexsort((found, np.isin(found, own), -keys[found]))[:k]
        rows[query] = found[order]
        scores[query] = line[rows[query]]
    return rows, scores


def nearest_wrong(queries: np.ndarray, gallery: np.ndarray, positives: Sequence[np.ndarray]) -> np.ndarray:
    """The highest score of each query with an item that is no positive, f64[Q]; NaN where every item is one.

    Arguments as of `top_hits`.
    """
    best = np.full(len(queries), np.nan)
    for query, line in score_lines(queries, gallery):
        line[positives[query]] = -np.inf
        if np.isfinite(highest := line.max()):
            best[query] = highest
    return best


def score_lines(queries: np.ndarray, gallery: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each query and its scores f64[G] with all of the gallery; few lines are in memory at once."""
    columns = gallery.astype(np.float64).T
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK].astype(np.float64) @ columns
        yield from enumerate(scores, start)
