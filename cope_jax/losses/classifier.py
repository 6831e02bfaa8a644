"""The product classifier: CosFace (arXiv 1801.09414) over all training products, each device with its part of the
class table and, of that, the rows a step samples (Partial FC, arXiv 2203.15565)."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cope_jax.losses.sharded_softmax import Gradients, Items, MarginSoftmax, sums_and_gradients

# Every usual number of devices divides it, so that the shape of the table in checkpoints does not depend on the mesh.
MULTIPLE = 3072

Losses = tuple[jax.Array, jax.Array]


def rows(classes: int) -> int:
    """Rows of the class table: the classes, and unused rows up to a multiple of 3072."""
    return -(-classes // MULTIPLE) * MULTIPLE


def init_table(key: jax.Array, *, classes: int, embedding: int) -> jax.Array:
    """A new class table, float32[rows(classes), embedding], normal with standard deviation 0.01."""
    return 0.01 * jax.random.normal(key, (rows(classes), embedding), jnp.float32)


def classifier_loss(
    table_CE: jax.Array,
    embeddings: Mapping[str, jax.Array],
    target_B: jax.Array,
    labels: Mapping[str, jax.Array],
    present: Mapping[str, jax.Array],
    *,
    key: jax.Array,
    mesh: Mesh,
    classes: int,
    scale: float,
    margin: float,
    rate: float,
) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """The cross-entropy of each item's product among all, mean over the present items of a domain, summed over domains.

    The logit of class c is scale · (cos − margin · [c is the target]), with cos between the item and row c of the
    table. An item's other products are neither target nor negatives. With rate < 1, a device takes only some of its
    rows into account: those of the batch's targets, and others at random. The gradient of the rest is 0.

    Args:
        table_CE: float32[rows(classes), E], cut over data × fsdp × tensor.
        embeddings: float32[B, E] per domain, of length 1; examples are cut over data × fsdp, here and below.
        target_B: int32[B], the class of the product an example was drawn for; where it is negative, no item counts.
        labels: int32[B, M] per domain, the classes of all products of an item, padded with −1.
        present: bool[B] per domain.
        key: of the sampling, unused at rate 1; what it draws depends on the mesh.
        mesh: with the axes data, fsdp and tensor, whose size divides the table's rows.
        classes: number of classes; rows from there on take part in nothing.
        scale, margin: of the logits.
        rate: fraction of its rows that a device takes into account, above 0, at most 1; it takes B rows at least.

    Returns:
        The loss, float32[], 0 without items, with gradients for the table and the embeddings. And (sum, count) of what
        to watch, without gradients: per domain the loss, how often the target's cosine is the highest of all that are
        taken into account, and the target's cosine.
    """
    x_DBE, labels_DBM, present_DB = (
        jnp.stack([part[domain] for domain in embeddings]) for part in (embeddings, labels, present)
    )
    items = Items(target_B, labels_DBM, present_DB & (target_B >= 0)[None], key)
    softmax = MarginSoftmax(mesh=mesh, classes=classes, scale=scale, margin=margin, rate=rate)
    loss, sums_3D = _loss(softmax, table_CE, x_DBE, items)
    count_D = items.counted_DB.sum(axis=-1).astype(jnp.float32)
    watched = {
        f"{name}/{domain}": (sums_3D[i, d], count_D[d])
        for i, name in enumerate(("loss", "accuracy", "positive"))
        for d, domain in enumerate(embeddings)
    }
    return loss, watched


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(softmax: MarginSoftmax, table_CE: jax.Array, x_DBE: jax.Array, items: Items) -> Losses:
    """The loss and the sums to watch."""
    sums_3D, _ = sums_and_gradients(softmax, table_CE, x_DBE, items, gradients=False)
    return _total(sums_3D, items), sums_3D


def _loss_forward(
    softmax: MarginSoftmax, table_CE: jax.Array, x_DBE: jax.Array, items: Items
) -> tuple[Losses, Gradients]:
    sums_3D, gradients = sums_and_gradients(softmax, table_CE, x_DBE, items, gradients=True)
    return (_total(sums_3D, items), sums_3D), gradients


def _loss_backward(
    softmax: MarginSoftmax, gradients: Gradients, cotangents: Losses
) -> tuple[jax.Array, jax.Array, None]:
    table_CE, x_DBE = gradients
    return cotangents[0] * table_CE, cotangents[0] * x_DBE, None


_loss.defvjp(_loss_forward, _loss_backward)


def _total(sums_3D: jax.Array, items: Items) -> jax.Array:
    """The domains' mean losses, summed."""
    return (sums_3D[0] / jnp.maximum(items.counted_DB.sum(axis=-1), 1)).sum()
