"""The map compared with a singular value decomposition."""

from collections import Counter

import numpy as np
import pytest

from cope_jax.evaluation.embed_items import Items
from cope_jax.evaluation.report.pca_map import pca_map
from data_prep.common.domains import DOMAINS


def items_of(vectors: np.ndarray, products: np.ndarray) -> Items:
    numbers = np.arange(len(vectors))
    return Items(vectors, products[:, None], numbers, numbers, np.ones_like(numbers), np.ones(len(vectors), bool))


@pytest.fixture(scope="module")
def items():
    """Domains with 20, 23, and 26 items of ten products; the pages are shifted away from the others."""
    rng = np.random.default_rng(0)
    made = {}
    for size, domain in zip((20, 23, 26), DOMAINS, strict=True):
        vectors = rng.normal(size=(size, 6)) * [5, 1, 4, 1, 1, 1] + (9 * (domain == "page"))
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        made[domain] = items_of(vectors.astype(np.float32), rng.integers(0, 10, size))
    return made


@pytest.mark.parametrize("center_domains", [False, True])
def test_points_are_projections_on_the_first_two_singular_vectors(items, center_domains):
    found = pca_map(items, seed=0, center_domains=center_domains)
    vectors = [items[domain].vectors.astype(np.float64) for domain in DOMAINS]
    common = np.concatenate(vectors).mean(axis=0)
    centered = [own - (own.mean(axis=0) if center_domains else common) for own in vectors]
    _, values, axes = np.linalg.svd(np.concatenate(centered), full_matrices=False)
    for domain, own in zip(DOMAINS, centered, strict=True):
        assert found.positions[domain].tolist() == list(range(len(own)))
        np.testing.assert_allclose(np.abs(found.points[domain]), np.abs(own @ axes[:2].T), atol=1e-8)
    assert found.explained == pytest.approx((values[:2] ** 2).sum() / (values**2).sum())
    again = pca_map(items, seed=0, center_domains=center_domains)
    np.testing.assert_array_equal(again.points["live"], found.points["live"])


def test_products_are_shown_with_all_items(items):
    found = pca_map(items, seed=1, center_domains=False, limit=30)
    shown = {int(p) for domain in DOMAINS for p in items[domain].products[found.positions[domain], 0]}
    every = [int(p) for domain in DOMAINS for p in items[domain].products[:, 0]]
    sizes = Counter(every)
    assert sum(map(len, found.positions.values())) == sum(sizes[product] for product in shown) <= 30
    assert len(shown) > 1


def test_product_with_too_many_items_is_thinned_out(items):
    found = pca_map(items, seed=1, center_domains=False, limit=2)
    (product,) = {int(p) for domain in DOMAINS for p in items[domain].products[found.positions[domain], 0]}
    shown, every = (
        sum(map(len, found.positions.values())),
        sum((own.products == product).sum() for own in items.values()),
    )
    assert 1 <= shown <= 4 < every
