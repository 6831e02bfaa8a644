"""The loss over the three pairs, and the values watched."""

import jax
import jax.numpy as jnp
import numpy as np

from cope_jax.domains import DOMAINS, PAIRS
from cope_jax.losses.domain_pairs import domain_pairs_loss, nearest_is_positive
from cope_jax.losses.sigmoid import init_scalars, same_product, sigmoid_loss

B, E = 4, 3
SCALARS = init_scalars(temperature=5.0, bias=-1.0)


def batch():
    rng = np.random.default_rng(0)
    embeddings = {d: jnp.asarray(rng.normal(size=(B, E)), jnp.float32) for d in DOMAINS}
    products = {d: jnp.asarray([[3], [5], [7], [5]], jnp.int32) for d in DOMAINS}
    present = {d: jnp.ones(B, bool) for d in DOMAINS}
    return embeddings, products, present


def test_the_loss_is_the_sum_over_the_pairs():
    embeddings, products, present = batch()
    present["live"] = jnp.array([True, False, True, True])
    loss, watched = domain_pairs_loss(embeddings, products, present, SCALARS)
    parts = [
        sigmoid_loss(
            embeddings[a],
            embeddings[b],
            positive_BB=same_product(products[a], products[b]),
            present_BB=present[a][:, None] & present[b][None, :],
            scalars=SCALARS,
        )
        for a, b in PAIRS
    ]
    np.testing.assert_allclose(loss, sum(parts), rtol=1e-6)
    np.testing.assert_allclose([watched[f"loss/{a}_{b}"][0] for a, b in PAIRS], parts, rtol=1e-6)


def test_a_missing_domain_cannot_change_loss_or_gradient():
    embeddings, products, present = batch()
    present["video"] = jnp.array([True, True, False, True])
    changed = embeddings | {"video": embeddings["video"].at[2].set(9.0)}

    def loss_of(embeddings):
        return domain_pairs_loss(embeddings, products, present, SCALARS)[0]

    (before, gradient), (after, changed_gradient) = (jax.value_and_grad(loss_of)(e) for e in (embeddings, changed))
    np.testing.assert_array_equal(before, after)
    for domain in DOMAINS:
        np.testing.assert_array_equal(gradient[domain], changed_gradient[domain])
    np.testing.assert_array_equal(gradient["video"][2], np.zeros(E))


def test_watched_similarities_are_means_over_their_pairs():
    embeddings, products, present = batch()
    _, watched = domain_pairs_loss(embeddings, products, present, SCALARS)
    similarity = np.asarray(embeddings["page"], np.float64) @ np.asarray(embeddings["live"], np.float64).T
    same = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1]], bool)
    total, count = watched["positive/page_live"]
    np.testing.assert_allclose(total / count, similarity[same].mean(), rtol=1e-5)
    total, count = watched["negative/page_live"]
    np.testing.assert_allclose(total / count, similarity[~same].mean(), rtol=1e-5)


def test_accuracy_of_a_drawn_matrix():
    similarity = jnp.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.1], [0.3, 0.9, 0.4]])
    positive = jnp.array([[True, False, False], [False, True, False], [False, False, False]])
    everything = jnp.ones((3, 3), bool)
    hits, rows = nearest_is_positive(similarity, positive, everything)
    assert (float(hits), float(rows)) == (1.0, 2.0)  # row 0 right, row 1 wrong, row 2 has no positive
    absent = everything.at[1, 0].set(False)  # row 1's nearest is not there: the next one is right
    assert float(nearest_is_positive(similarity, positive, absent)[0]) == 2.0
