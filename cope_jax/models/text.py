"""The text encoder: BERT (arXiv 1810.04805) of any depth, post-norm, with its pooler."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from cope_jax.models.compute import Compute
from cope_jax.models.layers import EMBEDDING_INIT, Attention, Mlp, dropout, layer_norm, linear, masked_mean
from cope_jax.models.stack import make_stack, run_stack

PAD_ID = 0
EPSILON = 1e-12  # BERT's LayerNorm
POOLINGS = ("pooler", "class", "mean")


class Text(NamedTuple):
    """What the encoder makes of texts.

    Attributes:
        vector: float32[B, D], 0 for a missing text.
        words: float[B, L, D], the last layer's output; it means nothing at padding.
    """

    vector: jax.Array
    words: jax.Array


class PostNormBlock(nnx.Module):
    """BERT's layer: transform, add, normalise."""

    def __init__(self, width: int, heads: int, *, dropout: float, compute: Compute, rngs: nnx.Rngs):
        self.attention = Attention(width, heads, compute=compute, rngs=rngs)
        self.norm1 = layer_norm(width, epsilon=EPSILON, dtype=compute.dtype, rngs=rngs)
        self.mlp = Mlp(width, 4 * width, "gelu", dtype=compute.dtype, rngs=rngs)
        self.norm2 = layer_norm(width, epsilon=EPSILON, dtype=compute.dtype, rngs=rngs)
        self.dropout = dropout

    def __call__(self, x_BLD: jax.Array, mask_BL: jax.Array, *, rngs: nnx.Rngs | None) -> jax.Array:
        """float[B, L, D], bool[B, L] → float[B, L, D]."""
        x_BLD = self.norm1(x_BLD + dropout(self.attention(x_BLD, mask_BL), self.dropout, rngs))
        return self.norm2(x_BLD + dropout(self.mlp(x_BLD), self.dropout, rngs))


class TextEncoder(nnx.Module):
    """Token ids → one vector a text and one a word.

    Args:
        vocab_size: of the tokenizer; id 0 is padding.
        max_length: the longest text in tokens that there are positions for.
        width, depth, heads: of the transformer.
        pooling: "pooler" (BERT's: dense and tanh on the class token), "class" (the class token) or "mean".
        dropout: probability, on embeddings and on every residual branch.
        compute: how it is computed.
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
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        self.pooling = pooling
        self.dropout = dropout
        self.compute = compute
        self.words = nnx.Embed(vocab_size, width, embedding_init=EMBEDDING_INIT, dtype=compute.dtype, rngs=rngs)
        self.position = nnx.Param(EMBEDDING_INIT(rngs.params(), (max_length, width)))
        # BERT knows two segments; ours is always the first, kept for its published weights.
        self.segment = nnx.Param(EMBEDDING_INIT(rngs.params(), (2, width)))
        self.norm = layer_norm(width, epsilon=EPSILON, dtype=compute.dtype, rngs=rngs)
        self.blocks = make_stack(
            lambda rngs: PostNormBlock(width, heads, dropout=dropout, compute=compute, rngs=rngs),
            depth,
            rngs=rngs,
        )
        pooler = pooling == "pooler"
        self.pooler = linear(width, width, dtype=compute.dtype, rngs=rngs) if pooler else None

    def __call__(self, tokens_BL: jax.Array, *, rngs: nnx.Rngs | None = None) -> Text:
        """Encodes texts.

        Args:
            tokens_BL: int32[B, L]; 0 is padding. A row of padding alone is a missing text and gives 0.
            rngs: holds the stream `dropout` for training; None means evaluation.
        """
        return self.encode(self.words(tokens_BL), tokens_BL != PAD_ID, rngs=rngs)

    def encode(self, words_BLD: jax.Array, mask_BL: jax.Array, *, rngs: nnx.Rngs | None = None) -> Text:
        """Encodes texts whose words are embedded already.

        Args:
            words_BLD: float[B, L, D], without positions.
            mask_BL: bool[B, L], False for padding.
            rngs: as in `__call__`.
        """
        x = words_BLD + (self.position[None, : words_BLD.shape[1]] + self.segment[None, :1]).astype(words_BLD.dtype)
        x = dropout(self.norm(x), self.dropout, rngs)
        x = run_stack(self.blocks, x, mask_BL, compute=self.compute, rngs=rngs)
        return Text(self.pool(x, mask_BL), x)

    def pool(self, x_BLD: jax.Array, mask_BL: jax.Array) -> jax.Array:
        """float[B, L, D], bool[B, L] → float32[B, D], 0 for a missing text."""
        if self.pooling == "mean":
            return masked_mean(x_BLD, mask_BL)
        first = x_BLD[:, 0]
        if self.pooler is not None:
            first = jnp.tanh(self.pooler(first))
        return jnp.where(mask_BL[:, :1], first.astype(jnp.float32), 0.0)
