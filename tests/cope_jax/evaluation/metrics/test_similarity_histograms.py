"""Histograms compared with the matrix of all pairs."""

import numpy as np
import pytest

from cope_jax.evaluation.metrics.ranks import ranks_between
from cope_jax.evaluation.metrics.similarity_histograms import similarity_histograms


def unit(rng, rows: int) -> np.ndarray:
    vectors = rng.normal(size=(rows, 3))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    queries, gallery = unit(rng, 40), unit(rng, 30)
    products = rng.integers(0, 5, (40, 1)), rng.integers(0, 5, (30, 1))
    return queries, gallery, *products, ranks_between(queries, gallery, *products)[0]


def test_histograms_cover_all_positives_and_a_sample_of_negatives(problem):
    queries, gallery, a, b, ranks = problem
    found = similarity_histograms(queries, gallery, ranks, seed=3)
    same = a == b.T
    scores = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    np.testing.assert_allclose(found.positives, np.histogram(scores[same], found.edges)[0] / same.sum())
    np.testing.assert_allclose(found.negatives, np.histogram(scores[~same], found.edges)[0] / (~same).sum(), atol=5e-3)
    nearest = np.where(same, -np.inf, scores).max(axis=1)
    np.testing.assert_allclose(found.nearest_wrong, np.histogram(nearest, found.edges)[0] / 40)
    assert found.overlap == pytest.approx(sum(map(min, found.positives, found.negatives)))


def test_separable_similarities_do_not_overlap():
    vectors = np.eye(4, dtype=np.float32)
    products = np.arange(4)[:, None]
    ranks = ranks_between(vectors, vectors, products, products)[0]
    found = similarity_histograms(vectors, vectors, ranks, seed=0)
    assert found.overlap == 0
    assert found.positives[-1] == found.negatives[0] == found.nearest_wrong[0] == 1
