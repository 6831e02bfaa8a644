"""Bootstrap intervals of the retrieval metrics, and means over products.

Items of one product succeed or fail together, so the bootstrap draws products, not queries. Galleries stay the same.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, Int64

from cope_jax.evaluation.metrics.ranks import Ranks
from cope_jax.evaluation.metrics.retrieval import MEAN_METRICS, Metrics, query_metrics

LEVEL = 0.95
RESAMPLES = 1000


def first_product(products: Int[np.ndarray, "N M"]) -> Int64[np.ndarray, " N"]:
    """Returns the smallest product id of each item, the one that a query counts for, or -1 if it has none."""
    ids = np.asarray(products, np.int64)
    smallest = np.where(ids >= 0, ids, np.iinfo(np.int64).max).min(axis=-1)
    return np.where((ids >= 0).any(axis=-1), smallest, -1)


def bootstrap_intervals(
    ranks: Mapping[str, Ranks],
    products: Mapping[str, Int64[np.ndarray, " Q"]],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, object]:
    """Computes percentile intervals of the metrics of each direction and of their means over directions.

    A resample draws as many products as there are, with replacement, the same ones for all directions. Its metrics are
    means over the queries of the products drawn, each counted as often as its product.

    Args:
        ranks: Ranks of each direction in which some query has a positive.
        products: Product of each direction's queries, from `first_product`.
        seed: Seed of the draws.
        resamples: Number of resamples.

    Returns:
        {"level", "resamples", "products": their number, "retrieval": {direction: {"r1": [low, high], …}, …},
        "retrieval_mean": {"mean_r1": [low, high], …}}.
    """
    owners = {name: products[name][own.has_positive] for name, own in ranks.items()}
    found = {"level": LEVEL, "resamples": resamples, "products": 0, "retrieval": {}, "retrieval_mean": {}}
    if not ranks:
        return found
    values = {name: query_metrics(own) for name, own in ranks.items()}
    metrics = bootstrap_means(values, owners, seed=seed, resamples=resamples)
    overall = _bounds(np.mean(list(metrics.values()), axis=0))
    return found | {
        "products": len(np.unique(np.concatenate(list(owners.values())))),
        "retrieval": {name: _bounds(means) for name, means in metrics.items()},
        "retrieval_mean": {f"mean_{key}": bounds for key, bounds in overall.items()},
    }


def bootstrap_means(
    values: Mapping[str, Float[np.ndarray, "_ n"]],
    owners: Mapping[str, Int[np.ndarray, " _"]],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Float[np.ndarray, "resamples n"]]:
    """Computes means over the queries of products drawn at random, the same ones for all groups of queries.

    If products are few, a resample may draw no query of a group. Its NaN does not count in `interval`.

    Args:
        values: Values of each query, by group.
        owners: Product of each query.
        seed: Seed of the draws.
        resamples: Number of resamples.
    """
    every = np.unique(np.concatenate(list(owners.values())))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(every), np.full(len(every), 1 / len(every)), size=resamples).astype(np.float64)
    means = {}
    for name, own in values.items():
        sums, queries = _sums_by_product(own, np.searchsorted(every, owners[name]), len(every))
        total = (drawn @ queries)[:, None]
        nothing = np.full((resamples, own.shape[1]), np.nan)
        means[name] = np.divide(drawn @ sums, total, out=nothing, where=total > 0)
    return means


def product_means(ranks: Mapping[str, Ranks], products: Mapping[str, Int64[np.ndarray, " Q"]]) -> dict[str, Metrics]:
    """Computes means over products of the means over their queries, so that all products count the same.

    Returns the metrics of each direction and the number of `products` with a query.
    """
    results = {}
    for name, own in ranks.items():
        every, owners = np.unique(products[name][own.has_positive], return_inverse=True)
        sums, queries = _sums_by_product(query_metrics(own), owners, len(every))
        means = (sums / queries[:, None]).mean(axis=0)
        results[name] = {**dict(zip(MEAN_METRICS, means.tolist(), strict=True)), "products": len(every)}
    return results


def _sums_by_product(
    metrics: Float[np.ndarray, "Q n"], owners: Int[np.ndarray, " Q"], products: int
) -> tuple[Float[np.ndarray, "P n"], Float[np.ndarray, " P"]]:
    """Sums of the metrics of each product's queries, and numbers of queries; `owners` counts products from 0."""
    sums = np.stack([np.bincount(owners, column, minlength=products) for column in metrics.T], axis=-1)
    return sums, np.bincount(owners, minlength=products).astype(np.float64)


def interval(means: Float[np.ndarray, "resamples n"]) -> Float[np.ndarray, "n 2"]:
    """Returns the bounds of the 95% percentile interval of each column."""
    return np.nanquantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T


def _bounds(means: Float[np.ndarray, "resamples metrics"]) -> dict[str, list[float]]:
    return dict(zip(MEAN_METRICS, interval(means).tolist(), strict=True))
