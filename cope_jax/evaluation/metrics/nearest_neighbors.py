"""Nearest gallery items of queries, in the order in which their ranks are counted."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int, Int64

from cope_jax.evaluation.metrics.ranks import tie_thresholds

BLOCK = 64  # queries compared at once: 16 MB of scores with ROPE's 31,000 gallery items


def nearest_neighbors(
    queries: Float[np.ndarray, "Q E"],
    gallery: Float[np.ndarray, "G E"],
    positives: Sequence[Int[np.ndarray, " _"]],
    *,
    k: int,
) -> tuple[Int64[np.ndarray, "Q k"], Float[np.ndarray, "Q k"]]:
    """Finds the k nearest items of each query, best first; among equal scores, positives come last, as in `ranks`.

    With the scores 0.9, 0.8⁺, 0.8, 0.3⁺ of rows 0 to 3 (⁺ positive) and k = 3, the rows are 0, 2, 1.

    Args:
        queries: Embeddings of unit length.
        gallery: Embeddings of unit length.
        positives: Gallery rows of each query's positives.
        k: Number of items; all, if the gallery has fewer.

    Returns:
        Gallery rows and their scores.
    """
    k = min(k, len(gallery))
    rows = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k))
    for query, line in _query_scores(queries, gallery):
        own = positives[query]
        keys = line.astype(np.float32)
        keys[own] = tie_thresholds(line[own])
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
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK].astype(np.float64) @ columns
        yield from enumerate(scores, start)
