"""The product classifier: CosFace (arXiv 1801.09414) over all training products.

Each device has its part of the class table and uses only the rows that it samples in a step (Partial FC, arXiv
2203.15565).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from cope_jax.losses.pairs import Statistics
from cope_jax.losses.sharded_softmax import Gradients, Items, MarginSoftmax, sums_and_gradients

# Divisible by any usual number of devices, so that the table's shape in checkpoints does not depend on the mesh.
MULTIPLE = 3072

LossAndSums = tuple[Float32[Array, ""], Float32[Array, "3 D"]]


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
) -> tuple[Float32[Array, ""], Statistics]:
    """Cross-entropy of each item's product among all, mean over the present items of a domain, summed over domains.

    The logit of class c is scale · (cos − margin · [c is the target]), with cos the cosine of the item and row c of the
    table. The other products of an item are neither target nor negatives. With rate < 1, each device uses only some of
    its rows: the targets of the batch and a random sample. The gradient of the other rows is 0.

    Args:
        table_CE: Class table of `table_rows(classes)` rows, sharded over data × fsdp × tensor.
        embeddings: Vectors of length 1 per domain. Examples are sharded over data × fsdp, here and below.
        target_B: Class of the product for which an example was drawn. If negative, its items do not count.
        labels: Classes of all products of an item, per domain, padded with −1.
        present: Whether the example has an item of the domain.
        key: Key for sampling, unused at rate 1. The sample depends on the mesh.
        mesh: Mesh with the axes data, fsdp and tensor, whose size divides the rows of the table.
        classes: Number of classes; later rows of the table are padding.
        scale, margin: Scale and margin of the logits.
        rate: Fraction of its rows that a device uses, in (0, 1]; it uses at least B rows.

    Returns:
        The loss, 0 without items, and per domain the statistics: loss, how often the target has the highest cosine of
        all classes in use, and the target's cosine.
    """

    def stack(by_domain: Mapping[str, Array]) -> Array:
        return jnp.stack([by_domain[domain] for domain in embeddings])

    x_DBE, labels_DBM, present_DB = stack(embeddings), stack(labels), stack(present)
    items = Items(target_B, labels_DBM, present_DB & (target_B >= 0)[None], key)
    softmax = MarginSoftmax(mesh=mesh, classes=classes, scale=scale, margin=margin, rate=rate)
    loss, sums_3D = _loss(softmax, table_CE, x_DBE, items)
    count_D = items.counted_DB.sum(axis=-1).astype(jnp.float32)
    statistics = {
        f"{name}/{domain}": (sums_3D[i, d], count_D[d])
        for i, name in enumerate(("loss", "accuracy", "positive"))
        for d, domain in enumerate(embeddings)
    }
    return loss, statistics


def _loss_and_sums(softmax: MarginSoftmax, table_CE: Array, x_DBE: Array, items: Items) -> LossAndSums:
    return _loss_forward(softmax, table_CE, x_DBE, items)[0]


def _loss_forward(softmax: MarginSoftmax, table_CE: Array, x_DBE: Array, items: Items) -> tuple[LossAndSums, Gradients]:
    sums_3D, gradients = sums_and_gradients(softmax, table_CE, x_DBE, items)
    loss = (sums_3D[0] / jnp.maximum(items.counted_DB.sum(axis=-1), 1)).sum()
    return (loss, sums_3D), gradients


def _loss_backward(softmax: MarginSoftmax, gradients: Gradients, cotangents: LossAndSums) -> tuple[Array, Array, None]:
    table_CE, x_DBE = gradients
    return cotangents[0] * table_CE, cotangents[0] * x_DBE, None


_loss = jax.custom_vjp(_loss_and_sums, nondiff_argnums=(0,))
_loss.defvjp(_loss_forward, _loss_backward)
