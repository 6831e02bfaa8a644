"""Building blocks of the encoders: attention, MLP, transformer blocks, and stacks of equal blocks."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Float32, PyTree

from cope_jax.models.dropout import DropoutRngs, Rate, dropout

ATTENTIONS = ("auto", "xla", "cudnn")
REMATS = ("none", "block", "narrow", "dots")
# Names of the outputs of linear layers, by their width. Products of attention are not worth keeping.
PRODUCT, WIDE_PRODUCT = "product", "wide product"
REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    "block": jax.checkpoint_policies.nothing_saveable,
    "narrow": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT, WIDE_PRODUCT),
}
# Tokens whose masked attention needs no matrix units, such as the frames of a product. On GPUs, where the launch of a
# kernel costs more, texts of 32 tokens are short, too; on a CPU they would make a step of the tiny preset 7% longer.
SHORT, SHORT_ON_GPU = 24, 32
EMBEDDING_INIT = nnx.initializers.normal(0.02)  # as in BERT and CLIP

Tokens = Float[Array, "B N D"]
Heads = Float[Array, "B N H K"]  # H attention heads of width K
# False for tokens that no one attends to; with two axes of tokens, that those along the first do not attend to.
TokenMask = Bool[Array, "B N"] | Bool[Array, "B N N"]


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises ValueError if a setting has none of its possible values."""
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")


@dataclass(frozen=True)
class ComputeOptions:
    """How a model is computed. No option changes its parameters or, up to rounding, its results.

    Attributes:
        dtype: Type of activations. Parameters, norms, softmax and embeddings are float32.
        attention: "xla", "cudnn" (flash attention; an error if device, dtype or head size do not support it) or
            "auto" (cuDNN if dtype and head size support it; `parallel.targets` says whether the devices do).
        scan_layers: Run the layers of a stack as one compiled block in a loop. Compiles faster the deeper the stack,
            and may run a little slower.
        remat: What the backward pass recomputes: "none", "dots" (all but matrix products with parameters), "narrow"
            (all but those no wider than their input) or "block" (all but the inputs of blocks: least memory).
        batch_sharding: How the batch is sharded if parameters are sharded over the same devices (FSDP): the input of
            each block is. Otherwise XLA may gather activations instead of parameters and sum them over devices.
    """

    dtype: jnp.dtype
    attention: str = "xla"
    scan_layers: bool = True
    remat: str = "none"
    batch_sharding: NamedSharding | None = None

    def __post_init__(self) -> None:
        check_choice("attention", self.attention, ATTENTIONS)
        check_choice("remat", self.remat, REMATS)

    def attention_implementation(self, head_size: int, *, masked: bool) -> Literal["xla", "cudnn"]:
        """Returns the `implementation` for `jax.nn.dot_product_attention`.

        Masked attention (texts, messages between frames) is short and always left to XLA: cuDNN wants full masks of
        even lengths.
        """
        if self.attention == "xla" or masked:
            return "xla"
        fits = self.dtype.itemsize == 2 and head_size % 8 == 0 and head_size <= 128
        return "cudnn" if self.attention == "cudnn" or fits else "xla"


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """CLIP's sigmoid approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine(
    x_MI: Float[Array, "M I"], kernel_IO: Float32[Array, "I O"], bias_O: Float32[Array, " O"] | None, dtype: jnp.dtype
) -> Float[Array, "M O"]:
    """Returns x · kernel + bias, computed in `dtype`; gradients of the parameters accumulate in float32.

    The gradient of a cast parameter would be rounded to `dtype` before devices add up theirs.
    """
    y = x_MI.astype(dtype) @ kernel_IO.astype(dtype)
    return y if bias_O is None else (y + bias_O[None]).astype(dtype)


def _affine_forward(x: Array, kernel: Array, bias: Array | None, dtype: jnp.dtype) -> tuple[Array, tuple]:
    return affine(x, kernel, bias, dtype), (x, kernel, bias)


def _affine_backward(dtype: jnp.dtype, residuals: tuple, dy: Array) -> tuple[Array, Array, Array | None]:
    x, kernel, bias = residuals
    dx = (dy @ kernel.astype(dtype).T).astype(x.dtype)
    dkernel = jnp.einsum("mi,mo->io", x.astype(dtype), dy, preferred_element_type=jnp.float32)
    return dx, dkernel, None if bias is None else dy.sum(axis=0, dtype=jnp.float32)


affine.defvjp(_affine_forward, _affine_backward)


class Linear(nnx.LinearGeneral):
    """A linear layer over the trailing axes of its input, computed as one product of matrices.

    With several leading axes, XLA would first write a transposed copy of all activations for the kernel's gradient: 6
    to 15% of a step on a CPU.

    Attributes:
        lora_a: First low-rank matrix of `models.lora`, if there is one.
        lora_b: The second; the product of both, times `lora_scale`, is added to the kernel.
    """

    lora_a: nnx.LoRAParam | None = None
    lora_b: nnx.LoRAParam | None = None
    lora_scale = 0.0

    def __init__(
        self,
        inputs: int | tuple[int, ...],
        outputs: int | tuple[int, ...],
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        use_bias: bool = True,
    ):
        axes = (-1,) if isinstance(inputs, int) else tuple(range(-len(inputs), 0))
        super().__init__(inputs, outputs, axis=axes, use_bias=use_bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "..."], out_sharding: None = None) -> Float[Array, "..."]:
        leading, size = x.shape[: x.ndim - len(self.in_features)], math.prod(self.in_features)
        bias = None if self.bias is None else self.bias[...].reshape(-1)
        change = None if self.lora_b is None else self.lora_b[...]
        y = self.apply(x.reshape(-1, size), self.kernel[...].reshape(size, -1), bias, change)
        y = checkpoint_name(y, PRODUCT if y.shape[-1] <= size else WIDE_PRODUCT)
        return y.reshape(*leading, *self.out_features)

    def split(self, x: Float[Array, "B N D"]) -> list[Float[Array, "B N ..."]]:
        """Returns the outputs along the first output axis one by one, without an array of all of them to cut up."""
        assert self.bias is not None
        kernels, biases = jnp.unstack(self.kernel[...], axis=1), jnp.unstack(self.bias[...], axis=0)
        rows, (D, *shape) = x.reshape(-1, x.shape[-1]), kernels[0].shape
        changes = [None] * len(kernels) if self.lora_b is None else jnp.unstack(self.lora_b[...], axis=1)
        outputs = [
            checkpoint_name(self.apply(rows, kernel.reshape(D, -1), bias.reshape(-1), change), PRODUCT)
            for kernel, bias, change in zip(kernels, biases, changes, strict=True)
        ]
        return [output.reshape(*x.shape[:-1], *shape) for output in outputs]

    def apply(
        self,
        x: Float[Array, "M I"],
        kernel: Float32[Array, "I O"],
        bias: Float32[Array, " O"] | None,
        lora_b: Float32[Array, "R ..."] | None,
    ) -> Float[Array, "M O"]:
        """Computes outputs with a part of the kernel, and of the low-rank change if there is one."""
        y: Any = affine(x, kernel, bias, self.dtype)
        if self.lora_a is None or lora_b is None:
            return y
        reduced: Any = affine(x, self.lora_a[...], None, self.dtype)
        change: Any = affine(reduced, lora_b.reshape(len(lora_b), -1), None, self.dtype)
        return y + self.lora_scale * change


def layer_norm(width: int, *, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Makes a LayerNorm that computes in float32 for any `dtype` of its output."""
    # Scale and bias are not cast: that would round them, and take a kernel of its own on a GPU.
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, promote_dtype=lambda values, **_: values, rngs=rngs)


def masked_mean(x_BND: Tokens, mask_BN: Bool[Array, "B N"]) -> Float[Array, "B D"]:
    """Returns the mean over N of the unmasked entries in float32, 0 if there are none."""
    # `where` and not a product, so that not even an infinity passes the mask.
    total = jnp.where(mask_BN[..., None], x_BND.astype(jnp.float32), 0.0).sum(axis=-2)
    return total / jnp.maximum(mask_BN.sum(axis=-1, keepdims=True), 1)


class Attention(nnx.Module):
    """Multi-head self-attention with one kernel for queries, keys and values, and a float32 softmax.

    `dropout` is the probability that a weight is zeroed in training.
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, compute: ComputeOptions, rngs: nnx.Rngs):
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        self.qkv = Linear(width, (3, heads, width // heads), dtype=compute.dtype, rngs=rngs)
        self.out = Linear((heads, width // heads), width, dtype=compute.dtype, rngs=rngs)
        self.dropout, self.compute = dropout, compute

    def __call__(self, x_BND: Tokens, mask: TokenMask | None = None, *, rngs: DropoutRngs | None = None) -> Tokens:
        """Attends over N.

        Args:
            x_BND: Tokens.
            mask: Which tokens are attended to. If a row is all False, its result is finite but arbitrary; the caller
                must mask it.
            rngs: Keys of the examples for training; None for evaluation.
        """
        drop = partial(dropout, rate=self.dropout, rngs=rngs)
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, :]
        if mask is not None and x_BND.shape[1] <= (SHORT if self.compute.attention == "xla" else SHORT_ON_GPU):
            queries, keys, values = jnp.unstack(self.qkv(x_BND), axis=2)
            return self.out(short_attention(queries, keys, values, mask, drop=drop))
        queries, keys, values = self.qkv.split(x_BND)
        mask = None if mask is None else mask[:, None]
        if self.dropout and rngs is not None:
            return self.out(dropout_attention(queries, keys, values, mask, drop=drop))
        implementation = self.compute.attention_implementation(queries.shape[-1], masked=mask is not None)
        return self.out(jax.nn.dot_product_attention(queries, keys, values, mask=mask, implementation=implementation))


def short_attention(
    q_BNHK: Heads, k_BNHK: Heads, v_BNHK: Heads, mask: Bool[Array, "B _ N"], *, drop: Callable[[Array], Array]
) -> Heads:
    """Attends over a few tokens, such as the frames of a clip, in float32 and without matrix products.

    Products for each head take copies with other orders of axes, which take longer than the little arithmetic: a third
    of the kernels of a layer on a GPU were for messages between frames.
    """
    q, k, v = (array.astype(jnp.float32) for array in (q_BNHK, k_BNHK, v_BNHK))
    logits_BNNH = (q[:, :, None] * k[:, None]).sum(axis=-1) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[..., None], logits_BNNH, jnp.finfo(jnp.float32).min), axis=2)
    return (drop(weights)[..., None] * v[:, None]).sum(axis=2).astype(q_BNHK.dtype)


def dropout_attention(
    q_BNHK: Heads, k_BNHK: Heads, v_BNHK: Heads, mask: Bool[Array, "B _ _ N"] | None, *, drop: Callable[[Array], Array]
) -> Heads:
    """Attends with dropout of the weights, which `jax.nn.dot_product_attention` lacks."""
    logits_BHNN = jnp.einsum("bnhk,bmhk->bhnm", q_BNHK, k_BNHK, preferred_element_type=jnp.float32)
    logits_BHNN /= math.sqrt(q_BNHK.shape[-1])
    if mask is not None:
        logits_BHNN = jnp.where(mask, logits_BHNN, jnp.finfo(jnp.float32).min)
    weights = drop(jax.nn.softmax(logits_BHNN))
    return jnp.einsum("bhnm,bmhk->bnhk", weights.astype(v_BNHK.dtype), v_BNHK)


class Mlp(nnx.Module):
    """Two linear layers with an activation in between."""

    def __init__(self, width: int, hidden: int, activation: str, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        check_choice("activation", activation, ACTIVATIONS)
        self.up = Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, width, dtype=dtype, rngs=rngs)
        self.activation = ACTIVATIONS[activation]

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.down(self.activation(self.up(x)))


@dataclass(frozen=True)
class BlockSettings:
    """Settings that all transformer blocks of an encoder share."""

    width: int  # of the tokens
    heads: int  # number of attention heads
    activation: str  # a key of ACTIVATIONS
    mlp_width: int = 0  # of the hidden layers; 0 is 4 times the width
    epsilon: float = 1e-5  # of the norms

    def mlp(self, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> Mlp:
        """Makes the MLP of a block."""
        return Mlp(self.width, self.mlp_width or 4 * self.width, self.activation, dtype=dtype, rngs=rngs)


class PreNormBlock(nnx.Module):
    """The transformer block of ViT, CLIP and SigLIP: normalize, transform, add."""

    def __init__(self, settings: BlockSettings, *, compute: ComputeOptions, rngs: nnx.Rngs):
        make_norm = partial(layer_norm, settings.width, epsilon=settings.epsilon, dtype=compute.dtype, rngs=rngs)
        self.norm1 = make_norm()
        self.attention = Attention(settings.width, settings.heads, compute=compute, rngs=rngs)
        self.norm2 = make_norm()
        self.mlp = settings.mlp(dtype=compute.dtype, rngs=rngs)

    def __call__(
        self, x_BND: Tokens, mask: TokenMask | None = None, *, drop_path_rate: Rate = 0.0, rngs: DropoutRngs | None
    ) -> Tokens:
        drop_path = partial(dropout, rate=drop_path_rate, rngs=rngs, per_row=True)
        x_BND = x_BND + drop_path(self.attention(self.norm1(x_BND), mask))
        return x_BND + drop_path(self.mlp(self.norm2(x_BND)))


class AttentionPool(nnx.Module):
    """SigLIP's pooling: a learned probe attends to all tokens, followed by a norm and an MLP."""

    def __init__(self, settings: BlockSettings, *, compute: ComputeOptions, rngs: nnx.Rngs):
        width, dtype = settings.width, compute.dtype
        sizes = settings.heads, width // settings.heads
        self.probe = nnx.Param(EMBEDDING_INIT(rngs.params(), (width,)))
        self.query = Linear(width, sizes, dtype=dtype, rngs=rngs)
        self.kv = Linear(width, (2, *sizes), dtype=dtype, rngs=rngs)
        self.out = Linear(sizes, width, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, epsilon=settings.epsilon, dtype=dtype, rngs=rngs)
        self.mlp = settings.mlp(dtype=dtype, rngs=rngs)

    def __call__(self, x_BND: Tokens) -> Float[Array, "B D"]:
        B, _, D = x_BND.shape
        query = self.query(jnp.broadcast_to(self.probe[...].astype(x_BND.dtype), (1, 1, D)))
        queries = jnp.broadcast_to(query, (B, *query.shape[1:]))
        x = self.out(jax.nn.dot_product_attention(queries, *self.kv.split(x_BND), implementation="xla"))[:, 0]
        return x + self.mlp(self.norm(x))


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
    rngs: DropoutRngs | None = None,
) -> Float[Array, "*shape"]:
    """Runs the blocks of a stack one after another: `x = block(x, *context, **layerwise[i], rngs=…)`.

    Args:
        blocks: From `make_stack`.
        x: Input of the first block; every block keeps its shape and dtype.
        context: Arguments common to all blocks, such as masks.
        compute: Whether to scan, and what to rematerialize.
        layerwise: Keyword arguments that differ between blocks; arrays [depth, …].
        rngs: Keys of the examples for training, from which each block gets its own; None for evaluation.
    """
    graphdef, params = nnx.split(blocks, nnx.Param)
    depth = len(jax.tree.leaves(params)[0])
    stack_rngs = None if rngs is None else DropoutRngs(rngs())

    def run_block(x: Array, layer: PyTree) -> Array:
        params, options, index = layer
        if compute.batch_sharding is not None:
            x = jax.lax.with_sharding_constraint(x, compute.batch_sharding)
        block_rngs = None if stack_rngs is None else stack_rngs.for_layer(index)
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
        if rngs is not None:
            # Otherwise XLA for GPUs chooses other orders of axes for `x` in training, and transposes it between blocks:
            # 13% of a step. Programs with this constraint cannot be exported.
            x = with_layout_constraint(x, Layout(tuple(range(x.ndim))))
        x = run_block(x, structure.unflatten(layer))
    return x
