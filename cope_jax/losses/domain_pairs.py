"""The contrastive loss over the three pairs of domains, and what to watch of it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cope_jax.domains import PAIRS
from cope_jax.losses.sigmoid import pair_similarity, same_product, sigmoid_loss


def domain_pairs_loss(
    embeddings: Mapping[str, jax.Array],
    products: Mapping[str, jax.Array],
    present: Mapping[str, jax.Array],
    scalars: dict[str, jax.Array],
) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """The sum of the sigmoid losses page–video, page–live and video–live.

    Args:
        embeddings: float32[B, E] per domain, of length 1.
        products: int32[B, M] per domain, product ids padded with −1.
        present: bool[B] per domain.
        scalars: of the sigmoid loss.

    Returns:
        The loss, and (sum, count) of each watched value: per pair the loss, the mean similarity of positives and
        of negatives, and how often an item's most similar one in the batch shows its product.
    """
    total, watched = jnp.zeros(()), {}
    for a, b in PAIRS:
        positive = same_product(products[a], products[b])
        both = present[a][:, None] & present[b][None, :]
        loss = sigmoid_loss(embeddings[a], embeddings[b], positive_BB=positive, present_BB=both, scalars=scalars)
        total += loss
        similarity = jax.lax.stop_gradient(pair_similarity(embeddings[a], embeddings[b]))
        name = f"{a}_{b}"
        watched[f"loss/{name}"] = loss, jnp.ones(())
        watched[f"positive/{name}"] = masked_sum(similarity, positive & both)
        watched[f"negative/{name}"] = masked_sum(similarity, ~positive & both)
        watched[f"accuracy/{name}"] = nearest_is_positive(similarity, positive & both, both)
    return total, watched


def masked_sum(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum and number of the entries that the mask keeps."""
    return jnp.where(mask, values, 0.0).sum(), mask.sum().astype(jnp.float32)


def nearest_is_positive(similarity: jax.Array, positive: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Over the rows that have a positive: how many have one as their most similar column, and how many rows."""
    nearest = jnp.where(present, similarity, -jnp.inf).argmax(axis=-1)
    hit = jnp.take_along_axis(positive, nearest[:, None], axis=-1)[:, 0]
    asked = positive.any(axis=-1)
    return masked_sum(hit.astype(jnp.float32), asked)
