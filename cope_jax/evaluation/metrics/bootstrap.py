"""How far the metrics would be off on other products of the same kind: intervals by bootstrap, and means over products.

Items of one product stand or fall together, so it is products that are drawn, not queries. Galleries stay as they are.
"""

from collections.abc import Mapping

import numpy as np

from cope_jax.evaluation.metrics.ranks import Ranks
from cope_jax.evaluation.metrics.retrieval import SHARES, shares

LEVEL = 0.95
RESAMPLES = 1000


def first_product(products: np.ndarray) -> np.ndarray:
    """The smallest id of each row of i32[N, M], padded with -1: the product that a query counts for; -1 without any."""
    ids = np.asarray(products, np.int64)
    smallest = np.where(ids >= 0, ids, np.iinfo(np.int64).max).min(axis=-1)
    return np.where((ids >= 0).any(axis=-1), smallest, -1)


def intervals(
    ranks: Mapping[str, Ranks], products: Mapping[str, np.ndarray], *, seed: int, resamples: int = RESAMPLES
) -> dict[str, object]:
    """Percentile intervals of the shares of each direction and of their means over directions.

    A resample draws as many products as there are, with replacement, the same ones for all directions. Its metric is
    the mean over the queries of the products drawn, each as often as its product.

    Args:
      ranks: of each direction.
      products: of each direction's queries, i64[Q], as `first_product` gives them.
      seed: of the draws.

    Returns:
      {"level", "resamples", "products": how many, "retrieval": {direction: {"r1": [low, high], …}, …},
      "retrieval_mean": {"mean_r1": [low, high], …}}.
    """
    owners = {name: products[name][of_direction.asked] for name, of_direction in ranks.items()}
    every = np.unique(np.concatenate(list(owners.values())))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(every), np.full(len(every), 1 / len(every)), size=resamples).astype(np.float64)
    metrics = {}
    for name, of_direction in ranks.items():
        sums, queries = by_product(shares(of_direction), np.searchsorted(every, owners[name]), len(every))
        asked = (drawn @ queries)[:, None]
        # Of very few products a resample can hold no query at all: it says nothing, and the bounds ignore it.
        metrics[name] = np.divide(drawn @ sums, asked, out=np.full((resamples, len(SHARES)), np.nan), where=asked > 0)
    return {
        "level": LEVEL,
        "resamples": resamples,
        "products": len(every),
        "retrieval": {name: _bounds(values) for name, values in metrics.items()},
        "retrieval_mean": {
            f"mean_{key}": bounds for key, bounds in _bounds(np.mean(list(metrics.values()), axis=0)).items()
        },
    }


def macro(ranks: Mapping[str, Ranks], products: Mapping[str, np.ndarray]) -> dict[str, dict[str, float | int]]:
    """Means over products of the means over their queries, so that products with many items count no more than others.

    Args:
      ranks, products: as for `intervals`.

    Returns:
      The shares of each direction, and the number of `products` with a query.
    """
    results = {}
    for name, of_direction in ranks.items():
        every, owners = np.unique(products[name][of_direction.asked], return_inverse=True)
        sums, queries = by_product(shares(of_direction), owners, len(every))
        means = (sums / queries[:, None]).mean(axis=0)
        results[name] = {**dict(zip(SHARES, means.tolist(), strict=True)), "products": len(every)}
    return results


def by_product(marks: np.ndarray, owners: np.ndarray, products: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums f64[P, n] of the marks f64[Q, n] of each product's queries, and their numbers f64[P].

    Args:
      owners: i64[Q], the product of each query, counted from 0.
    """
    sums = np.stack([np.bincount(owners, column, minlength=products) for column in marks.T], axis=-1)
    return sums, np.bincount(owners, minlength=products).astype(np.float64)


def _bounds(values: np.ndarray) -> dict[str, list[float]]:
    """The interval of each of the shares, of f64[resamples, len(SHARES)]."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {key: [float(a), float(b)] for key, a, b in zip(SHARES, low, high, strict=True)}
