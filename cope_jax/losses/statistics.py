"""What to watch of a pair of sides: how similar its positives and negatives are, and who is nearest to whom."""

import jax
import jax.numpy as jnp
from flax import struct

from cope_jax.losses.pairs import Grid, Pair
from cope_jax.losses.ring import AXES

Watched = dict[str, tuple[jax.Array, jax.Array]]  # (sum, count) of each value by its name in the log


@struct.dataclass
class Sums:
    """Over pairs of items: similarities summed and counted, of one product and of two. float32[] each."""

    positive: jax.Array
    positives: jax.Array
    negative: jax.Array
    negatives: jax.Array

    @classmethod
    def zero(cls) -> "Sums":
        """Of no pairs."""
        return cls(*jnp.zeros(4))

    def add(self, grid: Grid) -> "Sums":
        """With the entries of a grid."""
        return Sums(
            self.positive + jnp.where(grid.positive, grid.cosine, 0.0).sum(),
            self.positives + grid.positive.sum(),
            self.negative + jnp.where(grid.negative, grid.cosine, 0.0).sum(),
            self.negatives + grid.negative.sum(),
        )


@struct.dataclass
class Nearest:
    """For each item of a side the similarity of the nearest one of its products and of others, −inf if none."""

    positive: jax.Array
    negative: jax.Array

    @classmethod
    def none(cls, B: int) -> "Nearest":
        """Of B items that met nobody."""
        return cls(jnp.full(B, -jnp.inf), jnp.full(B, -jnp.inf))

    @classmethod
    def among(cls, grid: Grid, *, axis: int) -> "Nearest":
        """Along an axis of a grid."""
        return cls(*(jnp.where(mask, grid.cosine, -jnp.inf).max(axis) for mask in (grid.positive, grid.negative)))

    def nearer(self, other: "Nearest") -> "Nearest":
        """Of both."""
        return jax.tree.map(jnp.maximum, self, other)

    def accuracy(self) -> tuple[jax.Array, jax.Array]:
        """How many of the items with a positive have it nearer than all others, and how many those are."""
        asked = self.positive > -jnp.inf
        hits = asked & (self.positive > self.negative)
        return hits.sum().astype(jnp.float32), asked.sum().astype(jnp.float32)


def watched_values(pair: Pair, loss: jax.Array, sums: Sums, nearest_a: Nearest, nearest_b: Nearest) -> Watched:
    """What is watched of a pair over all devices, from one device's part; the loss is whole already."""
    parts = {
        f"positive/{pair.name}": (sums.positive, sums.positives),
        f"negative/{pair.name}": (sums.negative, sums.negatives),
        f"accuracy/{pair.a}_{pair.b}": nearest_a.accuracy(),
        f"accuracy/{pair.b}_{pair.a}": nearest_b.accuracy(),
    }
    return {f"loss/{pair.name}": (loss, jnp.ones(())), **jax.lax.psum(parts, AXES)}
