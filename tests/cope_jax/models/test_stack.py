"""Stacks: every way of running one equals its layers called one by one, values and gradients."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cope_jax.models.compute import REMATS, Compute
from cope_jax.models.layers import Mlp, dropout
from cope_jax.models.stack import make_stack, run_stack

DEPTH, B, D = 3, 2, 5
WAYS = list(product((True, False), REMATS))


class Layer(nnx.Module):
    """A layer with all that a stack must hand on: parameters, context, an option of its own, random draws."""

    def __init__(self, *, rngs):
        self.mlp = Mlp(D, 7, "gelu", dtype=jnp.float32, rngs=rngs)

    def __call__(self, x, shift, *, scale=0.5, rngs):
        return x + dropout(scale * self.mlp(x) + shift, 0.4, rngs)


def way(scan_layers: bool, remat: str) -> Compute:
    return Compute(jnp.dtype("float32"), scan_layers=scan_layers, remat=remat)


@pytest.fixture(scope="module")
def stack():
    return make_stack(lambda rngs: Layer(rngs=rngs), DEPTH, rngs=nnx.Rngs(params=3))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, D)).astype(np.float32), rng.normal(size=(B, D)).astype(np.float32)


def run(stack, compute, x, shift, *, seed=None, **scale):
    """Output and gradients with respect to parameters and input."""
    graphdef, params = nnx.split(stack)

    def loss(params, x):
        rngs = None if seed is None else nnx.Rngs(dropout=seed)
        y = run_stack(nnx.merge(graphdef, params), x, shift, compute=compute, layerwise=scale, rngs=rngs)
        return jnp.sin(y).sum(), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)
    return y, gradients


def test_layers_start_with_values_of_their_own(stack):
    kernel = np.asarray(stack.mlp.up.kernel[...])
    assert kernel.shape == (DEPTH, D, 7)
    assert all(np.abs(kernel[i] - kernel[j]).max() > 0.1 for i, j in ((0, 1), (0, 2), (1, 2)))
    # LeCun's initial values by the inputs of one layer, not of all.
    wide = make_stack(lambda rngs: nnx.Linear(200, 100, rngs=rngs), 4, rngs=nnx.Rngs(params=0))
    np.testing.assert_allclose(np.std(wide.kernel[...], axis=(-2, -1)), 200**-0.5, rtol=0.05)


@pytest.mark.parametrize(("scan_layers", "remat"), WAYS)
def test_a_stack_is_its_layers_one_after_another(stack, inputs, scan_layers, remat):
    x, shift = inputs
    found, (gradients, _) = run(stack, way(scan_layers, remat), x, shift, scale=jnp.array([0.5, 0.0, 2.0]))
    graphdef, params = nnx.split(stack)

    def by_hand(params):
        y = x
        for i, scale in enumerate((0.5, 0.0, 2.0)):
            layer = nnx.merge(graphdef, jax.tree.map(lambda stacked, i=i: stacked[i], params))
            y = layer(y, shift, scale=scale, rngs=None)
        return jnp.sin(y).sum(), y

    expected_gradients, expected = jax.grad(by_hand, has_aux=True)(params)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, expected_gradients)


def test_dropout_is_the_same_whichever_way_the_layers_run(stack, inputs):
    results = [run(stack, way(*settings), *inputs, seed=5) for settings in WAYS]
    for result in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), result, results[0])
    assert np.abs(results[0][0] - run(stack, way(True, "none"), *inputs, seed=6)[0]).max() > 0.1


def test_each_layer_draws_dropout_of_its_own(inputs):
    """Layers that only add a dropped constant: equal draws would add 0 or DEPTH times the same."""

    class Add(nnx.Module):
        def __init__(self, *, rngs):
            self.unused = nnx.Param(jnp.zeros(()))

        def __call__(self, x, *, rngs):
            return x + dropout(jnp.ones_like(x), 0.5, rngs)

    adds = make_stack(lambda rngs: Add(rngs=rngs), DEPTH, rngs=nnx.Rngs(params=0))
    total = run_stack(adds, jnp.zeros((8, 9)), compute=way(True, "none"), rngs=nnx.Rngs(dropout=1))
    assert set(np.unique(total)) == {0.0, 2.0, 4.0, 6.0}


@pytest.mark.parametrize("scan_layers", [True, False])
def test_rematerialisation_keeps_what_its_name_says(stack, inputs, scan_layers):
    """Counts the hidden layers of the MLP among what the forward pass hands to the backward one."""
    graphdef, params = nnx.split(stack)
    kept = {}
    for remat in REMATS:

        def forward(params, x, remat=remat):
            return run_stack(nnx.merge(graphdef, params), x, inputs[1], compute=way(scan_layers, remat))

        _, backward = jax.vjp(forward, params, inputs[0])
        kept[remat] = [leaf.shape[-2:] for leaf in jax.tree.leaves(backward)].count((B, 7))
    layers = 1 if scan_layers else DEPTH  # a scan keeps one array for all of them
    assert kept["block"] == 0
    assert kept["dots"] == layers  # what the product gives, but not what the activation makes of it
    assert kept["none"] >= 3 * layers


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown remat 'all': choose one of none, block, dots"):
        way(True, "all")
    with pytest.raises(ValueError, match="unknown attention 'flash': choose one of auto, xla, cudnn"):
        Compute(jnp.dtype("float32"), attention="flash")
