"""The sigmoid contrastive loss of SigLIP (arXiv 2303.15343), with several positives and missing items."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cope_jax.losses.pairs import Pair, Side, compare, join_vectors, pull, split_vectors
from cope_jax.losses.ring import AXES, each, go_round, over_chunks, over_tiles
from cope_jax.losses.statistics import Nearest, Sums, Watched, watched_values


def init_scalars(*, temperature: float, bias: float) -> dict[str, jax.Array]:
    """The learnable scalars: `log_t` = t′ with t = exp(t′) the factor on similarities, and `bias` = β."""
    return {"log_t": jnp.asarray(math.log(temperature), jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}


def sigmoid_loss(
    sides: Mapping[str, Side], scalars: Mapping[str, jax.Array], *, pairs: Sequence[Pair], mesh: Mesh
) -> tuple[jax.Array, Watched]:
    """Σ over pairs of weight · (1/B) Σ_ij softplus(−z_ij (t·a_i·b_j + β)), z_ij = +1 for one product, else −1.

    Items that are not present add nothing; B counts them too, so that the value is a sum over disjoint blocks of
    pairs however the batch is cut. With k devices it takes k visits of the ring and memory for two chunks.

    Args:
        sides: of the whole batch, by name, cut over the mesh's axes AXES.
        scalars: as from `init_scalars`.
        pairs: of sides.
        mesh: with the axes AXES; devices along others compute the same.

    Returns:
        The loss, float32[], and (sum, count) of each watched value: per pair the loss, the mean similarity of
        positives and of negatives, and in both directions how often the nearest item shows the same product.
    """
    return over_chunks(partial(chunk_loss, pairs=pairs), mesh)(*split_vectors(sides), dict(scalars))


def chunk_loss(vectors: Any, rest: Any, scalars: Any, *, pairs: Sequence[Pair]) -> Any:
    """The loss of the whole batch and this chunk's gradients, as `over_chunks` wants it."""
    chunk = join_vectors(vectors, rest)

    def visit(stays: Any, guest: Any, returns: Any) -> Any:
        return each(
            lambda pair, own, its: add_block(chunk[pair.a], guest[pair.b], scalars, own, its), pairs, stays, returns
        )

    B = len(next(iter(vectors.values())))
    nothing = jnp.zeros_like(next(iter(vectors.values()))), Nearest.none(B)
    stays, returns = go_round(
        visit,
        stays=[(jnp.zeros(3), Sums.zero(), *nothing) for _ in pairs],
        guest={pair.b: chunk[pair.b] for pair in pairs},
        returns=[nothing for _ in pairs],
    )
    scale = 1.0 / (B * jax.lax.axis_size(AXES))
    gradients, totals, watched = jax.tree.map(jnp.zeros_like, vectors), jnp.zeros(3), {}
    for pair, (terms, sums, a_gradient, a_nearest), (b_gradient, b_nearest) in zip(pairs, stays, returns, strict=True):
        terms = scale * jax.lax.psum(terms, AXES)
        watched |= watched_values(pair, terms[0], sums, a_nearest, b_nearest)
        totals += pair.weight * terms
        gradients[pair.a] += pair.weight * scale * a_gradient
        gradients[pair.b] += pair.weight * scale * b_gradient
    loss, log_t_gradient, bias_gradient = totals
    return (loss, watched), (gradients, {"log_t": log_t_gradient, "bias": bias_gradient})


def add_block(a: Side, b: Side, scalars: Mapping[str, jax.Array], own: tuple, its: tuple) -> tuple[tuple, tuple]:
    """Adds all pairs of two chunks to what was gathered before.

    Args:
        a, b: a chunk that stays and one that visits.
        own: (float32[3]: the sum of losses and its gradients by log_t and bias; Sums; gradient of a's vectors; a's
            Nearest).
        its: (gradient of b's vectors; b's Nearest).
    """
    t, bias = jnp.exp(scalars["log_t"]), scalars["bias"]

    def tile(carry: Any, rows: Side) -> Any:
        terms, sums, b_gradient, b_nearest = carry
        grid = compare(rows, b)
        logits = t * grid.cosine + bias
        sign = grid.negative.astype(jnp.float32) - grid.positive  # −z; 0 where one of the two is missing
        loss = jnp.abs(sign) * jax.nn.softplus(sign * logits)
        slope = sign * jax.nn.sigmoid(sign * logits)  # of the loss by the logit
        carry = (
            terms + jnp.stack([loss.sum(), (slope * t * grid.cosine).sum(), slope.sum()]),
            sums.add(grid),
            b_gradient + t * pull(slope.T, rows.vectors),
            b_nearest.nearer(Nearest.among(grid, axis=0)),
        )
        return carry, (t * pull(slope, b.vectors), Nearest.among(grid, axis=1))

    terms, sums, a_gradient, a_nearest = own
    (terms, sums, *its), (more, nearest) = over_tiles(tile, (terms, sums, *its), a)
    return (terms, sums, a_gradient + more, a_nearest.nearer(nearest)), tuple(its)
