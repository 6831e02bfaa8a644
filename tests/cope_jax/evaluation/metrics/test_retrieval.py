import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from cope_jax.evaluation.metrics import retrieval
from cope_jax.evaluation.metrics.ranks import Ranks, ranks_between, ranks_within
from cope_jax.evaluation.metrics.retrieval import (
    by_part,
    chance_curve,
    frame_range,
    recall_curve,
    similarity_histograms,
)
from data_prep.common.domains import DOMAINS


def ids(*rows: tuple[int, ...]) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([(*row, *(-1,) * (width - len(row))) for row in rows], np.int32)


def unit(rng: np.random.Generator, rows: int, dimensions: int) -> np.ndarray:
    vectors = rng.normal(size=(rows, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def all_directions(embeddings):
    return retrieval.direction_metrics(retrieval.direction_ranks(embeddings))


def one_direction(queries, gallery, query_products, gallery_products, block=None):
    return retrieval.retrieval_metrics(
        ranks_between(queries, gallery, query_products, gallery_products, block=block)[0]
    )


def by_brute_force(queries, gallery, query_products, gallery_products) -> dict[str, float]:
    """Sorts the whole gallery for each query, item by item, in Python's float64."""
    first, precisions, gains = [], [], []
    for query, products in zip(queries.tolist(), query_products.tolist(), strict=True):
        ranking = []
        for item, others in zip(gallery.tolist(), gallery_products.tolist(), strict=True):
            score = sum(a * b for a, b in zip(query, item, strict=True))
            ranking.append((-score, bool({*products} & {*others} - {-1})))
        ranking.sort()  # by falling score; among equal scores, positives last
        found, precision = 0, []
        for rank, (_, positive) in enumerate(ranking, start=1):
            if positive:
                found += 1
                precision.append(found / rank)
                if found == 1:
                    first.append(rank)
        if found:
            precisions.append(sum(precision) / found)
            gain = sum(1 / math.log2(1 + rank) for rank, (_, positive) in enumerate(ranking[:10], 1) if positive)
            gains.append(gain / sum(1 / math.log2(1 + rank) for rank in range(1, min(found, 10) + 1)))
    recalls = {f"r{k}": sum(rank <= k for rank in first) / len(first) for k in (1, 5, 10)}
    first.sort()
    median = (first[(len(first) - 1) // 2] + first[len(first) // 2]) / 2
    sizes = {"queries": len(first), "left_out": len(queries) - len(first), "gallery": len(gallery)}
    means = {"map": sum(precisions) / len(precisions), "ndcg10": sum(gains) / len(gains)}
    return recalls | means | {"median_rank": median} | sizes


@st.composite
def problems(draw):
    """Embeddings of small integers, so that scores are exact and often tie; up to three products per item."""
    sizes = [draw(st.integers(1, 14)), draw(st.integers(1, 17))]
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    embeddings = [rng.integers(-2, 3, (size, 3)).astype(np.float32) for size in sizes]
    products = []
    for size, width in zip(sizes, (2, 3), strict=True):
        products.append(rng.integers(0, 6, (size, width)).astype(np.int32))
        products[-1][:, 1:][rng.random((size, width - 1)) < 0.6] = -1
    products[1][0, 0] = products[0][0, 0]  # at least one positive
    return *embeddings, *products


@settings(deadline=None, max_examples=150)
@given(problem=problems(), block=st.integers(1, 6))
def test_retrieval_matches_brute_force(problem, block):
    assert one_direction(*problem, block=block) == pytest.approx(by_brute_force(*problem), rel=1e-12)


@settings(deadline=None, max_examples=100)
@given(problem=problems(), block=st.integers(1, 6))
def test_ranks_within_match_brute_force_without_the_query(problem, block):
    """Each item is a query in a gallery of the others."""
    _, items, _, products = problem
    ranks = ranks_within(items, products, block=block)
    expected = []
    for own in range(len(items)):
        others = np.arange(len(items)) != own
        shared = [bool({*products[own]} & {*other} - {-1}) for other in products[others].tolist()]
        if any(shared):
            alone = items[own : own + 1], items[others], products[own : own + 1], products[others]
            expected.append(by_brute_force(*alone)["map"])
    assert ranks.gallery == len(items) - 1
    np.testing.assert_allclose(ranks.average_precision, expected, rtol=1e-12)


def test_average_precision_matches_scikit_learn():
    rng = np.random.default_rng(8)
    queries, gallery = unit(rng, 30, 6), unit(rng, 70, 6)
    query_products, gallery_products = rng.integers(0, 8, (30, 1)), rng.integers(0, 8, (70, 1))
    scores = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    expected = [average_precision_score(query_products[q] == gallery_products[:, 0], scores[q]) for q in range(30)]
    ranks, _ = ranks_between(queries, gallery, query_products, gallery_products)
    np.testing.assert_allclose(ranks.average_precision, expected, rtol=1e-12)


def test_retrieval_matches_brute_force_with_random_scores():
    rng = np.random.default_rng(5)
    problem = unit(rng, 40, 7), unit(rng, 53, 7), rng.integers(0, 12, (40, 1)), rng.integers(0, 12, (53, 2))
    assert one_direction(*problem) == pytest.approx(by_brute_force(*problem), rel=1e-12)


def test_hand_computed_metrics():
    # The gallery has the unit vectors, so a query's coordinates are its scores. ⁺ marks positives.
    queries = np.array(
        [
            [0.9, 0.8, 0.1, 0.0],  #  0.9⁺ 0.8  0.1⁺ 0.0 : ranks 1, 3; precision (1/1 + 2/3) / 2 = 5/6
            [0.5, 0.5, 0.5, 0.2],  #  0.5  0.5⁺ 0.5  0.2 : rank 3, after its ties; precision 1/3
            [0.1, 0.2, 0.3, 0.4],  #  all scores, no positive: left out
            [0.0, 0.3, 0.2, 0.2],  #  0.0  0.3  0.2⁺ 0.2⁺: ranks 2, 3; precision (1/2 + 2/3) / 2 = 7/12
            [0.4, 0.3, 0.2, 0.1],  #  two products: 0.4⁺ 0.3⁺ 0.2⁺ 0.1: ranks 1, 2, 3; precision 1
        ],
        np.float32,
    )
    query_products = ids((10,), (11,), (99,), (12,), (10, 11))
    gallery_products = ids((10,), (11,), (10, 12), (12,))
    result = one_direction(queries, np.eye(4, dtype=np.float32), query_products, gallery_products)
    assert result == {
        "r1": 2 / 4,
        "r5": 1.0,
        "r10": 1.0,
        "map": pytest.approx((5 / 6 + 1 / 3 + 7 / 12 + 1) / 4),
        "ndcg10": pytest.approx((1.5 / 1.63093 + 0.5 + 1.13093 / 1.63093 + 1) / 4, abs=1e-5),  # 0.63093 = 1 / log2(3)
        "median_rank": 1.5,
        "queries": 4,
        "left_out": 1,
        "gallery": 4,
    }


def test_recall_at_the_limits():
    """One positive at each rank 1, 2, …, 12 of a gallery of 12."""
    scores = np.linspace(1, 0.1, 12, dtype=np.float32)
    products = np.arange(12, dtype=np.int32)[:, None]
    result = one_direction(np.tile(scores, (12, 1)), np.eye(12, dtype=np.float32), products, products)
    assert [result[key] for key in ("r1", "r5", "r10", "median_rank")] == [1 / 12, 5 / 12, 10 / 12, 6.5]
    assert result["map"] == pytest.approx(np.mean(1 / np.arange(1, 13)))


def test_all_equal_embeddings_are_the_worst_result():
    """A collapsed model must not look good: equal embeddings tie in every position of a block."""
    row = unit(np.random.default_rng(0), 1, 129)
    products = np.arange(37, dtype=np.int32)[:, None]
    result = one_direction(np.repeat(row, 37, 0), np.repeat(row, 37, 0), products, products, block=5)
    assert (result["r1"], result["r10"], result["median_rank"], result["map"]) == (
        0,
        0,
        37,
        pytest.approx(1 / 37),
    )


def test_block_size_does_not_change_metrics():
    rng = np.random.default_rng(1)
    problem = unit(rng, 61, 33), unit(rng, 83, 33), rng.integers(0, 9, (61, 1)), rng.integers(0, 9, (83, 2))
    results = [one_direction(*problem, block=block) for block in (1, 7, 61, 256)]
    assert all(result == results[0] for result in results[1:])


def test_oracle_is_perfect_in_all_directions():
    """Each product has its own axis; items of two products are between the two."""
    rng = np.random.default_rng(2)
    embeddings = {}
    for domain, size in zip(DOMAINS, (11, 17, 23), strict=True):
        products = np.stack([np.arange(size) % 9, np.full(size, -1)], axis=-1).astype(np.int32)
        products[-1, 1] = (products[-1, 0] + 1) % 9
        axes = np.eye(9)[products[:, 0]] + np.where(products[:, 1:] >= 0, np.eye(9)[products[:, 1]], 0)
        vectors = axes / np.linalg.norm(axes, axis=-1, keepdims=True)
        order = rng.permutation(size)
        embeddings[domain] = vectors[order].astype(np.float32), products[order]
    results = all_directions(embeddings)
    assert list(results) == ["p2v", "v2p", "p2l", "l2p", "v2l", "l2v"]
    sizes = dict(zip("pvl", (11, 17, 23), strict=True))
    for name, metrics in results.items():
        assert (metrics["queries"], metrics["gallery"]) == (sizes[name[0]], sizes[name[2]])
        assert [metrics[key] for key in ("r1", "r5", "r10", "map", "median_rank")] == [1, 1, 1, 1, 1]


def test_directions_are_not_swapped():
    """Two videos share one page's product and the other page has no video: P2V has 1 of 2 queries, V2P 2 of 2."""
    eye = np.eye(2, dtype=np.float32)
    embeddings = {
        "page": (eye, ids((1,), (2,))),
        "video": (eye[[0, 1]], ids((1,), (1,))),
        "live": (eye, ids((2,), (1,))),
    }
    results = all_directions(embeddings)
    assert (results["p2v"]["queries"], results["v2p"]["queries"]) == (1, 2)
    assert (results["p2v"]["map"], results["v2p"]["r1"]) == (1.0, 0.5)


def test_invalid_embeddings_and_missing_positives():
    rng = np.random.default_rng(3)
    pages, videos, products = unit(rng, 2, 5), unit(rng, 3, 5), ids((1,), (2,), (3,))
    embeddings = {"page": (pages, products[:2]), "video": (videos, products), "live": (videos, products + 10)}
    with pytest.raises(ValueError, match=r"page: embeddings have shape \(2, 5\) and products \(3, 1\)"):
        all_directions(embeddings | {"page": (pages, products)})
    invalid = videos.copy()
    invalid[1, 2] = np.nan
    with pytest.raises(ValueError, match="video: 1 embeddings are not finite, the first in row 1"):
        all_directions(embeddings | {"video": (invalid, products)})
    assert list(all_directions(embeddings)) == ["p2v", "v2p"]


def test_padding_is_not_a_product():
    eye = np.eye(2, dtype=np.float32)
    result = one_direction(eye, eye, ids((1,), (2, 3)), ids((1, 4), (2,)))
    assert (result["queries"], result["map"]) == (2, 1.0)
    result = one_direction(eye, eye, ids((1,), (2, 3)), ids((1,), (5, 4)))
    assert result["queries"] == 1


def test_own_domain_and_all_domains():
    """Product 1 has two pages and a video; product 2 has a page and a live item with equal embeddings."""
    axes = np.eye(3, dtype=np.float32)
    embeddings = {
        "page": (axes[[0, 1, 2]], ids((1,), (1,), (2,))),
        "video": (axes[[0]], ids((1,))),
        "live": (axes[[2]], ids((2,))),
    }
    own = retrieval.same_domain(embeddings)
    assert (own["video"], own["live"]) == (None, None)
    # For each page of product 1, the other one ties with the page of product 2.
    counts = {"queries": 2, "left_out": 1, "gallery": 2}
    ndcg = pytest.approx(1 / math.log2(3))
    assert own["page"] == {"r1": 0, "r5": 1, "r10": 1, "map": 0.5, "ndcg10": ndcg, "median_rank": 2} | counts
    every = retrieval.all_domains(embeddings)
    # Page 0: video first, page 1 last of the three others that tie. Page 1: all four tie. Page 2: its live item first.
    precisions = [(1 / 1 + 2 / 4) / 2, (1 / 3 + 2 / 4) / 2, 1]
    assert every["page"]["map"] == pytest.approx(np.mean(precisions))
    assert every["page"]["r1"] == pytest.approx(2 / 3)
    assert (every["live"]["r1"], every["live"]["gallery"], every["live"]["queries"]) == (1, 4, 1)
    assert every["video"]["map"] == pytest.approx((1 + 2 / 4) / 2)


# Four queries: positives at ranks 1 and 3, none, at 2, and at 7 of a gallery of 9.
RANKS = Ranks(
    offsets=np.array([0, 2, 2, 3, 4]),
    rows=np.array([4, 5, 6, 7]),
    scores=np.array([0.9, 0.8, 0.7, 0.6]),
    ranks=np.array([1, 3, 2, 7]),
    gallery=9,
)


def test_metrics_by_part():
    """The second query has no positive."""
    parts = by_part(RANKS, np.array(["few", "few", "none", "many"]))
    assert list(parts) == ["few", "many", "none"]
    assert {part: (own["queries"], own["left_out"]) for part, own in parts.items()} == {
        "few": (1, 1),
        "many": (1, 0),
        "none": (1, 0),
    }
    assert (parts["few"]["map"], parts["many"]["r5"], parts["none"]["median_rank"]) == (pytest.approx(5 / 6), 0, 2)
    assert list(by_part(RANKS, np.array(["a", "b", "a", "a"]))) == ["a"]


def test_frame_ranges_are_powers_of_two():
    ranges = ["0", "1", "2-3", "2-3", "4-7", "4-7", "8-15", "64-127"]
    assert [frame_range(count) for count in (0, 1, 2, 3, 4, 7, 8, 100)] == ranges


def test_recall_curve_rises_at_the_best_rank_of_each_query():
    assert recall_curve(RANKS, 8).tolist() == pytest.approx([1 / 3, *[2 / 3] * 5, 1, 1])
    assert recall_curve(RANKS, 4).tolist() == pytest.approx([1 / 3, *[2 / 3] * 3])


def test_chance_curve_is_drawing_without_replacement():
    """With P positives among 9 items, k draws miss them all with probability C(9 - P, k) / C(9, k)."""
    expected = [
        sum(1 - math.comb(9 - positives, k) / math.comb(9, k) for positives in (2, 1, 1)) / 3 for k in range(1, 10)
    ]
    assert chance_curve(RANKS, 9).tolist() == pytest.approx(expected)
    assert expected[-1] == 1


@pytest.fixture(scope="module")
def labeled_pairs():
    rng = np.random.default_rng(0)
    queries, gallery = unit(rng, 40, 3), unit(rng, 30, 3)
    products = rng.integers(0, 5, (40, 1)), rng.integers(0, 5, (30, 1))
    return queries, gallery, *products, ranks_between(queries, gallery, *products)[0]


def test_histograms_cover_all_positives_and_a_sample_of_negatives(labeled_pairs):
    queries, gallery, a, b, ranks = labeled_pairs
    found = similarity_histograms(queries, gallery, ranks, seed=3)
    same = a == b.T
    scores = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    np.testing.assert_allclose(found.positives, np.histogram(scores[same], found.edges)[0] / same.sum())
    np.testing.assert_allclose(found.negatives, np.histogram(scores[~same], found.edges)[0] / (~same).sum(), atol=5e-3)
    nearest = np.where(same, -np.inf, scores).max(axis=1)
    np.testing.assert_allclose(found.nearest_wrong, np.histogram(nearest, found.edges)[0] / 40)
    assert found.overlap == pytest.approx(sum(map(min, found.positives, found.negatives)))
    assert len(found.positives) == min(50, same.sum() // 4) > 10


def test_histograms_of_one_domain_leave_out_the_items_themselves():
    angles = np.radians([0, 10, 60, 75, 120, 150])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
    ranks = ranks_within(vectors, np.arange(6)[:, None] // 2)
    found = similarity_histograms(vectors, vectors, ranks, seed=0, within=True)
    assert found.edges[-1] == pytest.approx(math.cos(math.radians(10)), abs=1e-6)  # not 1
    nearest = np.cos(np.radians([60, 50, 50, 45, 45, 75]))  # of each item among those of other products
    np.testing.assert_allclose(found.nearest_wrong, np.histogram(nearest, found.edges)[0] / 6)


def test_separable_similarities_do_not_overlap():
    vectors = np.eye(4, dtype=np.float32)
    products = np.arange(4)[:, None]
    ranks = ranks_between(vectors, vectors, products, products)[0]
    found = similarity_histograms(vectors, vectors, ranks, seed=0)
    assert found.overlap == 0
    assert len(found.positives) == 10  # of four pairs
    assert found.positives[-1] == found.negatives[0] == found.nearest_wrong[0] == 1
