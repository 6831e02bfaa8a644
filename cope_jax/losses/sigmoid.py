"""The sigmoid contrastive loss of SigLIP (arXiv 2303.15343), with several positives and missing items."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float32, PyTree

from cope_jax.losses.pairs import (
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

Scalars = Mapping[str, Float32[Array, ""]]


def init_scalars(*, temperature: float, bias: float) -> dict[str, Float32[Array, ""]]:
    """Returns the learnable scalars: `log_t`, with exp(log_t) the factor on similarities, and `bias`."""
    return {"log_t": jnp.asarray(math.log(temperature), jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}


def sigmoid_loss(
    views: Mapping[str, View], scalars: Scalars, *, pairs: Sequence[Pair], mesh: Mesh, precision: str = "highest"
) -> tuple[Float32[Array, ""], Statistics]:
    """Σ over pairs of weight · (1/B) Σ_ij softplus(−z_ij (t·a_i·b_j + bias)), z_ij = +1 for a shared product, else −1.

    In a pair of a view with itself, i ≠ j. Items that are not present add nothing, but B counts them: the value is a
    sum over disjoint blocks of pairs for any sharding of the batch. See `losses.ring` for how it is computed.

    Args:
        views: Views of the whole batch by name, sharded over `losses.ring.BATCH_AXES`.
        scalars: From `init_scalars`.
        pairs: Pairs of views.
        mesh: Mesh with these axes; devices along other axes compute the same.
        precision: Of matrix products, see `losses.pairs.einsum`.

    Returns:
        The loss, and for each pair the statistics: loss, mean similarity of positives and of negatives, and in both
        directions how often the nearest item is a positive.
    """
    vectors, labels = split_vectors(views)
    chunk_loss = partial(_chunk_loss, pairs=pairs, precision=precision)
    chunk_loss = gather_or_ring(chunk_loss, examples=len(next(iter(vectors.values()))))
    return shard_loss(chunk_loss, mesh)(vectors, labels, dict(scalars))


class _Local(NamedTuple):
    """Accumulators of a device for its own view a of a pair."""

    terms: Array  # loss, its derivatives by log_t and bias
    sums: SimilaritySums
    gradient: Array
    nearest: Nearest


class _ForVisitor(NamedTuple):
    """Accumulators of the devices for the visiting view b."""

    gradient: Array
    nearest: Nearest


def _chunk_loss(
    vectors: dict[str, Array],
    labels: PyTree,
    scalars: Scalars,
    *,
    pairs: Sequence[Pair],
    precision: str,
    axes: tuple[str, ...],
) -> LossAndGradients:
    """The loss of the whole batch and the gradients of this chunk, for `gather_or_ring`."""
    chunk = join_vectors(vectors, labels)

    def visit(i: int, visitor: dict[str, View], own: _Local, its: _ForVisitor) -> tuple[_Local, _ForVisitor]:
        a, b = pairs[i].a, pairs[i].b
        return _add_block(chunk[a], visitor[b], scalars, own, its, within=a == b, precision=precision)

    B = len(next(iter(vectors.values())))
    start = _ForVisitor(jnp.zeros_like(next(iter(vectors.values()))), Nearest.empty(B))
    local, for_visitor = ring_loop(
        visit,
        local=[_Local(jnp.zeros(3), SimilaritySums(*jnp.zeros(4)), *start) for _ in pairs],
        visitor={pair.b: chunk[pair.b] for pair in pairs},
        for_visitor=[start for _ in pairs],
        axes=axes,
    )
    scale = 1.0 / (B * jax.lax.axis_size(axes))
    gradients, totals, statistics = jax.tree.map(jnp.zeros_like, vectors), jnp.zeros(3), {}
    for pair, own, its in zip(pairs, local, for_visitor, strict=True):
        terms = scale * jax.lax.psum(own.terms, axes)
        statistics |= pair_statistics(pair, terms[0], own.sums, own.nearest, its.nearest, axes=axes)
        totals += pair.weight * terms
        gradients[pair.a] += pair.weight * scale * own.gradient
        gradients[pair.b] += pair.weight * scale * its.gradient
    loss, log_t_gradient, bias_gradient = totals
    return (loss, statistics), (gradients, {"log_t": log_t_gradient, "bias": bias_gradient})


def _add_block(
    a: View, b: View, scalars: Scalars, own: _Local, its: _ForVisitor, *, within: bool, precision: str
) -> tuple[_Local, _ForVisitor]:
    """Adds all pairs of items of a local chunk and a visiting one."""
    t, bias = jnp.exp(scalars["log_t"]), scalars["bias"]

    def tile(carry: PyTree, rows: View) -> tuple[PyTree, PyTree]:
        terms, sums, b_gradient, b_nearest = carry
        items = compare(rows, b, within=within, precision=precision)
        logits = t * items.cosine + bias
        sign = items.negative.astype(jnp.float32) - items.positive  # −z; 0 if one of the two is missing
        loss = jnp.abs(sign) * jax.nn.softplus(sign * logits)
        slope = sign * jax.nn.sigmoid(sign * logits)  # derivative of the loss by the logit
        carry = (
            terms + jnp.stack([loss.sum(), (slope * t * items.cosine).sum(), slope.sum()]),
            sums.add(items),
            b_gradient + t * cosine_gradient(slope.T, rows.vectors, precision=precision),
            b_nearest.merge(Nearest.along(0, items)),
        )
        return carry, (t * cosine_gradient(slope, b.vectors, precision=precision), Nearest.along(1, items))

    (terms, sums, *rest), (gradient, nearest) = scan_tiles(tile, (own.terms, own.sums, *its), a)
    return _Local(terms, sums, own.gradient + gradient, own.nearest.merge(nearest)), _ForVisitor(*rest)
