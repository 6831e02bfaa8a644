"""InfoNCE on a ring of devices against loops in float64, and against torch on a case that it knows."""

import os

import jax
import numpy as np
import pytest

from cope_jax.losses import ring
from cope_jax.losses.infonce import infonce_loss
from cope_jax.losses.pairs import Pair, join_vectors, split_vectors

from .conftest import PAIRS, as_float64, shared

TEMPERATURE, SMOOTHING = 0.2, 0.1


def formula(sides):
    """Item by item: the cross-entropy of a softmax over its candidates against the smoothed target."""
    sides = as_float64(sides)
    gradients = {name: np.zeros_like(side.vectors) for name, side in sides.items()}
    total = 0.0
    for pair in PAIRS:
        for a, b in ((pair.a, pair.b), (pair.b, pair.a)):
            own, other = sides[a], sides[b]
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


def loss_and_gradients(sides, mesh, *, pairs=PAIRS, temperature=TEMPERATURE, smoothing=SMOOTHING):
    vectors, rest = split_vectors(sides)

    def loss(vectors):
        sides = join_vectors(vectors, rest)
        return infonce_loss(sides, pairs=pairs, temperature=temperature, smoothing=smoothing, mesh=mesh)[0]

    return jax.jit(jax.value_and_grad(loss))(vectors)


@pytest.mark.parametrize("tile", [2, 5, 256])
def test_loss_and_gradients_equal_the_formula(make_sides, mesh, tile, monkeypatch):
    monkeypatch.setattr(ring, "TILE", tile)
    sides = make_sides(24)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        loss_and_gradients(sides, mesh),
        formula(sides),
    )


def test_one_item_a_product_is_torchs_cross_entropy(make_sides, one_device):
    if os.environ.get("CI") != "true":  # there its absence is an error
        pytest.importorskip("torch")
    import torch

    sides = make_sides(10, missing=False)
    alone = np.arange(10, dtype=np.int32)[:, None]
    sides = {name: side._replace(products=jax.numpy.asarray(alone)) for name, side in sides.items()}
    loss, _ = loss_and_gradients(sides, one_device, pairs=[Pair("page", "live")], temperature=0.05)
    a, b = (torch.tensor(np.asarray(sides[name].vectors, np.float64)) for name in ("page", "live"))
    logits, labels = a @ b.T / 0.05, torch.arange(10)
    expected = sum(torch.nn.functional.cross_entropy(x, labels, label_smoothing=0.1) for x in (logits, logits.T)) / 2
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)


def test_a_missing_item_cannot_change_loss_or_gradient(make_sides, one_device):
    sides = make_sides(6, missing=False)
    sides["live"] = sides["live"]._replace(present=sides["live"].present.at[2].set(False))
    changed = sides | {"live": sides["live"]._replace(vectors=sides["live"].vectors.at[2].set(9.0))}
    before, after = (loss_and_gradients(s, one_device) for s in (sides, changed))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_batch_without_partners_gives_zero(make_sides, one_device):
    sides = make_sides(4, missing=False)
    sides["video"] = sides["video"]._replace(present=np.zeros(4, bool))
    loss, gradients = loss_and_gradients(sides, one_device, pairs=[Pair("page", "video")])
    assert loss == 0
    for gradient in gradients.values():
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_a_sharp_temperature_does_not_overflow(make_sides, one_device):
    loss, gradients = loss_and_gradients(make_sides(12), one_device, temperature=1e-3)
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
