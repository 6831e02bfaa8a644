"""The sigmoid loss on a ring of devices against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cope_jax.losses import ring
from cope_jax.losses.pairs import Pair, join_vectors, split_vectors
from cope_jax.losses.sigmoid import init_scalars, sigmoid_loss
from cope_jax.parallel.mesh import batch_sharding, make_mesh

from .conftest import PAIRS, PRECISIONS, as_float64, check_rounding, shared

T, BETA = 7.0, -2.5
ALL_PAIRS = (*PAIRS, Pair("video", "video", 0.75), Pair("page", "page"))


def formula(views):
    """Computes the loss from the whole matrix of each pair, with the gradients by hand."""
    views = as_float64(views)
    gradients = {name: np.zeros_like(view.vectors) for name, view in views.items()}
    total, log_t, bias = 0.0, 0.0, 0.0
    for pair in ALL_PAIRS:
        a, b = views[pair.a], views[pair.b]
        z = np.where(shared(a, b), 1.0, -1.0)
        s = a.vectors @ b.vectors.T
        compared = np.outer(a.present, b.present) & ~(np.eye(len(s), dtype=bool) & (pair.a == pair.b))
        factor = pair.weight / len(s) * compared
        exponent = -z * (T * s + BETA)
        total += (factor * np.log1p(np.exp(exponent))).sum()
        slope = factor * -z / (1 + np.exp(-exponent))
        gradients[pair.a] += T * slope @ b.vectors
        gradients[pair.b] += T * slope.T @ a.vectors
        log_t += (slope * s).sum() * T
        bias += slope.sum()
    return total, gradients, {"log_t": log_t, "bias": bias}


def loss_and_gradients(views, mesh, *, factor=1.0, pairs=ALL_PAIRS, precision="highest"):
    vectors, rest = split_vectors(views)

    def loss(vectors, scalars):
        views = join_vectors(vectors, rest)
        value, statistics = sigmoid_loss(views, scalars, pairs=pairs, mesh=mesh, precision=precision)
        return factor * value, statistics

    scalars = init_scalars(temperature=T, bias=BETA)
    (value, statistics), (gradients, of_scalars) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
        vectors, scalars
    )
    return value, gradients, of_scalars, statistics


@pytest.mark.parametrize(("tile", "gather_limit"), [(2, 0), (5, 23), (256, 0), (5, 24), (256, 8192)])
def test_loss_and_gradients_equal_the_formula(make_views, mesh, tile, gather_limit, monkeypatch):
    monkeypatch.setattr(ring, "TILE", tile)
    monkeypatch.setattr(ring, "GATHER_LIMIT", gather_limit)
    views = make_views(24)
    expected = formula(views)
    for value, reference in zip(loss_and_gradients(views, mesh), expected, strict=False):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), value, reference)


def test_the_gradient_is_scaled_by_the_cotangent(make_views, one_device):
    views = make_views(6)
    once, thrice = (loss_and_gradients(views, one_device, factor=factor)[:3] for factor in (1.0, 3.0))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(3 * x, y, rtol=1e-6), once, thrice)


def test_a_missing_item_does_not_change_loss_or_gradient(make_views, one_device):
    views = make_views(6, missing=False)
    present = views["video"].present.at[2].set(False)
    views["video"] = views["video"]._replace(present=present)
    changed = views | {"video": views["video"]._replace(vectors=views["video"].vectors.at[2].set(9.0))}
    before, after = (loss_and_gradients(s, one_device) for s in (views, changed))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    np.testing.assert_array_equal(before[1]["video"][2], np.zeros(5))


def test_initial_values_are_those_of_the_paper():
    scalars = init_scalars(temperature=10.0, bias=-10.0)
    np.testing.assert_allclose([jnp.exp(scalars["log_t"]), scalars["bias"]], [10.0, -10.0], rtol=1e-6)


def test_the_loss_does_not_overflow(make_views, one_device):
    views = make_views(6, missing=False)
    views["video"] = views["page"]._replace(vectors=-views["page"].vectors)
    scalars = init_scalars(temperature=1e4, bias=0.0)
    loss, _ = jax.jit(lambda views: sigmoid_loss(views, scalars, pairs=[Pair("page", "video")], mesh=one_device))(views)
    assert np.isfinite(loss)
    assert loss > 1e3


def test_in_a_ring_memory_of_a_device_does_not_grow_with_the_number_of_devices(make_views, monkeypatch):
    """Each of eight devices has a chunk of three rows; its program contains no array of all 24."""
    monkeypatch.setattr(ring, "GATHER_LIMIT", 0)
    views = make_views(24, E=7)
    mesh = make_mesh(data=8, fsdp=1, tensor=1)
    sharding = batch_sharding(mesh)

    def loss(vectors, rest):
        views = join_vectors(vectors, rest)
        return sigmoid_loss(views, init_scalars(temperature=T, bias=BETA), pairs=PAIRS, mesh=mesh)[0]

    gradient = jax.jit(jax.grad(loss), in_shardings=(sharding, sharding), out_shardings=sharding)
    program = gradient.lower(*split_vectors(views))
    text = program.compile().as_text()
    assert "collective-permute" in text
    assert "[3,7]" in text
    assert "[24," not in text
    assert "all-gather" not in text


@PRECISIONS
def test_the_error_of_products_in_each_precision(make_views, one_device, precision, least, most):
    views = make_views(24, E=64)
    found = loss_and_gradients(views, one_device, precision=precision)
    check_rounding(found, formula(views), least=least, most=most)
