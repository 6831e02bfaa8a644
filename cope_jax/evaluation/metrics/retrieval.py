"""Cross-domain retrieval: does an item find the items of its product in another domain?

And beside it: in its own domain, and among the items of all domains. Exact, and in tiles: the whole similarity matrix
is never in memory.
"""

from collections.abc import Mapping

import numpy as np

from cope_jax import domains
from cope_jax.evaluation.metrics.ranks import Ranks, ranks_between, ranks_within

RECALLS = (1, 5, 10)
SHARES = (*(f"r{k}" for k in RECALLS), "map")  # metrics that are means over queries

# Of each domain its items' embeddings f32[N, E] and products i32[N, M], padded with -1.
Embeddings = Mapping[str, tuple[np.ndarray, np.ndarray]]
Metrics = dict[str, float | int]


def shares(ranks: Ranks) -> np.ndarray:
    """What each query with a positive adds to the means: f64[queries, len(SHARES)]."""
    first = ranks.first
    return np.stack([*(first <= k for k in RECALLS), ranks.precision], axis=-1).astype(np.float64)


def summary(ranks: Ranks, chosen: np.ndarray | None = None) -> Metrics:
    """The metrics of all queries, or of the chosen ones: bool[Q].

        r1, r5, r10  = mean over queries of [rank_1 ≤ 1], [rank_1 ≤ 5], [rank_1 ≤ 10]
        map          = mean over queries of (1/P) Σ_k k / rank_k
        median_rank  = median over queries of rank_1

    Returns:
      These, the number of `queries` with a positive, which they are of, the number of those `left_out` for want of
      one, and the number of `gallery` items.

    Raises:
      ValueError: no query has a positive.
    """
    chosen = np.ones(len(ranks.asked), bool) if chosen is None else chosen
    used = chosen[ranks.asked]
    if not used.any():
        raise ValueError(
            f"none of {chosen.sum()} queries has a product in common with the {ranks.gallery} gallery items"
        )
    means = shares(ranks)[used].mean(axis=0)
    return {
        **dict(zip(SHARES, means.tolist(), strict=True)),
        "median_rank": float(np.median(ranks.first[used])),
        "queries": int(used.sum()),
        "left_out": int(chosen.sum() - used.sum()),
        "gallery": ranks.gallery,
    }


def retrieval(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_products: np.ndarray,
    gallery_products: np.ndarray,
    *,
    block: int | None = None,
) -> Metrics:
    """The `summary` of one direction; arguments as of `ranks_between`.

    Raises:
      ValueError: the shapes do not fit, an embedding is not finite, or no query has a positive.
    """
    check(queries, query_products, "queries")
    check(gallery, gallery_products, "gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, but the gallery {gallery.shape[1]}")
    return summary(ranks_between(queries, gallery, query_products, gallery_products, block=block)[0])


def direction_ranks(embeddings: Embeddings, *, block: int | None = None) -> dict[str, Ranks]:
    """The ranks of every ordered pair of domains by name: {"p2v": …, "v2p": …, …}, queries before gallery.

    Raises:
      ValueError: the shapes do not fit, or an embedding is not finite.
    """
    for domain, (vectors, products) in embeddings.items():
        check(vectors, products, domain)
    ranks = {}
    for source, target in domains.PAIRS:
        (a, a_products), (b, b_products) = embeddings[source], embeddings[target]
        there, back = ranks_between(a, b, a_products, b_products, block=block)
        ranks[domains.direction_name(source, target)] = there
        ranks[domains.direction_name(target, source)] = back
    return ranks


def six_directions(ranks: Mapping[str, Ranks]) -> dict[str, Metrics]:
    """The `summary` of each direction.

    Raises:
      ValueError: no query of a direction has a positive.
    """
    results = {}
    for name, of_direction in ranks.items():
        try:
            results[name] = summary(of_direction)
        except ValueError as error:
            raise ValueError(f"retrieval {name}: {error}") from error
    return results


def same_domain(embeddings: Embeddings) -> dict[str, Metrics | None]:
    """Retrieval among the other items of a query's own domain; None where no two of them share a product."""
    return {domain: _if_any(ranks_within(*items)) for domain, items in embeddings.items()}


def all_domains(embeddings: Embeddings) -> dict[str, Metrics | None]:
    """Retrieval among the other items of all domains, by the domain of the query; None as in `same_domain`."""
    width = max(products.shape[1] for _, products in embeddings.values())
    vectors = np.concatenate([vectors for vectors, _ in embeddings.values()])
    products = np.concatenate(
        [np.pad(own, ((0, 0), (0, width - own.shape[1])), constant_values=-1) for _, own in embeddings.values()]
    )
    ranks = ranks_within(vectors, products)
    whose = np.repeat(list(embeddings), [len(own) for _, own in embeddings.values()])
    return {domain: _if_any(ranks, whose == domain) for domain in embeddings}


def _if_any(ranks: Ranks, chosen: np.ndarray | None = None) -> Metrics | None:
    asked = ranks.asked if chosen is None else ranks.asked & chosen
    return summary(ranks, chosen) if asked.any() else None


def check(embeddings: np.ndarray, products: np.ndarray, role: str) -> None:
    """Raises a ValueError where shapes do not fit or an embedding is not finite."""
    if embeddings.ndim != 2 or products.ndim != 2 or len(embeddings) != len(products):
        raise ValueError(
            f"{role}: embeddings {embeddings.shape} and products {products.shape}, wanted [N, E] and [N, M]"
        )
    faulty = np.flatnonzero(~np.isfinite(embeddings).all(axis=-1))
    if faulty.size:  # A NaN is neither above nor below a score: such an item would count for the model.
        raise ValueError(f"{role}: {faulty.size} embeddings are not finite, the first in row {faulty[0]}")
