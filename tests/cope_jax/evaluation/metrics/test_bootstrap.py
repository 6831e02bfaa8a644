"""Intervals and means over products, compared with loops over products."""

import numpy as np
import pytest

from cope_jax.evaluation.metrics import bootstrap
from cope_jax.evaluation.metrics.ranks import Ranks


def ranks_of(each: list[list[int]], gallery: int = 50) -> Ranks:
    """Builds `Ranks` from the ranks of each query's positives."""
    flat = np.array([rank for ranks in each for rank in ranks])
    offsets = np.concatenate([[0], np.cumsum([len(ranks) for ranks in each])])
    return Ranks(offsets, np.zeros_like(flat), np.zeros(len(flat)), flat, gallery)


@pytest.fixture(scope="module")
def case():
    """Two directions with 60 and 45 queries, some without a positive, of 9 products."""
    rng = np.random.default_rng(4)
    ranks, products = {}, {}
    for name, size in (("p2v", 60), ("v2p", 45)):
        numbers = rng.integers(0, 4, size)
        ranks[name] = ranks_of([np.sort(rng.choice(15, n, replace=False) + 1).tolist() for n in numbers])
        products[name] = rng.integers(100, 109, size)
    return ranks, products


def query_results(ranks: Ranks, products: np.ndarray) -> list[tuple[int, float, float]]:
    """Returns (product, R@5, average precision) of every query with a positive."""
    result = []
    for q, product in enumerate(products.tolist()):
        own = ranks.ranks[ranks.offsets[q] : ranks.offsets[q + 1]].tolist()
        if own:
            precision = sum(k / rank for k, rank in enumerate(own, start=1)) / len(own)
            result.append((product, float(own[0] <= 5), precision))
    return result


def test_intervals_match_products_drawn_one_by_one(case):
    """The draws differ, so the bounds agree only as well as quantiles of 4,000 draws do."""
    ranks, products = case
    found = bootstrap.bootstrap_intervals(ranks, products, seed=3, resamples=4000)
    assert (found["level"], found["resamples"], found["products"]) == (0.95, 4000, 9)
    rng, results = np.random.default_rng(7), {name: query_results(ranks[name], products[name]) for name in ranks}
    drawn = {"p2v": [], "v2p": [], "mean": []}
    for _ in range(4000):
        sample = rng.choice(np.arange(100, 109), 9).tolist()
        both = []
        for name, queries in results.items():
            values = [own for product in sample for owner, *own in queries if owner == product]
            both.append(np.mean(values, axis=0))
            drawn[name].append(both[-1])
        drawn["mean"].append(np.mean(both, axis=0))
    expected = {name: np.quantile(values, [0.025, 0.975], axis=0) for name, values in drawn.items()}
    for name in ranks:
        np.testing.assert_allclose(found["retrieval"][name]["r5"], expected[name][:, 0], atol=0.01)
        np.testing.assert_allclose(found["retrieval"][name]["map"], expected[name][:, 1], atol=0.01)
    np.testing.assert_allclose(found["retrieval_mean"]["mean_map"], expected["mean"][:, 1], atol=0.01)
    assert expected["mean"][1, 1] - expected["mean"][0, 1] > 0.05  # much more than the tolerance


def test_intervals_depend_on_the_seed_only(case):
    ranks, products = case
    first, again, other = (bootstrap.bootstrap_intervals(ranks, products, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_resamples_without_queries_are_ignored():
    """Only one of three products has queries in v2p, so many resamples have none."""
    ranks = {"p2v": ranks_of([[1], [2], [7]]), "v2p": ranks_of([[1], []])}
    products = {"p2v": np.array([1, 2, 3]), "v2p": np.array([3, 1])}
    found = bootstrap.bootstrap_intervals(ranks, products, seed=0)
    assert found["retrieval"]["v2p"]["r1"] == [1, 1]
    assert found["retrieval_mean"]["mean_r1"] == [0.5, pytest.approx(5 / 6)]


def test_every_product_counts_once_in_product_means(case):
    ranks, products = case
    found = bootstrap.product_means(ranks, products)
    for name in ranks:
        results = query_results(ranks[name], products[name])
        owners = sorted({owner for owner, *_ in results})
        means = [np.mean([own for owner, *own in results if owner == product], axis=0) for product in owners]
        assert found[name]["products"] == len(owners)
        assert [found[name]["r5"], found[name]["map"]] == pytest.approx(np.mean(means, axis=0).tolist())


def test_a_query_counts_for_its_smallest_product():
    products = np.array([[7, 9, -1], [3, -1, -1], [-1, -1, -1], [8, 2, 5]])
    assert bootstrap.first_product(products).tolist() == [7, 3, -1, 2]
