"""One fusion head a domain: vision and text vectors → the shared embedding space."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, struct

from cope_jax.models.text import Text
from cope_jax.models.vision import Clip


@struct.dataclass
class Embeddings:
    """What one domain's items look like in the shared space; all vectors have length 1, or are 0 where missing.

    Attributes:
        fused: float32[B, E], what retrieval uses.
        vision: float32[B, E], from the frames alone.
        text: float32[B, E], from the text alone; 0 in a domain that uses none.
        has_vision: bool[B], whether the item has a frame.
        has_text: bool[B], whether the item has a text that its domain uses.
    """

    fused: jax.Array
    vision: jax.Array
    text: jax.Array
    has_vision: jax.Array
    has_text: jax.Array


HEAD_NORMS = ("none", "batch")


class Features(NamedTuple):
    """What the encoders make of one domain's items.

    Attributes:
        clip: of the frames.
        frame_mask: bool[B, T], which frames exist.
        text: of the words; None in a domain that uses no text.
        word_mask: bool[B, L], which words exist, whether the domain uses them or not.
    """

    clip: Clip
    frame_mask: jax.Array
    text: Text | None
    word_mask: jax.Array


def l2_normalise(x: jax.Array) -> jax.Array:
    """Scales the last axis to length 1 in float32; 0 stays 0, with gradient 0 instead of NaN."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


class MaskedBatchNorm(nnx.Module):
    """Batch normalisation (arXiv 1502.03167) without scale and shift, over the rows that exist.

    Vectors of encoders that start from scratch differ little beside what they have in common. In a contrastive loss
    every item pushes that common part, so that it swings and hides the differences for hundreds of steps; taken off
    here, there is nothing to push. Under jit the batch is the global one, on any mesh.
    """

    def __init__(self, width: int, *, momentum: float = 0.9):
        self.mean = nnx.BatchStat(jnp.zeros(width, jnp.float32))
        self.variance = nnx.BatchStat(jnp.ones(width, jnp.float32))
        self.momentum = momentum

    def __call__(self, x_BE: jax.Array, mask_B: jax.Array, *, train: bool) -> jax.Array:
        """Normalises each column: by the batch in training, which moves the running statistics, else by those.

        Args:
            x_BE: float[B, E].
            mask_B: bool[B]; False rows count for nothing and give 0.
            train: whether to use the batch's own statistics.

        Returns:
            float32[B, E].
        """
        x_BE, mask = x_BE.astype(jnp.float32), mask_B[:, None]
        mean, variance = self.mean[...], self.variance[...]
        if train:
            count = jnp.maximum(mask_B.sum(), 1)
            mean = jnp.where(mask, x_BE, 0.0).sum(axis=0) / count
            variance = jnp.where(mask, jnp.square(x_BE - mean[None]), 0.0).sum(axis=0) / count
            self.move(mean, variance, mask_B.any())
        return jnp.where(mask, (x_BE - mean[None]) * jax.lax.rsqrt(variance[None] + 1e-5), 0.0)

    def move(self, mean: jax.Array, variance: jax.Array, known: jax.Array) -> None:
        """Moves the running statistics towards a batch's, where it had rows."""
        step = jnp.where(known, 1.0 - self.momentum, 0.0)
        self.mean[...] += step * (mean - self.mean[...])
        self.variance[...] += step * (variance - self.variance[...])


class Projection(nnx.Module):
    """A linear layer into the shared space and its normalisation; rows that the mask drops are 0."""

    def __init__(self, width: int, embedding: int, norm: str, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        if norm not in HEAD_NORMS:
            raise ValueError(f"unknown head norm {norm!r}: choose one of {', '.join(HEAD_NORMS)}")
        self.linear = nnx.Linear(width, embedding, dtype=dtype, rngs=rngs)
        self.norm = MaskedBatchNorm(embedding) if norm == "batch" else None

    def __call__(self, x_BD: jax.Array, mask_B: jax.Array, *, train: bool) -> jax.Array:
        """float[B, D], bool[B] → float[B, E]."""
        x = self.linear(x_BD)
        if self.norm is not None:
            return self.norm(x, mask_B, train=train)
        return jnp.where(mask_B[:, None], x, 0.0)


class FusionHead(nnx.Module):
    """The release's fusion: a linear layer for each modality, concatenation, one more linear layer.

    A domain without text (`text_width` None) is its vision path alone. A missing modality enters as 0.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int | None,
        embedding: int,
        norm: str,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.vision = Projection(vision_width, embedding, norm, dtype=dtype, rngs=rngs)
        if text_width is None:
            self.text = self.merge = None
        else:
            self.text = Projection(text_width, embedding, norm, dtype=dtype, rngs=rngs)
            self.merge = Projection(2 * embedding, embedding, norm, dtype=dtype, rngs=rngs)

    def __call__(self, features: Features, *, train: bool) -> Embeddings:
        """Fuses the features of a domain's items."""
        has_vision, has_text = features.frame_mask.any(-1), features.word_mask.any(-1)
        vision = self.vision(features.clip.vector, has_vision, train=train)
        if self.text is None:
            embedding = l2_normalise(vision)
            return Embeddings(
                embedding, embedding, jnp.zeros_like(embedding), has_vision, jnp.zeros_like(has_text)
            )
        text = self.text(features.text.vector, has_text, train=train)
        fused = self.merge(jnp.concatenate([vision, text], axis=-1), has_vision | has_text, train=train)
        return Embeddings(l2_normalise(fused), l2_normalise(vision), l2_normalise(text), has_vision, has_text)
