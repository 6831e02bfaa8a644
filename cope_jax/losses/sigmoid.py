"""The sigmoid contrastive loss of SigLIP (arXiv 2303.15343), with several positives and missing items."""

import math

import jax
import jax.numpy as jnp


def init_scalars(*, temperature: float, bias: float) -> dict[str, jax.Array]:
    """The learnable scalars: `log_t` = t′ with t = exp(t′) the factor on similarities, and `bias` = β."""
    return {"log_t": jnp.asarray(math.log(temperature), jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}


def same_product(a_AM: jax.Array, b_BM: jax.Array) -> jax.Array:
    """Whether two items share a product.

    Args:
        a_AM, b_BM: int32[A, M] and int32[B, M], product ids of each item, padded with −1.

    Returns:
        bool[A, B].
    """
    match = jnp.zeros((len(a_AM), len(b_BM)), bool)
    for i in range(a_AM.shape[-1]):  # M is small; an [A, B, M, M] array would not be
        for j in range(b_BM.shape[-1]):
            match |= (a_AM[:, i, None] == b_BM[None, :, j]) & (a_AM[:, i, None] >= 0)
    return match


def sigmoid_loss(
    a_BE: jax.Array,
    b_BE: jax.Array,
    *,
    positive_BB: jax.Array,
    present_BB: jax.Array,
    scalars: dict[str, jax.Array],
) -> jax.Array:
    """(1/B) Σ_ij softplus(−z_ij (t·a_i·b_j + β)), z_ij = +1 for one product and −1 otherwise.

    Args:
        a_BE, b_BE: float32[B, E], embeddings of two domains, of length 1.
        positive_BB: bool[B, B], whether a_i and b_j show one product.
        present_BB: bool[B, B], whether both items exist; pairs that do not add nothing.
        scalars: as from `init_scalars`.

    Returns:
        float32[], 0 where no pair is present. B counts absent examples too, so that the value is a sum over
        disjoint blocks of pairs however the batch is split.
    """
    logits = jnp.exp(scalars["log_t"]) * pair_similarity(a_BE, b_BE) + scalars["bias"]
    terms = jax.nn.softplus(jnp.where(positive_BB, -logits, logits))
    return jnp.where(present_BB, terms, 0.0).sum() / len(a_BE)


def pair_similarity(a_AE: jax.Array, b_BE: jax.Array) -> jax.Array:
    """float32[A, E], float32[B, E] → float32[A, B], in full float32 also where matrix units would round."""
    return jnp.einsum("ae,be->ab", a_AE, b_BE, precision=jax.lax.Precision.HIGHEST)
