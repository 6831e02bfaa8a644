"""The text encoder: BERT (arXiv 1810.04805) of any depth, post-norm, with its pooler."""

import jax
import jax.numpy as jnp
from flax import nnx

from cope_jax.models.layers import EMBEDDING_INIT, Attention, Mlp, dropout, layer_norm, masked_mean

PAD_ID = 0
EPSILON = 1e-12  # BERT's LayerNorm
POOLINGS = ("pooler", "class", "mean")


class PostNormBlock(nnx.Module):
    """BERT's layer: transform, add, normalise."""

    def __init__(self, width: int, heads: int, *, dropout: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, 4 * width, "gelu", dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.dropout = dropout

    def __call__(self, x_BLD: jax.Array, mask_BL: jax.Array, *, rngs: nnx.Rngs | None) -> jax.Array:
        """float[B, L, D], bool[B, L] → float[B, L, D]."""
        x_BLD = self.norm1(x_BLD + dropout(self.attention(x_BLD, mask_BL), self.dropout, rngs))
        return self.norm2(x_BLD + dropout(self.mlp(x_BLD), self.dropout, rngs))


class TextEncoder(nnx.Module):
    """Token ids → one vector.

    Args:
        vocab_size: of the tokenizer; id 0 is padding.
        max_length: the longest text in tokens that there are positions for.
        width, depth, heads: of the transformer.
        pooling: "pooler" (BERT's: dense and tanh on the class token), "class" (the class token) or "mean".
        dropout: probability, on embeddings and on every residual branch.
        dtype: of the computation; parameters are float32.
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
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        self.pooling = pooling
        self.dropout = dropout
        self.words = nnx.Embed(vocab_size, width, embedding_init=EMBEDDING_INIT, dtype=dtype, rngs=rngs)
        self.position = nnx.Param(EMBEDDING_INIT(rngs.params(), (max_length, width)))
        # BERT knows two segments; ours is always the first, kept for its published weights.
        self.segment = nnx.Param(EMBEDDING_INIT(rngs.params(), (2, width)))
        self.norm = layer_norm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        blocks = [PostNormBlock(width, heads, dropout=dropout, dtype=dtype, rngs=rngs) for _ in range(depth)]
        self.blocks = nnx.List(blocks)
        self.pooler = nnx.Linear(width, width, dtype=dtype, rngs=rngs) if pooling == "pooler" else None

    def __call__(self, tokens_BL: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Encodes texts.

        Args:
            tokens_BL: int32[B, L]; 0 is padding. A row of padding alone is a missing text and gives 0.
            rngs: holds the stream `dropout` for training; None means evaluation.

        Returns:
            float32[B, D].
        """
        mask_BL = tokens_BL != PAD_ID
        x = self.words(tokens_BL)
        x = x + (self.position[None, : tokens_BL.shape[-1]] + self.segment[None, :1]).astype(x.dtype)
        x = dropout(self.norm(x), self.dropout, rngs)
        for block in self.blocks:
            x = block(x, mask_BL, rngs=rngs)
        if self.pooling == "mean":
            return masked_mean(x, mask_BL)
        first = x[:, 0]
        if self.pooler is not None:
            first = jnp.tanh(self.pooler(first))
        return jnp.where(mask_BL[:, :1], first.astype(jnp.float32), 0.0)
