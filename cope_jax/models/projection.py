"""Into the shared space: a linear layer, a normalisation over the batch, length 1."""

import jax
import jax.numpy as jnp
from flax import nnx

HEAD_NORMS = ("none", "batch")


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


class NoNorm(nnx.Module):
    """In the place of a normalisation: only zeroes the rows that do not exist."""

    def __call__(self, x_BE: jax.Array, mask_B: jax.Array, *, train: bool) -> jax.Array:
        """float[B, E], bool[B] → float[B, E]."""
        return jnp.where(mask_B[:, None], x_BE, 0.0)


def make_head_norm(norm: str, embedding: int) -> MaskedBatchNorm | NoNorm:
    """The normalisation of a name in HEAD_NORMS."""
    if norm not in HEAD_NORMS:
        raise ValueError(f"unknown head norm {norm!r}: choose one of {', '.join(HEAD_NORMS)}")
    return MaskedBatchNorm(embedding) if norm == "batch" else NoNorm()


class Projection(nnx.Module):
    """A linear layer into the shared space and its normalisation; rows that the mask drops are 0."""

    def __init__(self, width: int, embedding: int, norm: str, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, embedding, dtype=dtype, rngs=rngs)
        self.norm = make_head_norm(norm, embedding)

    def __call__(self, x_BD: jax.Array, mask_B: jax.Array, *, train: bool) -> jax.Array:
        """float[B, D], bool[B] → float[B, E]."""
        return self.norm(self.linear(x_BD), mask_B, train=train)
