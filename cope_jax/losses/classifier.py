"""The product classifier: CosFace (arXiv 1801.09414) over all training products.

The class table is sharded over all devices. Each device sees all items and its own classes, and uses only the rows that
it samples in a step (Partial FC, arXiv 2203.15565). It processes the items in tiles of R, so it never holds more than R
logits per class: 48 MB for 187,431 classes on 4 devices. For each item of a tile, the devices exchange two numbers to
find the highest cosines and one to sum the exponentials. At the end, the gradients of the embeddings return to the
devices of their examples.

Dimensions: D domains, B examples, N = D·B items, R items of a tile, M products of an item; C rows of the table (on a
device: of its part), S of them used in the step; E embedding.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray, PyTree

from cope_jax.losses.pairs import Statistics, einsum
from cope_jax.losses.ring import BATCH_AXES, LossAndGradients, scan_tiles, shard_loss

CLASS_AXES = (*BATCH_AXES, "tensor")
# Divisible by any usual number of devices, so that the table's shape in checkpoints does not depend on the mesh.
MULTIPLE = 3072
MIN_SQUARED_LENGTH = 1e-12  # of a row of the table, for its normalization
NO_COSINE = -1e9  # less than any cosine, and finite when scaled


def table_rows(classes: int) -> int:
    """Returns the number of rows of the class table: `classes` rounded up to a multiple of 3072."""
    return -(-classes // MULTIPLE) * MULTIPLE


def init_table(key: PRNGKeyArray, *, classes: int, embedding: int) -> Float32[Array, "C E"]:
    """Returns a new class table, normally distributed with standard deviation 0.01."""
    return 0.01 * jax.random.normal(key, (table_rows(classes), embedding), jnp.float32)


def classifier_loss(
    table_CE: Float32[Array, "C E"],
    embeddings: Mapping[str, Float32[Array, "B E"]],
    target_B: Int32[Array, " B"],
    labels: Mapping[str, Int32[Array, "B M"]],
    present: Mapping[str, Bool[Array, " B"]],
    *,
    key: PRNGKeyArray,
    mesh: Mesh,
    classes: int,
    scale: float,
    margin: float,
    rate: float,
    precision: str = "highest",
) -> tuple[Float32[Array, ""], Statistics]:
    """Cross-entropy of each item's product among all, mean over the present items of a domain, summed over domains.

    The logit of class c is scale · (cos − margin · [c is the target]), with cos the cosine of the item and row c of the
    table. The other products of an item are neither target nor negatives. With rate < 1, each device uses only some of
    its rows: the targets of the batch and a random sample. The gradient of the other rows is 0.

    Args:
        table_CE: Class table of `table_rows(classes)` rows, sharded over CLASS_AXES.
        embeddings: Vectors of length 1 per domain. Examples are sharded over BATCH_AXES, here and below.
        target_B: Class of the product for which an example was drawn. If negative, its items do not count.
        labels: Classes of all products of an item, per domain, padded with −1.
        present: Whether the example has an item of the domain.
        key: Key for sampling, unused at rate 1. The sample depends on the mesh.
        mesh: Mesh with CLASS_AXES, whose size divides the rows of the table.
        classes: Number of classes; later rows of the table are padding.
        scale: Scale of the logits.
        margin: Subtracted from the cosine of the own class.
        rate: Fraction of its rows that a device uses, in (0, 1]; it uses at least B rows.
        precision: Of matrix products, see `losses.pairs.einsum`.

    Returns:
        The loss, 0 without items, and per domain the statistics: loss, how often the target has the highest cosine of
        all classes in use, and the target's cosine.
    """

    def stack(by_domain: Mapping[str, Array]) -> Array:
        return jnp.stack([by_domain[domain] for domain in embeddings])

    counted_DB = stack(present) & (target_B >= 0)[None]
    examples, table = PartitionSpec(None, BATCH_AXES), PartitionSpec(CLASS_AXES)
    loss_of = shard_loss(
        partial(_loss_on_device, softmax=_MarginSoftmax(classes, scale, margin, rate, precision)),
        mesh,
        specs=((table, examples), (PartitionSpec(BATCH_AXES), examples, examples, PartitionSpec())),
    )
    loss, sums_3D = loss_of((table_CE, stack(embeddings)), (target_B, stack(labels), counted_DB, key), {})
    count_D = counted_DB.sum(axis=-1).astype(jnp.float32)
    statistics = {
        f"{name}/{domain}": (sums_3D[i, d], count_D[d])
        for i, name in enumerate(("loss", "accuracy", "positive"))
        for d, domain in enumerate(embeddings)
    }
    return loss, statistics


class _MarginSoftmax(NamedTuple):
    """Settings as of `classifier_loss`."""

    classes: int
    scale: float
    margin: float
    rate: float
    precision: str


def _loss_on_device(
    vectors: tuple[Array, Array], labels: tuple[Array, ...], scalars: PyTree, *, softmax: _MarginSoftmax
) -> LossAndGradients:
    """The loss of the whole batch and the gradients of this device's classes and examples, for `shard_loss`.

    The statistics are sums over the counted items of each domain: losses, targets with the highest cosine, and their
    cosines.
    """
    (table_CE, x_DBE), (target_B, labels_DBM, counted_DB, key) = vectors, labels
    x_DBE = jnp.where(counted_DB[..., None], x_DBE, 0.0)  # absent vectors are arbitrary, even NaN
    x_all, labels_all, counted_all = (_gather(array, axis=1) for array in (x_DBE, labels_DBM, counted_DB))
    target_all = jnp.where(counted_all, _gather(target_B, axis=0)[None], -1)
    count_D1 = jnp.maximum(counted_all.sum(axis=1, keepdims=True), 1)

    device, rows = jax.lax.axis_index(CLASS_AXES), len(table_CE)
    ids_S, w_SE, kept_S = device * rows + jnp.arange(rows), table_CE, None
    if softmax.rate < 1:
        kept_S = _sample(softmax, target_all.max(axis=0), ids_S, jax.random.fold_in(key, device))
        ids_S, w_SE = ids_S[kept_S], w_SE[kept_S]

    items = [array.reshape(-1, *array.shape[2:]) for array in (x_all, target_all, labels_all, counted_all / count_D1)]
    grad_SE, (results_N3, dx_NE) = scan_tiles(
        lambda grad_SE, tile: _tile(softmax, w_SE, ids_S, grad_SE, *tile), jnp.zeros_like(w_SE), items
    )
    results_3DB = results_N3.T.reshape(3, *counted_all.shape)
    sums_3D = jnp.where(counted_all[None], results_3DB, 0.0).sum(axis=-1)
    d_table_CE = _through_normalization(w_SE, grad_SE)
    if kept_S is not None:
        d_table_CE = jnp.zeros_like(table_CE).at[kept_S].set(d_table_CE, unique_indices=True)
    dx_DBE = jax.lax.psum_scatter(dx_NE.reshape(x_all.shape), BATCH_AXES, scatter_dimension=1, tiled=True)
    loss = (sums_3D[0] / count_D1[:, 0]).sum()
    return (loss, sums_3D), ((d_table_CE, jax.lax.psum(dx_DBE, "tensor")), {})


def _gather(array: Array, *, axis: int) -> Array:
    """Gathers an axis that is sharded like the examples."""
    return jax.lax.all_gather(array, BATCH_AXES, axis=axis, tiled=True)


def _sample(softmax: _MarginSoftmax, target_B: Array, ids_C: Array, key: Array) -> Array:
    """Chooses the rows that a device uses: those of targets, then other classes at random, without repetition."""
    rows = len(ids_C)
    keep = max(math.ceil(softmax.rate * rows), min(rows, len(target_B)))
    score_C = jnp.where(ids_C < softmax.classes, jax.random.uniform(key, (rows,)), -1.0)
    here_B = target_B - ids_C[0]
    here_B = jnp.where(here_B < 0, rows, here_B)  # a negative index would count from the end
    return jax.lax.top_k(score_C.at[here_B].set(2.0, mode="drop"), keep)[1]


def _tile(
    softmax: _MarginSoftmax,
    w_SE: Array,
    ids_S: Array,
    grad_SE: Array,
    x_RE: Array,
    target_R: Array,
    labels_RM: Array,
    weight_R: Array,
) -> tuple[Array, tuple[Array, Array]]:
    """Computes one tile of items against the device's classes.

    The loss of an item is softplus(gap), gap = logsumexp of its negatives' logits − its target's logit. This is exact
    even if the target's probability is almost 1.

    Returns:
        `grad_SE` plus the tile's part: w's gradient if normalization only multiplied w by a constant. Then per item the
        loss, whether the target is the highest, and its cosine; and this device's part of the vectors' gradients.
    """
    product = partial(einsum, precision=softmax.precision)
    inverse_S = jax.lax.rsqrt(jnp.maximum(_squared_length(w_SE), MIN_SQUARED_LENGTH))
    cos_RS = product("re,se->rs", x_RE, w_SE) * inverse_S[None]
    target_RS = target_R[:, None] == ids_S[None]
    negative_RS = ~target_RS & (ids_S < softmax.classes)[None]
    for m in range(labels_RM.shape[-1]):
        negative_RS &= labels_RM[:, m, None] != ids_S[None]
    highest_2R = jnp.stack([jnp.where(mask, cos_RS, NO_COSINE).max(axis=-1) for mask in (negative_RS, target_RS)])
    rival_R, cos_R = jax.lax.pmax(highest_2R, CLASS_AXES)
    mass_RS = jnp.where(negative_RS, jnp.exp(softmax.scale * (cos_RS - rival_R[:, None])), 0.0)
    mass_R = jax.lax.psum(mass_RS.sum(axis=-1), CLASS_AXES)  # at least 1, or 0 without negatives
    gap_R = softmax.scale * (rival_R - cos_R + softmax.margin) + jnp.log(mass_R)
    results_R3 = jnp.stack([jax.nn.softplus(gap_R), (cos_R > rival_R).astype(jnp.float32), cos_R], axis=1)
    slope_R = softmax.scale * weight_R * jax.nn.sigmoid(gap_R)
    share_RS = mass_RS / jnp.maximum(mass_R, 1.0)[:, None] - target_RS
    slope_RS = slope_R[:, None] * share_RS * inverse_S[None]
    grad_SE += product("rs,re->se", slope_RS, x_RE)
    return grad_SE, (results_R3, product("rs,se->re", slope_RS, w_SE))


def _through_normalization(w_SE: Array, grad_SE: Array) -> Array:
    """Corrects a gradient that treats the length of w as constant, by removing the part along w."""
    square_S = _squared_length(w_SE)
    along_S = (w_SE * grad_SE).sum(axis=-1) / square_S
    return grad_SE - jnp.where(square_S > MIN_SQUARED_LENGTH, along_S, 0.0)[:, None] * w_SE


def _squared_length(w_SE: Array) -> Array:
    return jnp.square(w_SE).sum(axis=-1)
