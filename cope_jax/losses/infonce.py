"""InfoNCE (arXiv 1807.03748) in both directions with label smoothing, as the authors train."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float32, PyTree

from cope_jax.losses.pairs import (
    Comparison,
    Nearest,
    Pair,
    SimilaritySums,
    Statistics,
    View,
    compare,
    cosine_gradient,
    join_vectors,
    pair_statistics,
    split_vectors,
)
from cope_jax.losses.ring import LossAndGradients, gather_or_ring, ring_loop, scan_tiles, shard_loss


def infonce_loss(
    views: Mapping[str, View],
    *,
    pairs: Sequence[Pair],
    temperature: float,
    smoothing: float,
    mesh: Mesh,
    precision: str = "highest",
) -> tuple[Float32[Array, ""], Statistics]:
    """Σ over pairs of weight · ½ (a finds b + b finds a), each the mean cross-entropy of choosing the partner.

    The partner of an item is the one of the same example. Its candidates are the partner and all present items of other
    products: another item of its product is neither target nor negative. The target distribution gives 1 − smoothing to
    the partner and spreads smoothing evenly over all candidates. An example without one of the two views has no
    cross-entropy, but its item remains a candidate for others.

    In a ring, chunks go round twice, first for the normalizers and then for the gradients; see `losses.ring`.

    Args:
        views: Views of the whole batch by name, sharded over `losses.ring.BATCH_AXES`.
        pairs: Pairs of views.
        temperature: Divisor of similarities.
        smoothing: Label smoothing in [0, 1).
        mesh: Mesh with these axes; devices along other axes compute the same.
        precision: Of matrix products, see `losses.pairs.einsum`.

    Returns:
        The loss and statistics as of `sigmoid_loss`.
    """
    vectors, labels = split_vectors(views)
    settings = {"temperature": temperature, "smoothing": smoothing, "precision": precision}
    chunk_loss = partial(_chunk_loss, pairs=pairs, **settings)
    chunk_loss = gather_or_ring(chunk_loss, examples=len(next(iter(vectors.values()))))
    return shard_loss(chunk_loss, mesh)(vectors, labels, {})


class _Candidates(NamedTuple):
    """Statistics of the candidates of each item of a view: log-sum-exp (−inf without any), sum and number of logits."""

    lse: Array
    total: Array
    number: Array
    nearest: Nearest

    @classmethod
    def empty(cls, B: int) -> "_Candidates":
        """The statistics of no candidates."""
        return cls(jnp.full(B, -jnp.inf), jnp.zeros(B), jnp.zeros(B), Nearest.empty(B))

    @classmethod
    def along(cls, axis: int, items: Comparison, logits: Array, kept: Array) -> "_Candidates":
        """The statistics along an axis of a tile."""
        return cls(
            jax.nn.logsumexp(jnp.where(kept, logits, -jnp.inf), axis=axis),
            jnp.where(kept, logits, 0.0).sum(axis),
            kept.sum(axis).astype(jnp.float32),
            Nearest.along(axis, items),
        )

    def merge(self, other: "_Candidates") -> "_Candidates":
        """Merges the statistics of disjoint candidates."""
        lse, total, number = jnp.logaddexp(self.lse, other.lse), self.total + other.total, self.number + other.number
        return _Candidates(lse, total, number, self.nearest.merge(other.nearest))


_Local = tuple[SimilaritySums, _Candidates]  # first round: accumulators of a device for its own view a of a pair


class _GradientTerms(NamedTuple):
    """Values of each item for the gradient."""

    lse: Array  # log-sum-exp of its candidates' logits
    even: Array  # smoothing / number of candidates
    share: Array  # weight of its cross-entropy in the mean; 0 without a partner


def _chunk_loss(
    vectors: dict[str, Array],
    labels: PyTree,
    scalars: PyTree,
    *,
    pairs: Sequence[Pair],
    temperature: float,
    smoothing: float,
    precision: str,
    axes: tuple[str, ...],
) -> LossAndGradients:
    """The loss of the whole batch and the gradients of this chunk, for `gather_or_ring`."""
    chunk = join_vectors(vectors, labels)
    visitor = {pair.b: chunk[pair.b] for pair in pairs}

    def count(i: int, visitor: dict[str, View], own: _Local, its: _Candidates) -> tuple[_Local, _Candidates]:
        a, b = chunk[pairs[i].a], visitor[pairs[i].b]
        return _add_candidates(a, b, own, its, temperature=temperature, precision=precision)

    B = len(next(iter(vectors.values())))
    start = _Candidates.empty(B)
    local = [(SimilaritySums(*jnp.zeros(4)), start) for _ in pairs]
    local, for_visitor = ring_loop(count, local=local, visitor=visitor, for_visitor=[start for _ in pairs], axes=axes)

    loss, statistics, a_terms, b_terms = jnp.zeros(()), {}, [], []
    for pair, (sums, own), its in zip(pairs, local, for_visitor, strict=True):
        a, b = chunk[pair.a], chunk[pair.b]
        both = a.present & b.present
        partner = jnp.sum(a.vectors * b.vectors, axis=-1) / temperature
        a_value, terms = _cross_entropy(own, partner, both, smoothing=smoothing, axes=axes)
        a_terms.append(terms)
        b_value, terms = _cross_entropy(its, partner, both, smoothing=smoothing, axes=axes)
        b_terms.append(terms)
        value = (a_value + b_value) / 2
        loss += pair.weight * value
        statistics |= pair_statistics(pair, value, sums, own.nearest, its.nearest, axes=axes)

    def differentiate(i: int, visitor: PyTree, a_gradient: Array, b_gradient: Array) -> tuple[Array, Array]:
        (views, b_terms), a = visitor, chunk[pairs[i].a]
        b, settings = views[pairs[i].b], {"temperature": temperature, "smoothing": smoothing, "precision": precision}
        return _add_gradients(a, b, a_terms[i], b_terms[i], a_gradient, b_gradient, **settings)

    zeros = [jnp.zeros_like(chunk[pair.a].vectors) for pair in pairs]
    local, for_visitor = ring_loop(differentiate, local=zeros, visitor=(visitor, b_terms), for_visitor=zeros, axes=axes)
    gradients = jax.tree.map(jnp.zeros_like, vectors)
    for pair, a_gradient, b_gradient in zip(pairs, local, for_visitor, strict=True):
        gradients[pair.a] += pair.weight * a_gradient
        gradients[pair.b] += pair.weight * b_gradient
    return (loss, statistics), (gradients, {})


def _cross_entropy(
    candidates: _Candidates, partner_B: Array, has_partner_B: Array, *, smoothing: float, axes: tuple[str, ...]
) -> tuple[Array, _GradientTerms]:
    """The mean cross-entropy over all devices, from the candidates of this device's items and the partners' logits."""
    share = has_partner_B / jnp.maximum(jax.lax.psum(has_partner_B.sum(), axes), 1)
    count = jnp.maximum(candidates.number, 1)
    entropy = candidates.lse - (1 - smoothing) * partner_B - smoothing * candidates.total / count
    value = jax.lax.psum(jnp.where(has_partner_B, share * entropy, 0.0).sum(), axes)
    return value, _GradientTerms(candidates.lse, smoothing / count, share)


def _add_candidates(
    a: View, b: View, own: _Local, its: _Candidates, *, temperature: float, precision: str
) -> tuple[_Local, _Candidates]:
    """Adds all pairs of items of a local chunk and a visiting one."""

    def tile(carry: PyTree, rows: View) -> tuple[PyTree, PyTree]:
        sums, b_candidates = carry
        items = compare(rows, b, precision=precision)
        logits, kept = items.cosine / temperature, items.negative | _are_partners(rows, b)
        along = partial(_Candidates.along, items=items, logits=logits, kept=kept)
        return (sums.add(items), b_candidates.merge(along(0))), along(1)

    sums, a_candidates = own
    (sums, its), added = scan_tiles(tile, (sums, its), a)
    return (sums, a_candidates.merge(added)), its


def _add_gradients(
    a: View,
    b: View,
    a_terms: _GradientTerms,
    b_terms: _GradientTerms,
    a_gradient: Array,
    b_gradient: Array,
    *,
    temperature: float,
    smoothing: float,
    precision: str,
) -> tuple[Array, Array]:
    """Adds the gradients from all pairs of items of a local chunk and a visiting one."""

    def tile(b_gradient: Array, rows_and_terms: tuple[View, _GradientTerms]) -> tuple[Array, Array]:
        rows, terms = rows_and_terms
        partner = _are_partners(rows, b)
        items = compare(rows, b, precision=precision)

        def probability_minus_target(lse: Array, even: Array, share: Array) -> Array:
            smoothed = jnp.where(items.negative | partner, jnp.exp(items.cosine / temperature - lse) - even, 0.0)
            return share * smoothed - share * (1 - smoothing) * partner

        by_row, by_column = [term[:, None] for term in terms], [term[None, :] for term in b_terms]
        slope = probability_minus_target(*by_row) + probability_minus_target(*by_column)
        slope = slope / (2 * temperature)
        product = partial(cosine_gradient, precision=precision)
        return b_gradient + product(slope.T, rows.vectors), product(slope, b.vectors)

    b_gradient, added = scan_tiles(tile, b_gradient, (a, a_terms))
    return a_gradient + added, b_gradient


def _are_partners(a: View, b: View) -> Array:
    """Whether two items are present and of the same example."""
    return (a.example[:, None] == b.example[None, :]) & a.present[:, None] & b.present[None, :]
