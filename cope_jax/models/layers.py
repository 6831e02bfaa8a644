"""The transformer parts that the vision and the text encoder share."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cope_jax.models.compute import Compute

EMBEDDING_INIT = nnx.initializers.normal(0.02)  # BERT and CLIP alike


def quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's sigmoid approximation of GELU: x · sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU of BERT."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"gelu": gelu, "quick_gelu": quick_gelu}


def flat_dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, *args: Any, **kwargs: Any) -> jax.Array:
    """`jax.lax.dot_general` of a linear layer, the leading axes of its input taken as one.

    The gradient of a kernel then is a product of two matrices. With several axes to sum over, XLA would first write a
    transposed copy of all activations: on a CPU 6 to 15% of a step.

    Args:
        x: float[…, K…], K the contracted axes.
        kernel: float[K…, F…].
        dimension_numbers: that say so; args and kwargs are handed on.

    Returns:
        float[…, F…].
    """
    (contracted, of_kernel), batch = dimension_numbers
    leading = x.shape[: x.ndim - len(contracted)]
    rows = x.reshape(-1, *x.shape[len(leading) :])
    numbers = ((tuple(range(1, rows.ndim)), of_kernel), batch)
    y = jax.lax.dot_general(rows, kernel, numbers, *args, **kwargs)
    return y.reshape(*leading, *y.shape[1:])


def linear(inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Linear:
    """A linear layer of the last axis."""
    return nnx.Linear(inputs, outputs, use_bias=use_bias, dtype=dtype, dot_general=flat_dot_general, rngs=rngs)


def layer_norm(width: int, *, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm whose statistics are float32 (flax's `force_float32_reductions`) whatever `dtype` is."""
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)


def dropout(
    x: jax.Array, rate: float | jax.Array, rngs: nnx.Rngs | None, *, shape: tuple[int, ...] | None = None
) -> jax.Array:
    """Zeroes entries with probability `rate` and rescales the others; the identity without `rngs`.

    Args:
        x: any shape, float.
        rate: probability of a zero, in [0, 1); an array float32[] where it is data.
        rngs: holds the stream `dropout`; None means evaluation.
        shape: shape of the drawn mask, broadcast against `x`; None draws one value an entry.
    """
    if rngs is None or (isinstance(rate, float) and rate == 0.0):
        return x
    keep = jax.random.bernoulli(rngs.dropout(), 1.0 - rate, x.shape if shape is None else shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), 0.0)


def drop_path(x: jax.Array, rate: float | jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    """Stochastic depth (arXiv 1603.09382): drops a residual branch for whole examples of the leading axis."""
    return dropout(x, rate, rngs, shape=x.shape[:1] + (1,) * (x.ndim - 1))


class Attention(nnx.Module):
    """Multi-head self-attention with one kernel for queries, keys and values; its softmax is float32."""

    def __init__(self, width: int, heads: int, *, compute: Compute, rngs: nnx.Rngs):
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        general = partial(nnx.LinearGeneral, dtype=compute.dtype, dot_general=flat_dot_general, rngs=rngs)
        self.qkv = general(width, (3, heads, width // heads))
        self.out = general((heads, width // heads), width, axis=(-2, -1))
        self.compute = compute

    def __call__(self, x_BND: jax.Array, mask_BN: jax.Array | None = None) -> jax.Array:
        """Attends over the second-last axis.

        Args:
            x_BND: float[B, N, D].
            mask_BN: bool[B, N], False for positions nobody may look at; None means all may be seen. A row that
                is all False yields finite values that mean nothing: the caller masks its result.

        Returns:
            float[B, N, D].
        """
        queries, keys, values = jnp.unstack(self.qkv(x_BND), axis=2)
        mask = None if mask_BN is None else mask_BN[:, None, None, :]
        attended = jax.nn.dot_product_attention(
            queries,
            keys,
            values,
            mask=mask,
            implementation=self.compute.attention_implementation(queries.shape[-1], masked=mask is not None),
        )
        return self.out(attended)


class Mlp(nnx.Module):
    """Two linear layers with an activation between."""

    def __init__(self, width: int, hidden: int, activation: str, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        self.up = linear(width, hidden, dtype=dtype, rngs=rngs)
        self.down = linear(hidden, width, dtype=dtype, rngs=rngs)
        self.activation = ACTIVATIONS[activation]

    def __call__(self, x: jax.Array) -> jax.Array:
        """float[..., D] → float[..., D]."""
        return self.down(self.activation(self.up(x)))


class PreNormBlock(nnx.Module):
    """The transformer block of ViT and CLIP: normalise, transform, add."""

    def __init__(self, width: int, heads: int, *, activation: str, compute: Compute, rngs: nnx.Rngs):
        self.norm1 = layer_norm(width, epsilon=1e-5, dtype=compute.dtype, rngs=rngs)
        self.attention = Attention(width, heads, compute=compute, rngs=rngs)
        self.norm2 = layer_norm(width, epsilon=1e-5, dtype=compute.dtype, rngs=rngs)
        self.mlp = Mlp(width, 4 * width, activation, dtype=compute.dtype, rngs=rngs)

    def __call__(
        self,
        x_BND: jax.Array,
        mask_BN: jax.Array | None = None,
        *,
        drop_path_rate: float | jax.Array = 0.0,
        rngs: nnx.Rngs | None,
    ) -> jax.Array:
        """float[B, N, D], bool[B, N] or None → float[B, N, D]."""
        x_BND = x_BND + drop_path(self.attention(self.norm1(x_BND), mask_BN), drop_path_rate, rngs)
        return x_BND + drop_path(self.mlp(self.norm2(x_BND)), drop_path_rate, rngs)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the second-last axis of the entries that `mask` keeps, in float32; 0 where it keeps none.

    Args:
        x: float[B, N, D].
        mask: bool[B, N].

    Returns:
        float32[B, D]. `where` rather than a product, so that not even an infinity gets through the mask.
    """
    total = jnp.where(mask[..., None], x.astype(jnp.float32), 0.0).sum(axis=-2)
    return total / jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
