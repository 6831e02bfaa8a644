"""Building blocks of the encoders: attention, MLP, transformer blocks, and stacks of equal blocks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

ATTENTIONS = ("auto", "xla", "cudnn")
REMATS = ("none", "block", "dots")
# Products with batch axes, those of attention, grow with the square of the length: they are not worth keeping.
REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
EMBEDDING_INIT = nnx.initializers.normal(0.02)  # as in BERT and CLIP


@dataclass(frozen=True)
class ComputeOptions:
    """How a model is computed. No option changes its parameters or, up to rounding, its results.

    Attributes:
        dtype: Type of activations. Parameters, norms, softmax and embeddings are float32.
        attention: "xla", "cudnn" (flash attention; an error if device, dtype or head size do not support it) or
            "auto" (cuDNN if supported).
        scan_layers: Run the layers of a stack as one compiled block in a loop. Compiles faster the deeper the stack,
            and may run a little slower.
        remat: What the backward pass recomputes: "none", "block" (all but the inputs of blocks: least memory) or
            "dots" (all but matrix products with parameters).
    """

    dtype: jnp.dtype
    attention: str = "auto"
    scan_layers: bool = True
    remat: str = "none"

    def __post_init__(self) -> None:
        for name, choices in (("attention", ATTENTIONS), ("remat", REMATS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")

    def attention_implementation(self, head_size: int, *, masked: bool) -> Literal["xla", "cudnn"]:
        """Returns the `implementation` for `jax.nn.dot_product_attention`.

        Masked attention (texts, messages between frames) is short and always left to XLA: cuDNN wants full masks of
        even lengths.
        """
        if self.attention == "xla" or masked:
            return "xla"
        fits = jax.default_backend() == "gpu" and self.dtype.itemsize == 2 and head_size % 8 == 0 and head_size <= 128
        return "cudnn" if self.attention == "cudnn" or fits else "xla"


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """CLIP's sigmoid approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "quick_gelu": quick_gelu,
}


def flat_dot_general(
    x: Float[Array, "..."], kernel: Float[Array, "..."], dimension_numbers: Any, *args: Any, **kwargs: Any
) -> Float[Array, "..."]:
    """`jax.lax.dot_general` for linear layers that flattens the leading axes of `x` first.

    The gradient of the kernel is then a product of two matrices. With several axes to sum over, XLA would first write
    a transposed copy of all activations: 6 to 15% of a step on a CPU.
    """
    (contracted, of_kernel), batch = dimension_numbers
    leading = x.shape[: x.ndim - len(contracted)]
    rows = x.reshape(-1, *x.shape[len(leading) :])
    numbers = ((tuple(range(1, rows.ndim)), of_kernel), batch)
    y = jax.lax.dot_general(rows, kernel, numbers, *args, **kwargs)
    return y.reshape(*leading, *y.shape[1:])


def linear(inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Linear:
    """Makes a linear layer."""
    return nnx.Linear(inputs, outputs, use_bias=use_bias, dtype=dtype, dot_general=flat_dot_general, rngs=rngs)


def layer_norm(width: int, *, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Makes a LayerNorm. Its statistics are float32 for any `dtype` (flax's `force_float32_reductions`)."""
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)


def dropout(
    x: Float[Array, "*shape"], rate: float | Float[Array, ""], rngs: nnx.Rngs | None, *, per_example: bool = False
) -> Float[Array, "*shape"]:
    """Zeroes entries with probability `rate` and rescales the others.

    Args:
        x: Activations.
        rate: Probability in [0, 1); an array if it differs between scanned layers.
        rngs: Random stream `dropout`; None for evaluation, which returns `x`.
        per_example: Draw one value per example of the leading axis instead of one per entry. In residual branches,
            this is stochastic depth (arXiv 1603.09382).
    """
    if rngs is None or (isinstance(rate, float) and rate == 0.0):
        return x
    shape = x.shape[:1] + (1,) * (x.ndim - 1) if per_example else x.shape
    keep = jax.random.bernoulli(rngs.dropout(), 1.0 - rate, shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), 0.0)


def masked_mean(x_BND: Float[Array, "B N D"], mask_BN: Bool[Array, "B N"]) -> Float[Array, "B D"]:
    """Returns the mean over N of the unmasked entries in float32, 0 if there are none."""
    # `where` and not a product, so that not even an infinity passes the mask.
    total = jnp.where(mask_BN[..., None], x_BND.astype(jnp.float32), 0.0).sum(axis=-2)
    return total / jnp.maximum(mask_BN.sum(axis=-1, keepdims=True), 1)


class Attention(nnx.Module):
    """Multi-head self-attention with one kernel for queries, keys and values, and a float32 softmax."""

    def __init__(self, width: int, heads: int, *, compute: ComputeOptions, rngs: nnx.Rngs):
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        general = partial(nnx.LinearGeneral, dtype=compute.dtype, dot_general=flat_dot_general, rngs=rngs)
        self.qkv = general(width, (3, heads, width // heads))
        self.out = general((heads, width // heads), width, axis=(-2, -1))
        self.compute = compute

    def __call__(
        self, x_BND: Float[Array, "B N D"], mask_BN: Bool[Array, "B N"] | None = None
    ) -> Float[Array, "B N D"]:
        """Attends over N.

        Args:
            x_BND: Tokens.
            mask_BN: False for tokens that no one attends to. If a row is all False, its result is finite but
                arbitrary; the caller must mask it.
        """
        queries, keys, values = jnp.unstack(self.qkv(x_BND), axis=2)
        mask = None if mask_BN is None else mask_BN[:, None, None, :]
        implementation = self.compute.attention_implementation(queries.shape[-1], masked=mask is not None)
        return self.out(jax.nn.dot_product_attention(queries, keys, values, mask=mask, implementation=implementation))


class Mlp(nnx.Module):
    """Two linear layers with an activation in between."""

    def __init__(self, width: int, hidden: int, activation: str, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        self.up = linear(width, hidden, dtype=dtype, rngs=rngs)
        self.down = linear(hidden, width, dtype=dtype, rngs=rngs)
        self.activation = ACTIVATIONS[activation]

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.down(self.activation(self.up(x)))


class PreNormBlock(nnx.Module):
    """The transformer block of ViT and CLIP: normalize, transform, add."""

    def __init__(self, width: int, heads: int, *, activation: str, compute: ComputeOptions, rngs: nnx.Rngs):
        self.norm1 = layer_norm(width, epsilon=1e-5, dtype=compute.dtype, rngs=rngs)
        self.attention = Attention(width, heads, compute=compute, rngs=rngs)
        self.norm2 = layer_norm(width, epsilon=1e-5, dtype=compute.dtype, rngs=rngs)
        self.mlp = Mlp(width, 4 * width, activation, dtype=compute.dtype, rngs=rngs)

    def __call__(
        self,
        x_BND: Float[Array, "B N D"],
        mask_BN: Bool[Array, "B N"] | None = None,
        *,
        drop_path_rate: float | Float[Array, ""] = 0.0,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B N D"]:
        drop_path = partial(dropout, rate=drop_path_rate, rngs=rngs, per_example=True)
        x_BND = x_BND + drop_path(self.attention(self.norm1(x_BND), mask_BN))
        return x_BND + drop_path(self.mlp(self.norm2(x_BND)))


def make_stack(make_block: Callable[..., nnx.Module], depth: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Makes `depth` blocks `make_block(rngs=…)`, with different initial values, as one module for `run_stack`.

    The parameters of all blocks are stacked along a new leading axis.
    """
    keys = jax.random.split(rngs.params(), depth)
    return nnx.vmap(lambda key: make_block(rngs=nnx.Rngs(params=key)))(keys)


def run_stack(
    blocks: nnx.Module,
    x: Float[Array, "*shape"],
    *context: Array,
    compute: ComputeOptions,
    layerwise: Mapping[str, Array] | None = None,
    rngs: nnx.Rngs | None = None,
) -> Float[Array, "*shape"]:
    """Runs the blocks of a stack one after another: `x = block(x, *context, **layerwise[i], rngs=…)`.

    Args:
        blocks: From `make_stack`.
        x: Input of the first block; every block keeps its shape and dtype.
        context: Arguments common to all blocks, such as masks.
        compute: Whether to scan, and what to rematerialize.
        layerwise: Keyword arguments that differ between blocks; arrays [depth, …].
        rngs: Random stream `dropout`, from which each block gets its own; None for evaluation.
    """
    graphdef, params = nnx.split(blocks, nnx.Param)
    depth = len(jax.tree.leaves(params)[0])
    dropout_key = None if rngs is None else rngs.dropout()

    def run_block(x: Array, layer: PyTree) -> Array:
        params, options, index = layer
        block_rngs = None if dropout_key is None else nnx.Rngs(dropout=jax.random.fold_in(dropout_key, index))
        return nnx.merge(graphdef, params)(x, *context, **options, rngs=block_rngs)

    if compute.remat != "none":
        # The body of a loop cannot be merged with its own recomputation, so a scan needs no barrier against that.
        policy = REMAT_POLICIES[compute.remat]
        run_block = jax.checkpoint(run_block, policy=policy, prevent_cse=not compute.scan_layers)
    layers = (params, dict(layerwise or {}), jnp.arange(depth))
    if compute.scan_layers:
        return jax.lax.scan(lambda x, layer: (run_block(x, layer), None), x, layers)[0]
    # `unstack` makes the gradients of all layers stack at once. Slicing each layer would instead add up `depth` arrays
    # of the size of the whole stack.
    leaves, structure = jax.tree.flatten(layers)
    for layer in zip(*map(jnp.unstack, leaves), strict=True):
        x = run_block(x, structure.unflatten(layer))
    return x
