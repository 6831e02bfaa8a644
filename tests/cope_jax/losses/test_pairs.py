"""Shared products, and the statistics of a pair on every mesh, against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cope_jax.losses.infonce import infonce_loss
from cope_jax.losses.pairs import Pair, einsum, share_product
from cope_jax.losses.sigmoid import init_scalars, sigmoid_loss

from .conftest import as_float64, shared

PRODUCTS_A = [[1, -1, -1], [2, 9, -1], [3, -1, -1], [1, -1, -1], [5, -1, -1], [6, 8, -1], [7, -1, -1]]
PRODUCTS_B = [[1, -1, -1], [2, -1, -1], [9, 3, -1], [4, -1, -1], [5, -1, -1], [8, -1, -1], [7, 6, 1]]


def test_share_product_finds_every_shared_id_and_ignores_padding():
    found = np.asarray(share_product(jnp.asarray(PRODUCTS_A), jnp.asarray(PRODUCTS_B)))
    expected = [[bool(set(x) & set(y) - {-1}) for y in PRODUCTS_B] for x in PRODUCTS_A]
    np.testing.assert_array_equal(found, expected)
    # By hand: rows of product 1 match columns 0 and 6; (2, 9), (3), (5), (6, 8) and (7) match 2, 1, 1, 2 and 1.
    assert found.sum(axis=1).tolist() == [2, 2, 1, 2, 1, 2, 1]


def test_similarities_and_accuracies_equal_those_of_the_whole_matrix(make_views, mesh):
    views, pairs = make_views(24), [Pair("page", "live")]
    _, of_sigmoid = jax.jit(
        lambda s: sigmoid_loss(s, init_scalars(temperature=5.0, bias=-1.0), pairs=pairs, mesh=mesh)
    )(views)
    _, of_infonce = jax.jit(lambda s: infonce_loss(s, pairs=pairs, temperature=0.1, smoothing=0.0, mesh=mesh))(views)
    exact = as_float64(views)
    page, live = exact["page"], exact["live"]
    similarity, same = page.vectors @ live.vectors.T, shared(page, live)
    both = np.outer(page.present, live.present)

    def accuracy(similarity, same, both):
        asked = (same & both).any(axis=1)
        nearest = np.where(both, similarity, -np.inf).argmax(axis=1)
        return same[np.arange(len(same)), nearest][asked].mean()

    expected = {
        "positive/page_live": similarity[same & both].mean(),
        "negative/page_live": similarity[~same & both].mean(),
        "accuracy/page_live": accuracy(similarity, same, both),
        "accuracy/live_page": accuracy(similarity.T, same.T, both.T),
    }
    for statistics in (of_sigmoid, of_infonce):
        assert statistics.keys() == {"loss/page_live", *expected}
        for name, value in expected.items():
            np.testing.assert_allclose(statistics[name][0] / statistics[name][1], value, rtol=1e-5)


def test_the_losses_of_pairs_add_up_to_the_loss(make_views, one_device):
    pairs = [Pair("page", "video", 2.0), Pair("video", "live", 0.5)]

    def losses(views):
        sigmoid = sigmoid_loss(views, init_scalars(temperature=5.0, bias=-1.0), pairs=pairs, mesh=one_device)
        return sigmoid, infonce_loss(views, pairs=pairs, temperature=0.1, smoothing=0.1, mesh=one_device)

    for loss, statistics in jax.jit(losses)(make_views(9)):
        parts = [pair.weight * statistics[f"loss/{pair.name}"][0] for pair in pairs]
        np.testing.assert_allclose(loss, sum(parts), rtol=1e-6)


def test_products_are_asked_for_in_float32():
    """CPUs compute them so anyway; GPUs and TPUs would round the factors."""
    product = partial(einsum, "ik,jk->ij", precision="highest")
    assert "Precision.HIGHEST" in str(jax.make_jaxpr(product)(jnp.ones((2, 3)), jnp.ones((4, 3))))
