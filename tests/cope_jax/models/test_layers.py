"""Shared transformer parts against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cope_jax.models.compute import Compute
from cope_jax.models.layers import (
    Attention,
    Mlp,
    drop_path,
    dropout,
    flat_dot_general,
    gelu,
    layer_norm,
    linear,
    masked_mean,
    quick_gelu,
)

FLOAT32 = Compute(jnp.dtype("float32"))


def rngs() -> nnx.Rngs:
    return nnx.Rngs(params=0)


def test_a_product_over_flat_axes_is_the_product():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 4, 5)).astype(np.float32), rng.normal(size=(4, 5, 6, 7)).astype(np.float32)
    product = flat_dot_general(jnp.asarray(x), jnp.asarray(kernel), (((2, 3), (0, 1)), ((), ())))
    np.testing.assert_allclose(product, np.einsum("abKL,KLij->abij", x, kernel), rtol=1e-4, atol=1e-5)


def test_a_kernels_gradient_transposes_no_activations():
    layer = linear(8, 16, dtype=jnp.float32, rngs=rngs())
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


def test_activations_at_known_points():
    np.testing.assert_allclose(gelu(jnp.array([1.0, -2.0])), [0.8413447, -0.0455003], rtol=1e-5)
    np.testing.assert_allclose(quick_gelu(jnp.array([1.0, -2.0])), [0.8457958, -0.0643360], rtol=1e-4)


def test_masked_mean_ignores_what_is_masked_and_gives_zero_for_nothing():
    x = jnp.array([[[1.0, 2.0], [3.0, 6.0], [jnp.nan, jnp.inf]], [[5.0, 5.0], [5.0, 5.0], [5.0, 5.0]]])
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(masked_mean(x, mask), [[2.0, 4.0], [0.0, 0.0]])


def test_dropout_keeps_the_mean_and_is_off_without_rngs():
    x = jnp.ones((400, 50))
    dropped = dropout(x, 0.25, nnx.Rngs(dropout=1))
    np.testing.assert_array_equal(dropout(x, 0.25, None), x)
    assert np.unique(dropped).tolist() == pytest.approx([0, 4 / 3])
    assert abs(float(dropped.mean()) - 1.0) < 0.02


def test_drop_path_drops_whole_examples():
    dropped = np.asarray(drop_path(jnp.ones((200, 3, 4)), 0.5, nnx.Rngs(dropout=1)))
    assert all(len(np.unique(example)) == 1 for example in dropped)
    assert 60 < (dropped[:, 0, 0] == 0).sum() < 140


def test_layer_norm_statistics_are_float32_under_bfloat16():
    norm = layer_norm(64, epsilon=1e-5, dtype=jnp.bfloat16, rngs=rngs())
    x = jnp.asarray(np.random.default_rng(0).normal(300.0, 1.0, size=(7, 64)), jnp.bfloat16)
    expected = np.asarray(x, np.float64)
    expected = (expected - expected.mean(-1, keepdims=True)) / np.sqrt(expected.var(-1, keepdims=True) + 1e-5)
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(norm(x), np.float64), expected, atol=0.02)


def test_unfit_sizes_and_names_are_named():
    with pytest.raises(ValueError, match="width 10 is not a multiple of the number of heads 3"):
        Attention(10, 3, compute=FLOAT32, rngs=rngs())
    with pytest.raises(ValueError, match="unknown activation 'swish': choose one of gelu, quick_gelu"):
        Mlp(4, 8, "swish", dtype=jnp.float32, rngs=rngs())
    assert jax.config.jax_numpy_rank_promotion == "raise"
