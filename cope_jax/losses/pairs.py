"""Views of a batch, how contrastive losses compare two of them, and the statistics that they report."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

Statistics = dict[str, tuple[Array, Array]]  # (sum, count) by name in the log
ViewLabels = tuple[Array, Array, Array]  # the fields of a `View` after `vectors`
PRECISIONS = ("highest", "bfloat16")


def einsum(equation: str, a: Array, b: Array, *, precision: str) -> Float32[Array, "..."]:
    """Returns a product of float32 arrays, with sums in float32.

    Args:
        equation: As of `jnp.einsum`.
        a: First factor.
        b: Second factor.
        precision: "highest": float32, also on matrix units that would round. "bfloat16": factors are rounded.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision == "highest":
        return jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum(equation, a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


class View(NamedTuple):
    """One view of all examples of a batch: the items of a domain, or only their texts or frames."""

    vectors: Float32[Array, "B E"]  # embeddings of length 1; arbitrary if not present
    products: Int32[Array, "B M"]  # product ids of each item, padded with −1
    present: Bool[Array, " B"]  # whether the example has this view
    example: Int32[Array, " B"]  # numbers of the examples, the same in all views of a batch


def split_vectors(views: Mapping[str, View]) -> tuple[dict[str, Array], dict[str, ViewLabels]]:
    """Splits views into vectors, which have gradients, and the rest."""
    return {name: view.vectors for name, view in views.items()}, {name: view[1:] for name, view in views.items()}


def join_vectors(vectors: Mapping[str, Array], labels: Mapping[str, ViewLabels]) -> dict[str, View]:
    """Inverse of `split_vectors`."""
    return {name: View(vectors[name], *rest) for name, rest in labels.items()}


class Pair(NamedTuple):
    """Names of two views to compare, and the weight of their loss. A view with itself: its items with each other."""

    a: str
    b: str
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Name in metrics: "page_video", or "page_text_video" of the views page.text and video."""
        return (f"{self.a}_within" if self.a == self.b else f"{self.a}_{self.b}").replace(".", "_")

    @property
    def reverse(self) -> "Pair":
        """The pair in the other direction."""
        return Pair(self.b, self.a, self.weight)


class Comparison(NamedTuple):
    """All items of a view against all items of another."""

    cosine: Float32[Array, "A B"]  # similarities
    positive: Bool[Array, "A B"]  # whether both are present and share a product
    negative: Bool[Array, "A B"]  # whether both are present and share none


def compare(a: View, b: View, *, within: bool = False, precision: str) -> Comparison:
    """Compares all items of two views; `precision` as of `einsum`, here and below.

    With `within`, both are the same view, and no item is compared with itself.
    """
    same = share_product(a.products, b.products)
    both = a.present[:, None] & b.present[None, :]
    if within:
        both &= a.example[:, None] != b.example[None, :]
    cosine = einsum("ae,be->ab", a.vectors, b.vectors, precision=precision)
    return Comparison(cosine, both & same, both & ~same)


def share_product(a_AM: Int32[Array, "A M"], b_BM: Int32[Array, "B M"]) -> Bool[Array, "A B"]:
    """Returns whether two items share a product; product ids are padded with −1."""
    match = jnp.zeros((len(a_AM), len(b_BM)), bool)
    for i in range(a_AM.shape[-1]):  # M is small, but an array [A, B, M, M] would not be
        for j in range(b_BM.shape[-1]):
            match |= (a_AM[:, i, None] == b_BM[None, :, j]) & (a_AM[:, i, None] >= 0)
    return match


def cosine_gradient(
    weights_AB: Float32[Array, "A B"], b_BE: Float32[Array, "B E"], *, precision: str
) -> Float32[Array, "A E"]:
    """Returns the gradient of Σ weights·cosine with respect to the vectors of view a."""
    return einsum("ab,be->ae", weights_AB, b_BE, precision=precision)


class SimilaritySums(NamedTuple):
    """Sums and counts of the similarities of positive and negative pairs of items."""

    positive: Float32[Array, ""]
    positives: Float32[Array, ""]
    negative: Float32[Array, ""]
    negatives: Float32[Array, ""]

    def add(self, items: Comparison) -> "SimilaritySums":
        """Adds the pairs of a comparison."""
        return SimilaritySums(
            self.positive + jnp.where(items.positive, items.cosine, 0.0).sum(),
            self.positives + items.positive.sum(),
            self.negative + jnp.where(items.negative, items.cosine, 0.0).sum(),
            self.negatives + items.negative.sum(),
        )


class Nearest(NamedTuple):
    """Similarity of each item's nearest positive and nearest negative, −inf if it has none."""

    positive: Float32[Array, " B"]
    negative: Float32[Array, " B"]

    @classmethod
    def empty(cls, B: int) -> "Nearest":
        """The state of B items before any comparison."""
        return cls(jnp.full(B, -jnp.inf), jnp.full(B, -jnp.inf))

    @classmethod
    def along(cls, axis: int, items: Comparison) -> "Nearest":
        """The nearest ones along an axis of a comparison."""
        return cls(*(jnp.where(mask, items.cosine, -jnp.inf).max(axis) for mask in (items.positive, items.negative)))

    def merge(self, other: "Nearest") -> "Nearest":
        """Merges the results of two comparisons of the same items."""
        return jax.tree.map(jnp.maximum, self, other)

    def accuracy(self) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
        """Counts the items whose nearest positive is nearer than all negatives, and the items with a positive."""
        asked = self.positive > -jnp.inf
        hits = asked & (self.positive > self.negative)
        return hits.sum().astype(jnp.float32), asked.sum().astype(jnp.float32)


def pair_statistics(
    pair: Pair,
    loss: Float32[Array, ""],
    sums: SimilaritySums,
    nearest_a: Nearest,
    nearest_b: Nearest,
    *,
    axes: tuple[str, ...],
) -> Statistics:
    """Returns the statistics of a pair over all devices of `axes`, from those of one device and the loss of all."""
    parts = {
        f"positive/{pair.name}": (sums.positive, sums.positives),
        f"negative/{pair.name}": (sums.negative, sums.negatives),
        f"accuracy/{pair.name}": nearest_a.accuracy(),
        f"accuracy/{pair.reverse.name}": nearest_b.accuracy(),
    }
    return {f"loss/{pair.name}": (loss, jnp.ones(())), **jax.lax.psum(parts, axes)}
