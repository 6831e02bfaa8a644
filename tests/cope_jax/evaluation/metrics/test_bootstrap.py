"""Intervals and macro averages against loops over products."""

import numpy as np
import pytest

from cope_jax.evaluation.metrics import bootstrap, breakdown
from cope_jax.evaluation.metrics.ranks import Ranks
from cope_jax.evaluation.metrics.retrieval import summary


def ranks_of(first: list[list[int]], gallery: int = 50) -> Ranks:
    """The ranks of each query's positives."""
    flat = np.array([rank for ranks in first for rank in ranks])
    offsets = np.concatenate([[0], np.cumsum([len(ranks) for ranks in first])])
    return Ranks(offsets, np.zeros_like(flat), np.zeros(len(flat)), flat, gallery)


@pytest.fixture(scope="module")
def case():
    """Two directions of 60 and 45 queries, a few without a positive, of 9 products."""
    rng = np.random.default_rng(4)
    ranks, products = {}, {}
    for name, size in (("p2v", 60), ("v2p", 45)):
        numbers = rng.integers(0, 4, size)
        ranks[name] = ranks_of([np.sort(rng.choice(15, n, replace=False) + 1).tolist() for n in numbers])
        products[name] = rng.integers(100, 109, size)
    return ranks, products


def marks(ranks: Ranks, products: np.ndarray) -> list[tuple[int, float, float]]:
    """(product, R@5, average precision) of every query with a positive."""
    result = []
    for q, product in enumerate(products.tolist()):
        own = ranks.ranks[ranks.offsets[q] : ranks.offsets[q + 1]].tolist()
        if own:
            precision = sum(k / rank for k, rank in enumerate(own, start=1)) / len(own)
            result.append((product, float(own[0] <= 5), precision))
    return result


def test_intervals_are_those_of_products_drawn_one_by_one(case):
    """The draws differ, so the bounds agree as far as 4,000 draws of a quantile do."""
    ranks, products = case
    found = bootstrap.intervals(ranks, products, seed=3, resamples=4000)
    assert (found["level"], found["resamples"], found["products"]) == (0.95, 4000, 9)
    rng, of_queries = np.random.default_rng(7), {name: marks(ranks[name], products[name]) for name in ranks}
    drawn = {"p2v": [], "v2p": [], "mean": []}
    for _ in range(4000):
        sample = rng.choice(np.arange(100, 109), 9).tolist()
        both = []
        for name, queries in of_queries.items():
            values = [mark[1:] for product in sample for mark in queries if mark[0] == product]
            both.append(np.mean(values, axis=0))
            drawn[name].append(both[-1])
        drawn["mean"].append(np.mean(both, axis=0))
    expected = {name: np.quantile(values, [0.025, 0.975], axis=0) for name, values in drawn.items()}
    for name in ranks:
        np.testing.assert_allclose(found["retrieval"][name]["r5"], expected[name][:, 0], atol=0.01)
        np.testing.assert_allclose(found["retrieval"][name]["map"], expected[name][:, 1], atol=0.01)
    np.testing.assert_allclose(found["retrieval_mean"]["mean_map"], expected["mean"][:, 1], atol=0.01)
    assert expected["mean"][1, 1] - expected["mean"][0, 1] > 0.05  # so that the tolerance means something


def test_intervals_repeat_with_the_seed_and_change_with_it(case):
    ranks, products = case
    first, again, other = (bootstrap.intervals(ranks, products, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_resample_without_queries_is_ignored():
    """Only one of three products has queries of v2p: many resamples lack it."""
    ranks = {"p2v": ranks_of([[1], [2], [7]]), "v2p": ranks_of([[1], []])}
    products = {"p2v": np.array([1, 2, 3]), "v2p": np.array([3, 1])}
    found = bootstrap.intervals(ranks, products, seed=0)
    assert found["retrieval"]["v2p"]["r1"] == [1, 1]
    assert found["retrieval_mean"]["mean_r1"] == [0.5, pytest.approx(5 / 6)]


def test_every_product_counts_once_in_the_macro_average(case):
    ranks, products = case
    found = bootstrap.macro(ranks, products)
    for name in ranks:
        values = marks(ranks[name], products[name])
        owners = sorted({mark[0] for mark in values})
        means = [np.mean([mark[1:] for mark in values if mark[0] == owner], axis=0) for owner in owners]
        assert found[name]["products"] == len(owners)
        assert [found[name]["r5"], found[name]["map"]] == pytest.approx(np.mean(means, axis=0).tolist())


def test_a_query_counts_for_its_smallest_product():
    products = np.array([[7, 9, -1], [3, -1, -1], [-1, -1, -1], [8, 2, 5]])
    assert bootstrap.first_product(products).tolist() == [7, 3, -1, 2]


def test_parts_by_frames_and_text():
    ranks = ranks_of([[1], [3], [], [12], [2, 5]])
    frames = {"p2v": np.array([1, 3, 4, 2, 9])}
    parts = breakdown.by_frames({"p2v": ranks}, frames)["p2v"]
    assert list(parts) == ["1", "2-3", "8-15"]  # the item with 4 frames has no positive
    assert (parts["2-3"]["queries"], parts["2-3"]["r5"], parts["2-3"]["median_rank"]) == (2, 0.5, 7.5)
    texts = breakdown.by_text({"p2v": ranks}, {"p2v": np.array([True, False, False, True, True])})["p2v"]
    assert {part: (metrics["queries"], metrics["left_out"]) for part, metrics in texts.items()} == {
        "with": (3, 0),
        "without": (1, 1),
    }
    assert texts["with"]["map"] == pytest.approx((1 + 1 / 12 + (1 / 2 + 2 / 5) / 2) / 3)
    whole = summary(ranks)
    assert sum(part["queries"] for part in parts.values()) == whole["queries"] == 4


def test_frame_parts():
    counts = np.array([0, 1, 2, 3, 4, 7, 8, 100])
    assert breakdown.frame_parts(counts).tolist() == ["0", "1", "2-3", "2-3", "4-7", "4-7", "8-15", "64-127"]
