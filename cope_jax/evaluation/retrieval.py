"""Cross-domain retrieval: does an item find the items of its product in another domain?

Runs on the host in numpy, exactly, over blocks of queries: the whole similarity matrix is never in memory.
"""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from cope_jax import domains

RECALLS = (1, 5, 10)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot products f32[A, B] of the rows of a [A, E] and b [B, E], rounded from float64.

    A float32 product may differ in the last bit with a row's place in the block, so that equal embeddings
    would not tie. Rounding from float64 makes a score depend on its two rows alone.
    """
    return (np.asarray(a, np.float64) @ np.asarray(b, np.float64).T).astype(np.float32)


def retrieval(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_products: np.ndarray,
    gallery_products: np.ndarray,
    *,
    block: int = 256,
) -> dict[str, float | int]:
    """Ranks the gallery for every query by the embeddings' dot product and summarises the ranks.

    A gallery item is *positive* for a query when they have a product in common. Queries without a positive
    are left out. Ties count against the model: among equal scores, positives come last. So with a query's P
    positive scores s_1 ≥ … ≥ s_P, the k-th positive has rank_k = k + |{non-positives with score ≥ s_k}|, and

        r1, r5, r10  = mean over queries of [rank_1 ≤ 1], [rank_1 ≤ 5], [rank_1 ≤ 10]
        map          = mean over queries of (1/P) Σ_k k / rank_k
        median_rank  = median over queries of rank_1

    For example, scores 0.9, 0.8⁺, 0.8, 0.3⁺ (⁺ positive) have the ranks 3 and 4 for their positives: r5 = 1,
    map = (1/3 + 2/4) / 2, median_rank = 3.

    Args:
      queries: f32[Q, E] embeddings.
      gallery: f32[G, E] embeddings.
      query_products: i32[Q, M] ids of the products each query belongs to, padded with -1.
      gallery_products: i32[G, N] the same for the gallery; N may differ from M.
      block: queries compared at once; memory grows with block × G, results are the same.

    Returns:
      r1, r5, r10, map, median_rank, and the numbers of queries (with a positive) and gallery items.

    Raises:
      ValueError: the shapes do not fit, an embedding is not finite, or no query has a positive.
    """
    queries, gallery, query_products, gallery_products = map(
        np.asarray, (queries, gallery, query_products, gallery_products)
    )
    _check(queries, query_products, "queries")
    _check(gallery, gallery_products, "gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, but the gallery {gallery.shape[1]}")
    positives = _positives(query_products, gallery_products)
    used = [row for row, found in enumerate(positives) if found.size]
    if not used:
        raise ValueError(
            f"none of {len(queries)} queries has a product in common with the {len(gallery)} gallery items"
        )
    first_ranks, precisions = [], []
    for start in range(0, len(used), block):
        rows = used[start : start + block]
        for scores, row in zip(similarity(queries[rows], gallery), rows, strict=True):
            ranks = _ranks(scores, positives[row])
            first_ranks.append(ranks[0])
            precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    recalls = {f"r{k}": float(np.mean(np.array(first_ranks) <= k)) for k in RECALLS}
    return recalls | {
        "map": float(np.mean(precisions)),
        "median_rank": float(np.median(first_ranks)),
        "queries": len(used),
        "gallery": len(gallery),
    }


def six_directions(
    embeddings: Mapping[str, tuple[np.ndarray, np.ndarray]], *, block: int = 256
) -> dict[str, dict[str, float | int]]:
    """`retrieval` for every ordered pair of domains.

    Args:
      embeddings: for each domain, all its items: f32[N, E] embeddings and i32[N, M] products padded with -1.
      block: as for `retrieval`.

    Returns:
      The metrics of each direction by name: {"p2v": {"r1": …, …}, "v2p": …}, queries before gallery.

    Raises:
      ValueError: as `retrieval`; the message begins with the direction.
    """
    results = {}
    for source, target in domains.DIRECTIONS:
        name = domains.direction_name(source, target)
        (queries, query_products), (gallery, gallery_products) = embeddings[source], embeddings[target]
        try:
            results[name] = retrieval(queries, gallery, query_products, gallery_products, block=block)
        except ValueError as error:
            raise ValueError(f"retrieval {name}: {error}") from error
    return results


def _check(embeddings: np.ndarray, products: np.ndarray, role: str) -> None:
    if embeddings.ndim != 2 or products.ndim != 2 or len(embeddings) != len(products):
        raise ValueError(
            f"{role}: embeddings {embeddings.shape} and products {products.shape}, wanted [N, E] and [N, M]"
        )
    faulty = np.flatnonzero(~np.isfinite(embeddings).all(axis=-1))
    if faulty.size:  # A NaN is neither above nor below a score: such an item would count for the model.
        raise ValueError(f"{role}: {faulty.size} embeddings are not finite, the first in row {faulty[0]}")


def _positives(query_products: np.ndarray, gallery_products: np.ndarray) -> list[np.ndarray]:
    """For each query the gallery rows that have a product in common with it, each row once."""
    rows_of = defaultdict(set)
    for row, products in enumerate(gallery_products.tolist()):
        for product in products:
            if product >= 0:
                rows_of[product].add(row)
    none = frozenset()
    return [
        np.array(sorted(set().union(*(rows_of.get(product, none) for product in products))), np.int64)
        for products in query_products.tolist()
    ]


def _ranks(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Ranks i64[P], ascending, of the positives among scores f32[G]; see `retrieval`."""
    wanted = np.sort(scores[positives])[::-1]
    others = np.delete(scores, positives)
    # P passes over the scores: positives are few, and this is far cheaper than sorting them all.
    ahead = np.array([np.count_nonzero(others >= score) for score in wanted])
    return np.arange(1, len(wanted) + 1) + ahead
