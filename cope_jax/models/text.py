"""The text encoder: BERT (arXiv 1810.04805) of any depth, post-norm, with its pooler."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int32

from cope_jax.models.layers import (
    EMBEDDING_INIT,
    Attention,
    ComputeOptions,
    Linear,
    Mlp,
    dropout,
    layer_norm,
    make_stack,
    masked_mean,
    run_stack,
)

PAD_ID = 0
EPSILON = 1e-12  # of BERT's LayerNorm
POOLINGS = ("pooler", "class", "mean")


class TextFeatures(NamedTuple):
    """Output of the text encoder."""

    vector: Float32[Array, "B D"]  # pooled text, 0 if it is missing
    words: Float[Array, "B L D"]  # output of the last layer, arbitrary at padding


class PostNormBlock(nnx.Module):
    """The transformer block of BERT: transform, add, normalize."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dropout: float,
        attention_dropout: float,
        compute: ComputeOptions,
        rngs: nnx.Rngs,
    ):
        self.attention = Attention(width, heads, dropout=attention_dropout, compute=compute, rngs=rngs)
        self.norm1 = layer_norm(width, epsilon=EPSILON, dtype=compute.dtype, rngs=rngs)
        self.mlp = Mlp(width, 4 * width, "gelu", dtype=compute.dtype, rngs=rngs)
        self.norm2 = layer_norm(width, epsilon=EPSILON, dtype=compute.dtype, rngs=rngs)
        self.dropout = dropout

    def __call__(
        self, x_BLD: Float[Array, "B L D"], mask_BL: Bool[Array, "B L"], *, rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        x_BLD = self.norm1(x_BLD + dropout(self.attention(x_BLD, mask_BL, rngs=rngs), self.dropout, rngs))
        return self.norm2(x_BLD + dropout(self.mlp(x_BLD), self.dropout, rngs))


class TextEncoder(nnx.Module):
    """Encodes token ids into one vector per text and one per word.

    Args:
        vocab_size: Entries of the tokenizer; id 0 is padding.
        max_length: Tokens of the longest text.
        width, depth, heads: Size of the transformer.
        pooling: "pooler" (BERT's: dense layer and tanh on the class token), "class" (class token) or "mean".
        dropout: Probability, for embeddings and every residual branch.
        attention_dropout: Probability, for the weights of attention.
        compute: How to compute the layers.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        max_length: int,
        width: int,
        depth: int,
        heads: int,
        pooling: str,
        dropout: float,
        attention_dropout: float,
        compute: ComputeOptions,
        rngs: nnx.Rngs,
    ):
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        self.pooling, self.dropout, self.compute = pooling, dropout, compute
        self.words = nnx.Embed(vocab_size, width, embedding_init=EMBEDDING_INIT, rngs=rngs)
        self.position = nnx.Param(EMBEDDING_INIT(rngs.params(), (max_length, width)))
        # BERT has two segments. Texts here are always the first; the second is kept for published weights.
        self.segment = nnx.Param(EMBEDDING_INIT(rngs.params(), (2, width)))
        self.norm = layer_norm(width, epsilon=EPSILON, dtype=compute.dtype, rngs=rngs)
        rates = {"dropout": dropout, "attention_dropout": attention_dropout}
        block = partial(PostNormBlock, width, heads, **rates, compute=compute)
        self.blocks = make_stack(block, depth, rngs=rngs)
        self.pooler = Linear(width, width, dtype=compute.dtype, rngs=rngs) if pooling == "pooler" else None

    def __call__(self, tokens_BL: Int32[Array, "B L"], *, rngs: nnx.Rngs | None = None) -> TextFeatures:
        """Encodes texts.

        Args:
            tokens_BL: Token ids; 0 is padding. A row of padding is a missing text and gives 0.
            rngs: Random stream `dropout` for training; None for evaluation.
        """
        # The table is not cast, so that its gradient is a sum in float32.
        words = self.words(tokens_BL).astype(self.compute.dtype)
        return self.encode(words, tokens_BL != PAD_ID, rngs=rngs)

    def encode_texts(self, texts: Sequence[Int32[Array, "B L"]], *, rngs: nnx.Rngs | None = None) -> list[TextFeatures]:
        """Encodes several texts per example at once.

        They are joined after the axis of examples, which is split over devices.
        """
        tokens_BKL = jnp.stack(texts, axis=1)
        B, K, L = tokens_BKL.shape
        features = self(tokens_BKL.reshape(B * K, L), rngs=rngs)
        parts = [jnp.unstack(array.reshape(B, K, *array.shape[1:]), axis=1) for array in features]
        return [TextFeatures(*part) for part in zip(*parts, strict=True)]

    def encode(
        self, words_BLD: Float[Array, "B L D"], mask_BL: Bool[Array, "B L"], *, rngs: nnx.Rngs | None = None
    ) -> TextFeatures:
        """Encodes word embeddings, without positions; `mask_BL` is False for padding."""
        x = words_BLD + (self.position[None, : words_BLD.shape[1]] + self.segment[None, :1]).astype(words_BLD.dtype)
        x = dropout(self.norm(x), self.dropout, rngs)
        x = run_stack(self.blocks, x, mask_BL, compute=self.compute, rngs=rngs)
        if self.pooling == "mean":
            return TextFeatures(masked_mean(x, mask_BL), x)
        first = x[:, 0] if self.pooler is None else jnp.tanh(self.pooler(x[:, 0]))
        return TextFeatures(jnp.where(mask_BL[:, :1], first.astype(jnp.float32), 0.0), x)
