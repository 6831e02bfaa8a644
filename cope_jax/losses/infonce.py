"""InfoNCE (arXiv 1807.03748) in both directions, with label smoothing, as the authors train."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from cope_jax.losses.pairs import Pair, Side, compare, join_vectors, pull, split_vectors
from cope_jax.losses.ring import AXES, each, go_round, over_chunks, over_tiles
from cope_jax.losses.statistics import Nearest, Sums, Watched, watched_values


def infonce_loss(
    sides: Mapping[str, Side], *, pairs: Sequence[Pair], temperature: float, smoothing: float, mesh: Mesh
) -> tuple[jax.Array, Watched]:
    """Σ over pairs of weight · ½ (a finds b + b finds a), each the mean cross-entropy of picking the partner.

    An item's partner is the one of its own example. Its candidates are the partner and all present items of other
    products: a further item of its product is neither target nor negative. The target gives 1 − smoothing to the
    partner and smoothing evenly to all candidates. Examples that lack one of the two sides pick nothing, and their
    item stays a candidate of others.

    The devices' ring goes round twice, for the normalisers and then for the gradients; see `losses.ring`.

    Args:
        sides: of the whole batch, by name, cut over the mesh's axes AXES.
        pairs: of sides.
        temperature: what similarities are divided by.
        smoothing: of the labels, at least 0 and below 1.
        mesh: with the axes AXES; devices along others compute the same.

    Returns:
        The loss, float32[], and what is watched, as of the sigmoid loss.
    """
    function = partial(chunk_loss, pairs=pairs, temperature=temperature, smoothing=smoothing)
    return over_chunks(function, mesh)(*split_vectors(sides), {})


@struct.dataclass
class Candidates:
    """What each item of a side meets among its candidates. float32[B] each.

    Attributes:
        lse: logarithm of the sum of exp(logit); −inf while there are none.
        total: sum of logits.
        count: number.
    """

    lse: jax.Array
    total: jax.Array
    count: jax.Array

    @classmethod
    def none(cls, B: int) -> "Candidates":
        """Of B items that met nobody."""
        return cls(jnp.full(B, -jnp.inf), jnp.zeros(B), jnp.zeros(B))

    @classmethod
    def among(cls, logits: jax.Array, kept: jax.Array, *, axis: int) -> "Candidates":
        """Along an axis of a tile."""
        return cls(
            jax.nn.logsumexp(jnp.where(kept, logits, -jnp.inf), axis=axis),
            jnp.where(kept, logits, 0.0).sum(axis),
            kept.sum(axis).astype(jnp.float32),
        )

    def add(self, other: "Candidates") -> "Candidates":
        """Of both."""
        return Candidates(jnp.logaddexp(self.lse, other.lse), self.total + other.total, self.count + other.count)


@struct.dataclass
class Picks:
    """What the gradient needs of each item of a side. float32[B] each.

    Attributes:
        lse: of its candidates.
        even: smoothing / number of candidates.
        share: of its cross-entropy in the mean; 0 where it picks nothing.
    """

    lse: jax.Array
    even: jax.Array
    share: jax.Array


def chunk_loss(
    vectors: Any, rest: Any, scalars: Any, *, pairs: Sequence[Pair], temperature: float, smoothing: float
) -> Any:
    """The loss of the whole batch and this chunk's gradients, as `over_chunks` wants it."""
    chunk = join_vectors(vectors, rest)
    guest = {pair.b: chunk[pair.b] for pair in pairs}

    def count(stays: Any, guest: Any, returns: Any) -> Any:
        def of_pair(pair: Pair, own: Any, its: Any) -> Any:
            return add_candidates(chunk[pair.a], guest[pair.b], temperature, own, its)

        return each(of_pair, pairs, stays, returns)

    B = len(next(iter(vectors.values())))
    nothing = Candidates.none(B), Nearest.none(B)
    stays, returns = go_round(
        count, stays=[(Sums.zero(), *nothing) for _ in pairs], guest=guest, returns=[nothing for _ in pairs]
    )
    loss, watched, a_picks, b_picks = jnp.zeros(()), {}, [], []
    for pair, (sums, a_met, a_nearest), (b_met, b_nearest) in zip(pairs, stays, returns, strict=True):
        a, b = chunk[pair.a], chunk[pair.b]
        partner = jnp.sum(a.vectors * b.vectors, axis=-1) / temperature
        a_value, picks = pick(a_met, partner, a.present & b.present, smoothing)
        a_picks.append(picks)
        b_value, picks = pick(b_met, partner, a.present & b.present, smoothing)
        b_picks.append(picks)
        value = (a_value + b_value) / 2
        loss += pair.weight * value
        watched |= watched_values(pair, value, sums, a_nearest, b_nearest)

    def differentiate(stays: Any, guest: Any, returns: Any) -> Any:
        sides, b_picks = guest

        def of_pair(pair: Pair, a_picks: Picks, b_picks: Picks, own: Any, its: Any) -> Any:
            return add_gradients(chunk[pair.a], sides[pair.b], temperature, smoothing, a_picks, b_picks, own, its)

        return each(of_pair, pairs, a_picks, b_picks, stays, returns)

    zeros = [jnp.zeros_like(chunk[pair.a].vectors) for pair in pairs]
    stays, returns = go_round(differentiate, stays=zeros, guest=(guest, b_picks), returns=zeros)
    gradients = jax.tree.map(jnp.zeros_like, vectors)
    for pair, a_gradient, b_gradient in zip(pairs, stays, returns, strict=True):
        gradients[pair.a] += pair.weight * a_gradient
        gradients[pair.b] += pair.weight * b_gradient
    return (loss, watched), (gradients, {})


def pick(met: Candidates, partner_B: jax.Array, picking_B: jax.Array, smoothing: float) -> tuple[jax.Array, Picks]:
    """The mean cross-entropy over all devices of the items that pick, from their candidates and partner's logit."""
    share = picking_B / jnp.maximum(jax.lax.psum(picking_B.sum(), AXES), 1)
    count = jnp.maximum(met.count, 1)
    entropy = met.lse - (1 - smoothing) * partner_B - smoothing * met.total / count
    value = jax.lax.psum(jnp.where(picking_B, share * entropy, 0.0).sum(), AXES)
    return value, Picks(met.lse, smoothing / count, share)


def add_candidates(a: Side, b: Side, temperature: float, own: tuple, its: tuple) -> tuple[tuple, tuple]:
    """Adds all pairs of two chunks to what was gathered before.

    Args:
        a, b: a chunk that stays and one that visits.
        own: (Sums, a's Candidates, a's Nearest).
        its: (b's Candidates, b's Nearest).
    """

    def tile(carry: Any, rows: Side) -> Any:
        sums, b_met, b_nearest = carry
        grid = compare(rows, b)
        logits, kept = grid.cosine / temperature, grid.negative | partners(rows, b)
        b_met = b_met.add(Candidates.among(logits, kept, axis=0))
        b_nearest = b_nearest.nearer(Nearest.among(grid, axis=0))
        return (sums.add(grid), b_met, b_nearest), (
            Candidates.among(logits, kept, axis=1),
            Nearest.among(grid, axis=1),
        )

    sums, a_met, a_nearest = own
    (sums, *its), (met, nearest) = over_tiles(tile, (sums, *its), a)
    return (sums, a_met.add(met), a_nearest.nearer(nearest)), tuple(its)


def add_gradients(
    a: Side,
    b: Side,
    temperature: float,
    smoothing: float,
    a_picks: Picks,
    b_picks: Picks,
    a_gradient: jax.Array,
    b_gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Adds the gradients that all pairs of two chunks, one that stays and one that visits, give their vectors."""

    def tile(b_gradient: jax.Array, rows: Any) -> Any:
        rows, picks = rows
        partner = partners(rows, b)
        grid = compare(rows, b)
        slope = sum(
            share * (jnp.where(grid.negative | partner, jnp.exp(grid.cosine / temperature - lse) - even, 0.0))
            - share * (1 - smoothing) * partner
            for lse, even, share in (
                (picks.lse[:, None], picks.even[:, None], picks.share[:, None]),
                (b_picks.lse[None, :], b_picks.even[None, :], b_picks.share[None, :]),
            )
        ) / (2 * temperature)
        return b_gradient + pull(slope.T, rows.vectors), pull(slope, b.vectors)

    b_gradient, more = over_tiles(tile, b_gradient, (a, a_picks))
    return a_gradient + more, b_gradient


def partners(a: Side, b: Side) -> jax.Array:
    """bool[A, B], whether both items are present and of one example."""
    return (a.example[:, None] == b.example[None, :]) & a.present[:, None] & b.present[None, :]
