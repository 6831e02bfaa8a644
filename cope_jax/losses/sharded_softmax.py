"""The margin softmax over a class table that lies on all devices: loss and gradients in one pass over the items.

Every device sees all items and its own classes. It takes the items in tiles of R, so that it never holds more than R
logits for each of its classes. For each item of a tile, two numbers go round to find the highest cosines and one to
add up the exponentials. At the end, the gradients of the embeddings go back to the devices their examples came from.

D domains, B examples, N = D·B items, R of them in a tile, M products of an item; C rows of the table (on a device: of
its part), S of those kept for the step; E embedding.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

EXAMPLE_AXES = ("data", "fsdp")
CLASS_AXES = ("data", "fsdp", "tensor")
TILE = 256  # items at most; enough for matrix units, and the logits of 187,431 classes on 4 devices are 48 MB
SHORTEST = 1e-12  # squared length from which on a row of the table is normalised
NOWHERE = -1e9  # lower than any cosine, and finite when scaled

Gradients = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class MarginSoftmax:
    """Settings, as of `classifier_loss`."""

    mesh: Mesh
    classes: int
    scale: float
    margin: float
    rate: float


class Items(NamedTuple):
    """What the items are: classes and whether they count, and the key that the step's sampling takes."""

    target_B: jax.Array
    labels_DBM: jax.Array
    counted_DB: jax.Array
    key: jax.Array


def sums_and_gradients(
    softmax: MarginSoftmax, table_CE: jax.Array, x_DBE: jax.Array, items: Items, *, gradients: bool
) -> tuple[jax.Array, Gradients | None]:
    """Sums over the items of each domain, and the gradients of the loss.

    Args:
        table_CE: float32, cut over all axes of the mesh.
        x_DBE: float32, of length 1, cut over data × fsdp like the items.
        gradients: whether to compute them.

    Returns:
        float32[3, D]: over a domain's items that count the sum of their losses, how many cosines of targets are the
        highest, the sum of these cosines. And where asked for the gradients of Σ_D mean loss for table and
        embeddings, cut as these are.
    """
    examples = PartitionSpec(None, EXAMPLE_AXES)
    table = PartitionSpec(CLASS_AXES)
    on_mesh = jax.shard_map(
        partial(_on_device, softmax, gradients=gradients),
        mesh=softmax.mesh,
        in_specs=(table, examples, Items(PartitionSpec(EXAMPLE_AXES), examples, examples, PartitionSpec())),
        out_specs=(PartitionSpec(), (table, examples) if gradients else None),
        check_vma=False,  # that the sums are the same everywhere does not show in their types behind all_gather
    )
    return on_mesh(table_CE, x_DBE, items)


def _on_device(
    softmax: MarginSoftmax, table_CE: jax.Array, x_DBE: jax.Array, items: Items, *, gradients: bool
) -> tuple[jax.Array, Gradients | None]:
    """`sums_and_gradients` of one device: with its classes, and the items of its examples."""
    x_DBE = jnp.where(items.counted_DB[..., None], x_DBE, 0.0)  # what is absent may be anything, NaN too
    x_DBE, labels_DBM, counted_DB = (_gathered(array, axis=1) for array in (x_DBE, items.labels_DBM, items.counted_DB))
    target_DB = jnp.where(counted_DB, _gathered(items.target_B, axis=0)[None], -1)
    weight_DB = counted_DB / jnp.maximum(counted_DB.sum(axis=1, keepdims=True), 1)

    device, rows = jax.lax.axis_index(CLASS_AXES), len(table_CE)
    ids_S, w_SE = device * rows + jnp.arange(rows), table_CE
    if softmax.rate < 1:
        kept_S = _sample(softmax, target_DB.max(axis=0), ids_S, jax.random.fold_in(items.key, device))
        ids_S, w_SE = ids_S[kept_S], w_SE[kept_S]

    tiles = tuple(_tiles(array) for array in (x_DBE, target_DB, labels_DBM, weight_DB))
    start_SE = jnp.zeros_like(w_SE) if gradients else None
    grad_SE, (watched_T3R, dx_TRE) = jax.lax.scan(
        lambda grad_SE, tile: _tile(softmax, w_SE, ids_S, grad_SE, *tile), start_SE, tiles
    )
    domains, examples = counted_DB.shape
    watched_3DB = jnp.moveaxis(watched_T3R, 1, 0).reshape(3, -1)[:, : counted_DB.size].reshape(3, domains, examples)
    sums_3D = jnp.where(counted_DB[None], watched_3DB, 0.0).sum(axis=-1)
    if not gradients:
        return sums_3D, None
    d_table_CE = _through_normalisation(w_SE, grad_SE)
    if softmax.rate < 1:
        d_table_CE = jnp.zeros_like(table_CE).at[kept_S].set(d_table_CE, unique_indices=True)
    dx_DBE = dx_TRE.reshape(-1, x_DBE.shape[-1])[: counted_DB.size].reshape(x_DBE.shape)
    dx_DBE = jax.lax.psum_scatter(dx_DBE, EXAMPLE_AXES, scatter_dimension=1, tiled=True)
    return sums_3D, (d_table_CE, jax.lax.psum(dx_DBE, "tensor"))


def _gathered(array: jax.Array, *, axis: int) -> jax.Array:
    """The whole of an array whose axis is cut over the devices of the examples."""
    return jax.lax.all_gather(array, EXAMPLE_AXES, axis=axis, tiled=True)


def _sample(softmax: MarginSoftmax, target_B: jax.Array, ids_C: jax.Array, key: jax.Array) -> jax.Array:
    """Which of a device's rows to keep, int32[S]: those of targets, then other classes at random, each once."""
    rows = len(ids_C)
    keep = max(math.ceil(softmax.rate * rows), min(rows, len(target_B)))
    score_C = jnp.where(ids_C < softmax.classes, jax.random.uniform(key, (rows,)), -1.0)
    here_B = target_B - ids_C[0]
    here_B = jnp.where(here_B < 0, rows, here_B)  # a negative index would count from the end
    return jax.lax.top_k(score_C.at[here_B].set(2.0, mode="drop"), keep)[1]


def _tiles(items: jax.Array) -> jax.Array:
    """[D, B, …] → [T, R, …], as few tiles as R ≤ TILE allows; items of zeros, which weigh nothing, fill the last."""
    items = items.reshape(-1, *items.shape[2:])
    size = -(-len(items) // -(-len(items) // TILE))
    padding = [(0, -len(items) % size)] + [(0, 0)] * (items.ndim - 1)
    return jnp.pad(items, padding).reshape(-1, size, *items.shape[1:])


def _tile(
    softmax: MarginSoftmax,
    w_SE: jax.Array,
    ids_S: jax.Array,
    grad_SE: jax.Array | None,
    x_RE: jax.Array,
    target_R: jax.Array,
    labels_RM: jax.Array,
    weight_R: jax.Array,
) -> tuple[jax.Array | None, tuple[jax.Array, jax.Array | None]]:
    """One tile of items against the device's classes.

    The loss of an item is softplus(gap), gap = logsumexp of its negatives' logits − its target's logit: exact also
    where the target's probability is all but 1.

    Returns:
        grad_SE with the tile's part added: w's gradient as if w were not normalised, but scaled by a constant. Then
        float32[3, R], per item the loss, whether the target is the highest, and its cosine; and this device's part of
        the embeddings' gradients, float32[R, E]. Gradients are None where grad_SE is.
    """
    inverse_S = jax.lax.rsqrt(jnp.maximum(_square(w_SE), SHORTEST))
    cos_RS = _product("re,se->rs", x_RE, w_SE) * inverse_S[None]
    target_RS = target_R[:, None] == ids_S[None]
    negative_RS = ~target_RS & (ids_S < softmax.classes)[None]
    for m in range(labels_RM.shape[-1]):
        negative_RS &= labels_RM[:, m, None] != ids_S[None]
    highest_2R = jnp.stack([jnp.where(mask, cos_RS, NOWHERE).max(axis=-1) for mask in (negative_RS, target_RS)])
    rival_R, cos_R = jax.lax.pmax(highest_2R, CLASS_AXES)
    mass_RS = jnp.where(negative_RS, jnp.exp(softmax.scale * (cos_RS - rival_R[:, None])), 0.0)
    mass_R = jax.lax.psum(mass_RS.sum(axis=-1), CLASS_AXES)  # at least 1, or 0 where there are no negatives
    gap_R = softmax.scale * (rival_R - cos_R + softmax.margin) + jnp.log(mass_R)
    watched_3R = jnp.stack([jax.nn.softplus(gap_R), (cos_R > rival_R).astype(jnp.float32), cos_R])
    if grad_SE is None:
        return None, (watched_3R, None)
    slope_R = softmax.scale * weight_R * jax.nn.sigmoid(gap_R)
    share_RS = mass_RS / jnp.maximum(mass_R, 1.0)[:, None] - target_RS
    slope_RS = slope_R[:, None] * share_RS * inverse_S[None]
    grad_SE += _product("rs,re->se", slope_RS, x_RE)
    return grad_SE, (watched_3R, _product("rs,se->re", slope_RS, w_SE))


def _through_normalisation(w_SE: jax.Array, grad_SE: jax.Array) -> jax.Array:
    """The gradient for w from the one that takes its length for a constant: without the part along w."""
    square_S = _square(w_SE)
    along_S = (w_SE * grad_SE).sum(axis=-1) / square_S
    return grad_SE - jnp.where(square_S > SHORTEST, along_S, 0.0)[:, None] * w_SE


def _square(w_SE: jax.Array) -> jax.Array:
    return jnp.square(w_SE).sum(axis=-1)


def _product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum in full float32, also where matrix units would round."""
    return jnp.einsum(subscripts, a, b, precision=jax.lax.Precision.HIGHEST)
