"""What contrastive losses compare: sets of vectors of the same examples, two at a time."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Side(NamedTuple):
    """One view of every example of a batch: the items of a domain, or their texts alone.

    Attributes:
        vectors: float32[B, E] of length 1; anything where not present.
        products: int32[B, M], product ids of each item, padded with −1.
        present: bool[B].
        example: int32[B], numbers of the examples, the same on all sides of a batch.
    """

    vectors: jax.Array
    products: jax.Array
    present: jax.Array
    example: jax.Array


def split_vectors(sides: Mapping[str, Side]) -> tuple[dict[str, jax.Array], dict[str, Side]]:
    """What has gradients, and the sides without it."""
    return {name: side.vectors for name, side in sides.items()}, {n: s._replace(vectors=None) for n, s in sides.items()}


def join_vectors(vectors: Mapping[str, jax.Array], rest: Mapping[str, Side]) -> dict[str, Side]:
    """The inverse of `split_vectors`."""
    return {name: side._replace(vectors=vectors[name]) for name, side in rest.items()}


class Pair(NamedTuple):
    """Two sides by name, and the factor on their loss."""

    a: str
    b: str
    weight: float = 1.0

    @property
    def name(self) -> str:
        """As metrics call it: "page_video"."""
        return f"{self.a}_{self.b}"


class Grid(NamedTuple):
    """Items of one side against items of another.

    Attributes:
        cosine: float32[A, B], their similarities.
        positive: bool[A, B], whether both are present and share a product.
        negative: bool[A, B], whether both are present and share none.
    """

    cosine: jax.Array
    positive: jax.Array
    negative: jax.Array


def compare(a: Side, b: Side) -> Grid:
    """All items of one side against all of another."""
    same = same_product(a.products, b.products)
    both = a.present[:, None] & b.present[None, :]
    return Grid(similarity(a.vectors, b.vectors), both & same, both & ~same)


def same_product(a_AM: jax.Array, b_BM: jax.Array) -> jax.Array:
    """Whether two items share a product.

    Args:
        a_AM, b_BM: int32[A, M] and int32[B, M], product ids of each item, padded with −1.

    Returns:
        bool[A, B].
    """
    match = jnp.zeros((len(a_AM), len(b_BM)), bool)
    for i in range(a_AM.shape[-1]):  # M is small; an [A, B, M, M] array would not be
        for j in range(b_BM.shape[-1]):
            match |= (a_AM[:, i, None] == b_BM[None, :, j]) & (a_AM[:, i, None] >= 0)
    return match


def similarity(a_AE: jax.Array, b_BE: jax.Array) -> jax.Array:
    """float32[A, E], float32[B, E] → float32[A, B], in full float32 also where matrix units would round."""
    return jnp.einsum("ae,be->ab", a_AE, b_BE, precision=jax.lax.Precision.HIGHEST)


def pull(weights_AB: jax.Array, b_BE: jax.Array) -> jax.Array:
    """Gradient of Σ weights·similarity for the vectors a: float32[A, B], float32[B, E] → float32[A, E]."""
    return jnp.einsum("ab,be->ae", weights_AB, b_BE, precision=jax.lax.Precision.HIGHEST)
