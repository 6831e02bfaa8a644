"""The text encoder: BERT (arXiv 1810.04805) of any depth, or the text tower of CLIP or SigLIP."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int32

from cope_jax.models.dropout import DropoutRngs, dropout
from cope_jax.models.layers import (
    EMBEDDING_INIT,
    Attention,
    BlockSettings,
    ComputeOptions,
    Linear,
    Mlp,
    PreNormBlock,
    check_choice,
    layer_norm,
    make_stack,
    masked_mean,
    run_stack,
)

PAD_ID = 0
EPSILON = 1e-12  # of BERT's LayerNorm
# Families: how blocks attend, and the epsilon of their norms.
#   bert    post-norm blocks that ignore padding
#   clip    pre-norm blocks that attend to earlier tokens only; a projection without bias
#   siglip  pre-norm blocks that attend to all tokens, padding included; a projection with bias
FAMILIES = {"bert": EPSILON, "clip": 1e-5, "siglip": 1e-6}
POOLINGS = ("pooler", "class", "mean", "end", "last")


class TextFeatures(NamedTuple):
    """Output of the text encoder."""

    vector: Float32[Array, "B D"]  # pooled text, 0 if it is missing
    words: Float[Array, "B L D"]  # output of the last layer, arbitrary at padding


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Settings of the text encoder."""

    vocab_size: int  # entries of the tokenizer; id 0 is padding
    max_length: int  # tokens of the longest text
    family: str  # one of FAMILIES
    width: int  # of the tokens
    depth: int  # number of blocks
    heads: int  # number of attention heads
    mlp_width: int  # of the hidden layers; 0 is 4 times the width, as always in BERT
    activation: str  # of all blocks; "gelu" in BERT
    output_width: int  # of the text vectors; 0 is that of the transformer, in BERT without a projection
    # "pooler" (BERT's: dense layer and tanh on the class token), "class" (class token), "mean", "end" (the last token
    # that is not padding, as in CLIP) or "last" (the last token, as in SigLIP).
    pooling: str
    dropout: float  # probability, for embeddings and every residual branch; 0 in families other than BERT
    attention_dropout: float  # probability, for the weights of attention; BERT only

    def __post_init__(self) -> None:
        """Raises ValueError if a setting has none of its possible values."""
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("family", self.family, FAMILIES)


class PostNormBlock(nnx.Module):
    """The transformer block of BERT: transform, add, normalize."""

    def __init__(self, settings: TextSettings, *, compute: ComputeOptions, rngs: nnx.Rngs):
        width, rate = settings.width, settings.attention_dropout
        self.attention = Attention(width, settings.heads, dropout=rate, compute=compute, rngs=rngs)
        self.norm1 = layer_norm(width, epsilon=EPSILON, dtype=compute.dtype, rngs=rngs)
        self.mlp = Mlp(width, 4 * width, "gelu", dtype=compute.dtype, rngs=rngs)
        self.norm2 = layer_norm(width, epsilon=EPSILON, dtype=compute.dtype, rngs=rngs)
        self.dropout = settings.dropout

    def __call__(
        self, x_BLD: Float[Array, "B L D"], mask_BL: Bool[Array, "B L"], *, rngs: DropoutRngs | None
    ) -> Float[Array, "B L D"]:
        x_BLD = self.norm1(x_BLD + dropout(self.attention(x_BLD, mask_BL, rngs=rngs), self.dropout, rngs))
        return self.norm2(x_BLD + dropout(self.mlp(x_BLD), self.dropout, rngs))


class TextEncoder(nnx.Module):
    """Encodes token ids into one vector per text and one per word."""

    def __init__(self, settings: TextSettings, *, compute: ComputeOptions, rngs: nnx.Rngs):
        self.settings, self.compute = settings, compute
        width, output_width, dtype = settings.width, settings.output_width, compute.dtype
        epsilon, is_bert = FAMILIES[settings.family], settings.family == "bert"
        self.words = nnx.Embed(settings.vocab_size, width, embedding_init=EMBEDDING_INIT, rngs=rngs)
        self.position = nnx.Param(EMBEDDING_INIT(rngs.params(), (settings.max_length, width)))
        # BERT has two segments. Texts here are always the first; the second is kept for published weights.
        self.segment = nnx.Param(EMBEDDING_INIT(rngs.params(), (2, width))) if is_bert else None
        self.norm = layer_norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs) if is_bert else None
        if is_bert:
            block = partial(PostNormBlock, settings, compute=compute)
        else:
            shared = BlockSettings(width, settings.heads, settings.activation, settings.mlp_width, epsilon)
            block = partial(PreNormBlock, shared, compute=compute)
        self.blocks = make_stack(block, settings.depth, rngs=rngs)
        self.pooler = Linear(width, width, dtype=dtype, rngs=rngs) if settings.pooling == "pooler" else None
        self.post_norm = None if is_bert else layer_norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        has_bias = settings.family == "siglip"
        project = partial(Linear, width, output_width or width, use_bias=has_bias, dtype=dtype, rngs=rngs)
        self.project = None if is_bert and not output_width else project()

    def __call__(self, tokens_BL: Int32[Array, "B L"], *, rngs: DropoutRngs | None = None) -> TextFeatures:
        """Encodes texts.

        Args:
            tokens_BL: Token ids; 0 is padding. A row of padding is a missing text and gives 0.
            rngs: Keys of the examples for training; None for evaluation.
        """
        # The table is not cast, so that its gradient is a sum in float32.
        words = self.words(tokens_BL).astype(self.compute.dtype)
        return self.encode(words, tokens_BL != PAD_ID, rngs=rngs)

    def encode_texts(
        self, texts: Sequence[Int32[Array, "B L"]], *, rngs: DropoutRngs | None = None
    ) -> list[TextFeatures]:
        """Encodes several texts per example at once.

        They are joined after the axis of examples, which is split over devices.
        """
        tokens_BKL = jnp.stack(texts, axis=1)
        B, K, L = tokens_BKL.shape
        features = self(tokens_BKL.reshape(B * K, L), rngs=rngs)
        parts = [jnp.unstack(array.reshape(B, K, *array.shape[1:]), axis=1) for array in features]
        return [TextFeatures(*part) for part in zip(*parts, strict=True)]

    def encode(
        self, words_BLD: Float[Array, "B L D"], mask_BL: Bool[Array, "B L"], *, rngs: DropoutRngs | None = None
    ) -> TextFeatures:
        """Encodes word embeddings, without positions; `mask_BL` is False for padding."""
        B, L, _ = words_BLD.shape
        position = self.position[None, :L]
        if self.segment is not None:
            position = position + self.segment[None, :1]
        x = words_BLD + position.astype(words_BLD.dtype)
        x = dropout(x if self.norm is None else self.norm(x), self.settings.dropout, rngs)
        visible = [mask_BL] if self.settings.family == "bert" else []
        if self.settings.family == "clip":
            visible = [jnp.broadcast_to(jnp.tri(L, dtype=bool)[None], (B, L, L))]
        x = run_stack(self.blocks, x, *visible, compute=self.compute, rngs=rngs)
        x = x if self.post_norm is None else self.post_norm(x)
        vector = self.pool(x, mask_BL)
        vector = vector if self.project is None else self.project(vector)
        return TextFeatures(jnp.where(mask_BL[:, :1], vector.astype(jnp.float32), 0.0), x)

    def pool(self, x_BLD: Float[Array, "B L D"], mask_BL: Bool[Array, "B L"]) -> Float[Array, "B D"]:
        """Returns the vectors of texts, before the projection; arbitrary for a missing text."""
        if self.settings.pooling == "mean":
            return masked_mean(x_BLD, mask_BL)
        if self.settings.pooling == "end":
            end_B = jnp.max(jnp.where(mask_BL, jnp.arange(mask_BL.shape[1])[None], 0), axis=1)
            return jnp.take_along_axis(x_BLD, end_B[:, None, None], axis=1)[:, 0]
        if self.settings.pooling == "last":
            return x_BLD[:, -1]
        return x_BLD[:, 0] if self.pooler is None else jnp.tanh(self.pooler(x_BLD[:, 0]))
