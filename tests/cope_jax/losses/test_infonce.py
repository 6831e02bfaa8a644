"""InfoNCE on a ring of devices against float64 loops, and against torch for one item per product."""

import os

import jax
import numpy as np
import pytest

from cope_jax.losses import ring
from cope_jax.losses.infonce import infonce_loss
from cope_jax.losses.pairs import Pair, join_vectors, split_vectors

from .conftest import PAIRS, PRECISIONS, as_float64, check_rounding, shared

TEMPERATURE, SMOOTHING = 0.2, 0.1


def formula(views):
    """Computes the cross-entropy item by item, with the gradients by hand."""
    views = as_float64(views)
    gradients = {name: np.zeros_like(view.vectors) for name, view in views.items()}
    total = 0.0
    for pair in PAIRS:
        for a, b in ((pair.a, pair.b), (pair.b, pair.a)):
            own, other = views[a], views[b]
            same = shared(own, other)
            picking = [i for i in range(len(same)) if own.present[i] and other.present[i]]
            for i in picking:
                candidates = [j for j in range(len(same)) if other.present[j] and (j == i or not same[i, j])]
                logits = other.vectors[candidates] @ own.vectors[i] / TEMPERATURE
                probability = np.exp(logits) / np.exp(logits).sum()
                target = np.full(len(candidates), SMOOTHING / len(candidates))
                target[candidates.index(i)] += 1 - SMOOTHING
                factor = pair.weight / 2 / len(picking)
                total -= factor * (target * np.log(probability)).sum()
                slope = factor * (probability - target) / TEMPERATURE
                gradients[a][i] += slope @ other.vectors[candidates]
                gradients[b][candidates] += np.outer(slope, own.vectors[i])
    return total, gradients


def loss_and_gradients(views, mesh, *, pairs=PAIRS, temperature=TEMPERATURE, smoothing=SMOOTHING, precision="highest"):
    vectors, rest = split_vectors(views)

    def loss(vectors):
        views = join_vectors(vectors, rest)
        settings = {"temperature": temperature, "smoothing": smoothing, "precision": precision}
        return infonce_loss(views, pairs=pairs, mesh=mesh, **settings)[0]

    return jax.jit(jax.value_and_grad(loss))(vectors)


@pytest.mark.parametrize(("tile", "gather_limit"), [(2, 0), (5, 23), (256, 0), (5, 24), (256, 8192)])
def test_loss_and_gradients_equal_the_formula(make_views, mesh, tile, gather_limit, monkeypatch):
    monkeypatch.setattr(ring, "TILE", tile)
    monkeypatch.setattr(ring, "GATHER_LIMIT", gather_limit)
    views = make_views(24)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        loss_and_gradients(views, mesh),
        formula(views),
    )


def test_with_one_item_per_product_it_equals_the_cross_entropy_of_torch(make_views, one_device):
    if os.environ.get("CI") != "true":
        pytest.importorskip("torch")
    import torch

    views = make_views(10, missing=False)
    alone = np.arange(10, dtype=np.int32)[:, None]
    views = {name: view._replace(products=jax.numpy.asarray(alone)) for name, view in views.items()}
    loss, _ = loss_and_gradients(views, one_device, pairs=[Pair("page", "live")], temperature=0.05)
    a, b = (torch.tensor(np.asarray(views[name].vectors, np.float64)) for name in ("page", "live"))
    logits, labels = a @ b.T / 0.05, torch.arange(10)
    expected = sum(torch.nn.functional.cross_entropy(x, labels, label_smoothing=0.1) for x in (logits, logits.T)) / 2
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)


def test_a_missing_item_does_not_change_loss_or_gradient(make_views, one_device):
    views = make_views(6, missing=False)
    views["live"] = views["live"]._replace(present=views["live"].present.at[2].set(False))
    changed = views | {"live": views["live"]._replace(vectors=views["live"].vectors.at[2].set(9.0))}
    before, after = (loss_and_gradients(s, one_device) for s in (views, changed))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_batch_without_partners_has_loss_zero(make_views, one_device):
    views = make_views(4, missing=False)
    views["video"] = views["video"]._replace(present=np.zeros(4, bool))
    loss, gradients = loss_and_gradients(views, one_device, pairs=[Pair("page", "video")])
    assert loss == 0
    for gradient in gradients.values():
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_a_sharp_temperature_does_not_overflow(make_views, one_device):
    loss, gradients = loss_and_gradients(make_views(12), one_device, temperature=1e-3)
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@PRECISIONS
def test_the_error_of_products_in_each_precision(make_views, one_device, precision, least, most):
    views = make_views(24, E=64)
    found = loss_and_gradients(views, one_device, precision=precision)
    check_rounding(found, formula(views), least=least, most=most)
