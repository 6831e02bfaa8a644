"""Layers against plain NumPy, and stacks against their layers called one by one."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cope_jax.models.dropout import DropoutRngs, dropout
from cope_jax.models.layers import (
    ACTIVATIONS,
    REMATS,
    SHORT,
    Attention,
    ComputeOptions,
    Linear,
    Mlp,
    dropout_attention,
    layer_norm,
    make_stack,
    masked_mean,
    run_stack,
    short_attention,
)

FLOAT32 = ComputeOptions(jnp.dtype("float32"))
DEPTH, B, D = 3, 2, 5
WAYS = list(product((True, False), REMATS))


def rngs() -> nnx.Rngs:
    return nnx.Rngs(params=0)


def dropout_rngs(seed: int, examples: int) -> DropoutRngs:
    return DropoutRngs(jax.random.split(jax.random.key(seed), examples))


def test_a_linear_layer_over_two_axes_equals_the_product():
    rng = np.random.default_rng(0)
    layer = Linear((4, 5), (6, 7), dtype=FLOAT32.dtype, rngs=rngs())
    layer.bias.set_value(jnp.asarray(rng.normal(size=(6, 7)).astype(np.float32)))
    x, kernel, bias = (np.asarray(a) for a in (rng.normal(size=(2, 3, 4, 5)), layer.kernel[...], layer.bias[...]))
    expected = np.einsum("abKL,KLij->abij", x, kernel.astype(np.float64)) + bias
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


def test_split_outputs_equal_those_of_the_whole_layer():
    layer = Linear(8, (3, 2, 5), dtype=FLOAT32.dtype, rngs=rngs())
    layer.bias.set_value(jnp.arange(30.0).reshape(3, 2, 5))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32))
    np.testing.assert_allclose(jnp.stack(layer.split(x), axis=2), layer(x), rtol=1e-5, atol=1e-6)


def test_gradients_in_bfloat16_are_summed_in_float32():
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(size=(4096, 3)).astype(jnp.bfloat16) for _ in range(2))
    layer = Linear(3, 3, dtype=jnp.dtype(jnp.bfloat16), rngs=rngs())
    graphdef, params = nnx.split(layer, nnx.Param)
    _, backward = jax.vjp(lambda params: nnx.merge(graphdef, params)(jnp.asarray(x)), params)
    (gradients,) = backward(jnp.asarray(dy))
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    np.testing.assert_allclose(gradients.kernel[...], x.T @ dy, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(gradients.bias[...], dy.sum(axis=0), rtol=1e-4, atol=1e-3)


def test_the_gradient_of_a_kernel_transposes_no_activations():
    layer = Linear(8, 16, dtype=FLOAT32.dtype, rngs=rngs())
    graphdef, params = nnx.split(layer, nnx.Param)

    def total(params: nnx.State, x: jax.Array) -> jax.Array:
        return jnp.square(nnx.merge(graphdef, params)(x)).sum()

    gradient = str(jax.make_jaxpr(jax.grad(total))(params, jnp.ones((3, 5, 8))))
    assert "dimension_numbers=(([0], [0])" in gradient
    assert "dimension_numbers=(([0, 1], [0, 1])" not in gradient


def test_attention_equals_softmax_by_hand():
    B, N, D, K = 2, 5, 12, 3
    attention = Attention(D, K, compute=FLOAT32, rngs=rngs())
    x = np.random.default_rng(0).normal(size=(B, N, D)).astype(np.float32)
    mask = np.array([[True, True, False, True, False], [True, False, True, True, True]])
    kernel, out = np.asarray(attention.qkv.kernel[...]), np.asarray(attention.out.kernel[...])
    expected = np.zeros((B, N, D))
    for b in range(B):
        for k in range(K):
            q, key, value = (x[b].astype(np.float64) @ kernel[:, i, k] for i in range(3))
            scores = q @ key.T / np.sqrt(D / K)
            scores[:, ~mask[b]] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            expected[b] += weights @ value @ out[k]
    np.testing.assert_allclose(attention(jnp.asarray(x), jnp.asarray(mask)), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("attend", [short_attention, dropout_attention])
def test_attention_weights_are_dropped_one_by_one(attend):
    """Equal logits give equal weights; with a unit vector per token as value, the outputs are the weights."""
    B, N, H, kept_N = 50, 8, 3, 6
    keys = jnp.zeros((B, N, H, N))
    values = jnp.broadcast_to(jnp.eye(N)[None, :, None], keys.shape)
    mask = jnp.broadcast_to((jnp.arange(N) < kept_N)[None, None], (B, 1, N))
    mask = mask if attend is short_attention else mask[:, None]

    def weights(seed: int | None) -> np.ndarray:
        drop = partial(dropout, rate=0.25, rngs=None if seed is None else dropout_rngs(seed, B))
        return np.asarray(attend(keys, keys, values, mask, drop=drop))

    np.testing.assert_allclose(weights(None)[..., :kept_N], np.full((B, N, H, kept_N), 1 / kept_N), rtol=1e-6)
    assert not weights(None)[..., kept_N:].any()
    dropped = weights(1)[..., :kept_N]
    assert np.unique(dropped).tolist() == pytest.approx([0, 1 / kept_N / 0.75])
    for axis in range(4):  # neither queries nor heads nor examples share their draws
        assert abs((dropped == 0).mean() - 0.25) < 0.02
        assert (np.ptp(dropped, axis=axis) > 0).any()
        assert np.abs(np.corrcoef(np.moveaxis(dropped, axis, 0)[:2].reshape(2, -1))[0, 1]) < 0.1


@pytest.mark.parametrize("N", [5, SHORT + 1])
def test_attention_without_random_numbers_has_no_dropout(N):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, N, 12)).astype(np.float32))
    mask = jnp.arange(N)[None] < jnp.array([[N], [N - 2]])
    plain, dropping = (Attention(12, 3, dropout=rate, compute=FLOAT32, rngs=rngs()) for rate in (0.0, 0.5))
    np.testing.assert_array_equal(dropping(x, mask), plain(x, mask))
    np.testing.assert_array_equal(plain(x, mask, rngs=dropout_rngs(1, 2)), plain(x, mask))
    draws = jnp.stack([dropping(x, mask, rngs=dropout_rngs(seed, 2)) for seed in range(400)])
    assert np.abs(draws[0] - plain(x, mask)).max() > 0.05
    np.testing.assert_allclose(draws.mean(axis=0), plain(x, mask), atol=0.2)  # four standard errors


def test_activations_at_known_points():
    np.testing.assert_allclose(ACTIVATIONS["gelu"](jnp.array([1.0, -2.0])), [0.8413447, -0.0455003], rtol=1e-5)
    np.testing.assert_allclose(ACTIVATIONS["quick_gelu"](jnp.array([1.0, -2.0])), [0.8457958, -0.0643360], rtol=1e-4)


def test_masked_mean_ignores_masked_entries_and_is_zero_without_any():
    x = jnp.array([[[1.0, 2.0], [3.0, 6.0], [jnp.nan, jnp.inf]], [[5.0, 5.0], [5.0, 5.0], [5.0, 5.0]]])
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(masked_mean(x, mask), [[2.0, 4.0], [0.0, 0.0]])


def test_layer_norm_statistics_are_float32_under_bfloat16():
    norm = layer_norm(64, epsilon=1e-5, dtype=jnp.dtype("bfloat16"), rngs=rngs())
    x = jnp.asarray(np.random.default_rng(0).normal(300.0, 1.0, size=(7, 64)), jnp.bfloat16)
    expected = np.asarray(x, np.float64)
    expected = (expected - expected.mean(-1, keepdims=True)) / np.sqrt(expected.var(-1, keepdims=True) + 1e-5)
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(norm(x), np.float64), expected, atol=0.02)


def test_invalid_sizes_and_activations_are_reported():
    with pytest.raises(ValueError, match="width 10 is not a multiple of the number of heads 3"):
        Attention(10, 3, compute=FLOAT32, rngs=rngs())
    with pytest.raises(ValueError, match="unknown activation 'swish': choose one of gelu, gelu_tanh, quick_gelu"):
        Mlp(4, 8, "swish", dtype=FLOAT32.dtype, rngs=rngs())
    assert jax.config.jax_numpy_rank_promotion == "raise"


class Layer(nnx.Module):
    """A layer with everything that a stack passes on: parameters, context, a layerwise option, random numbers."""

    def __init__(self, *, rngs):
        self.mlp = Mlp(D, 7, "gelu", dtype=jnp.dtype("float32"), rngs=rngs)

    def __call__(self, x, shift, *, scale=0.5, rngs):
        return x + dropout(scale * self.mlp(x) + shift, 0.4, rngs)


def options(scan_layers: bool, remat: str) -> ComputeOptions:
    return ComputeOptions(jnp.dtype("float32"), scan_layers=scan_layers, remat=remat)


@pytest.fixture(scope="module")
def stack():
    return make_stack(lambda rngs: Layer(rngs=rngs), DEPTH, rngs=nnx.Rngs(params=3))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(B, D)), jnp.float32) for _ in range(2))


def run(stack, compute, x, shift, *, seed=None, **scale):
    """Output and gradients with respect to parameters and input."""
    graphdef, params = nnx.split(stack)

    def loss(params, x):
        rngs = None if seed is None else dropout_rngs(seed, B)
        y = run_stack(nnx.merge(graphdef, params), x, shift, compute=compute, layerwise=scale, rngs=rngs)
        return jnp.sin(y).sum(), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)
    return y, gradients


def test_layers_have_different_initial_values(stack):
    kernel = np.asarray(stack.mlp.up.kernel[...])
    assert kernel.shape == (DEPTH, D, 7)
    assert all(np.abs(kernel[i] - kernel[j]).max() > 0.1 for i, j in ((0, 1), (0, 2), (1, 2)))
    # LeCun's initialization depends on the inputs of one layer, not of all.
    wide = make_stack(lambda rngs: nnx.Linear(200, 100, rngs=rngs), 4, rngs=nnx.Rngs(params=0))
    np.testing.assert_allclose(np.std(wide.kernel[...], axis=(-2, -1)), 200**-0.5, rtol=0.05)


@pytest.mark.parametrize(("scan_layers", "remat"), WAYS)
def test_a_stack_equals_its_layers_called_one_by_one(stack, inputs, scan_layers, remat):
    x, shift = inputs
    found, (gradients, _) = run(stack, options(scan_layers, remat), x, shift, scale=jnp.array([0.5, 0.0, 2.0]))
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


def test_dropout_does_not_depend_on_how_layers_run(stack, inputs):
    results = [run(stack, options(*settings), *inputs, seed=5) for settings in WAYS]
    for result in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), result, results[0])
    assert np.abs(results[0][0] - run(stack, options(True, "none"), *inputs, seed=6)[0]).max() > 0.1


def test_each_layer_has_its_own_dropout(inputs):
    """Each layer adds a dropped constant: equal draws would add 0 or the same DEPTH times."""

    class Add(nnx.Module):
        def __init__(self, *, rngs):
            self.unused = nnx.Param(jnp.zeros(()))

        def __call__(self, x, *, rngs):
            return x + dropout(jnp.ones_like(x), 0.5, rngs)

    adds = make_stack(lambda rngs: Add(rngs=rngs), DEPTH, rngs=nnx.Rngs(params=0))
    total = run_stack(adds, jnp.zeros((8, 9)), compute=options(True, "none"), rngs=dropout_rngs(1, 8))
    assert set(np.unique(total)) == {0.0, 2.0, 4.0, 6.0}


@pytest.mark.parametrize("scan_layers", [True, False])
def test_each_remat_option_keeps_the_activations_it_should(stack, inputs, scan_layers):
    """Counts the hidden activations of the MLP that the forward pass keeps for the backward pass."""
    graphdef, params = nnx.split(stack)
    kept = {}
    for remat in REMATS:

        def forward(params, x, remat=remat):
            return run_stack(nnx.merge(graphdef, params), x, inputs[1], compute=options(scan_layers, remat))

        _, backward = jax.vjp(forward, params, inputs[0])
        kept[remat] = [leaf.shape[-2:] for leaf in jax.tree.leaves(backward)].count((B, 7))
    layers = 1 if scan_layers else DEPTH  # a scan keeps one array for all layers
    assert kept["block"] == kept["narrow"] == 0  # the layer is wider than its input
    assert kept["dots"] == layers  # the output of the product, but not of the activation
    assert kept["none"] >= 3 * layers


def test_unknown_options_list_the_choices():
    with pytest.raises(ValueError, match="unknown remat 'all': choose one of none, block, narrow, dots"):
        options(True, "all")
    with pytest.raises(ValueError, match="unknown attention 'flash': choose one of auto, xla, cudnn"):
        ComputeOptions(jnp.dtype("float32"), attention="flash")


def test_cudnn_is_used_if_it_supports_the_attention():
    """Whether the devices do is decided before; see `parallel.targets.cudnn_problem`."""

    def choice(head_size=64, *, dtype="bfloat16", attention="auto", masked=False):
        return ComputeOptions(jnp.dtype(dtype), attention=attention).attention_implementation(head_size, masked=masked)

    assert choice() == choice(128) == choice(dtype="float16") == "cudnn"
    assert choice(dtype="float32") == choice(60) == choice(136) == choice(masked=True) == "xla"
    assert choice(attention="xla") == "xla"
    assert choice(60, attention="cudnn") == "cudnn"  # requested: an error is better than a fallback
    assert choice(attention="cudnn", masked=True) == "xla"
