"""The sigmoid loss against a float64 double loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cope_jax.losses.sigmoid import init_scalars, same_product, sigmoid_loss

B, E, M = 7, 5, 3
PRODUCTS_A = np.array(
    [[1, -1, -1], [2, 9, -1], [3, -1, -1], [1, -1, -1], [5, -1, -1], [6, 8, -1], [7, -1, -1]], np.int32
)
PRODUCTS_B = np.array(
    [[1, -1, -1], [2, -1, -1], [9, 3, -1], [4, -1, -1], [5, -1, -1], [8, -1, -1], [7, 6, 1]], np.int32
)


def drawn(seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(B, E))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def double_loop(a, b, present_a, present_b, t, beta):
    """Σ over pairs in float64, with its gradients by hand."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    loss, grad_a, grad_b, grad_t, grad_beta = 0.0, np.zeros_like(a), np.zeros_like(b), 0.0, 0.0
    for i in range(B):
        for j in range(B):
            if not (present_a[i] and present_b[j]):
                continue
            shared = set(PRODUCTS_A[i].tolist()) & set(PRODUCTS_B[j].tolist()) - {-1}
            z = 1.0 if shared else -1.0
            s = a[i] @ b[j]
            logit = t * s + beta
            loss += np.log1p(np.exp(-z * logit)) / B
            slope = -z / (1 + np.exp(z * logit)) / B
            grad_a[i] += slope * t * b[j]
            grad_b[j] += slope * t * a[i]
            grad_t += slope * s * t  # with respect to log t
            grad_beta += slope
    return loss, grad_a, grad_b, grad_t, grad_beta


@pytest.mark.parametrize("missing", [False, True])
def test_loss_and_gradients_equal_the_double_loop(missing):
    a, b = drawn(1), drawn(2)
    present_a, present_b = np.ones(B, bool), np.ones(B, bool)
    if missing:
        present_a[2], present_b[[0, 5]] = False, False
    scalars = init_scalars(temperature=7.0, bias=-2.5)
    both = jnp.asarray(present_a[:, None] & present_b[None, :])
    positive = same_product(jnp.asarray(PRODUCTS_A), jnp.asarray(PRODUCTS_B))

    def loss_of(a, b, scalars):
        return sigmoid_loss(a, b, positive_BB=positive, present_BB=both, scalars=scalars)

    loss, (grad_a, grad_b, grad_scalars) = jax.value_and_grad(loss_of, argnums=(0, 1, 2))(a, b, scalars)
    expected = double_loop(a, b, present_a, present_b, 7.0, -2.5)
    found = (loss, grad_a, grad_b, grad_scalars["log_t"], grad_scalars["bias"])
    for value, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=2e-5, atol=1e-6)


def test_same_product_knows_every_shared_id_and_no_padding():
    found = np.asarray(same_product(jnp.asarray(PRODUCTS_A), jnp.asarray(PRODUCTS_B)))
    expected = [[bool(set(x.tolist()) & set(y.tolist()) - {-1}) for y in PRODUCTS_B] for x in PRODUCTS_A]
    np.testing.assert_array_equal(found, expected)
    # By hand: rows of product 1 meet columns 0 and 6 each; (2, 9), (3), (5), (6, 8) and (7) meet 2, 1, 1, 2 and 1.
    assert found.sum(axis=1).tolist() == [2, 2, 1, 2, 1, 2, 1]


def test_start_values_are_those_of_the_paper():
    scalars = init_scalars(temperature=10.0, bias=-10.0)
    np.testing.assert_allclose([jnp.exp(scalars["log_t"]), scalars["bias"]], [10.0, -10.0], rtol=1e-6)


def test_the_loss_does_not_overflow():
    a = jnp.asarray(drawn(1))
    everything = jnp.ones((B, B), bool)
    loss = sigmoid_loss(
        a,
        -a,
        positive_BB=jnp.eye(B, dtype=bool),
        present_BB=everything,
        scalars=init_scalars(temperature=1e4, bias=0.0),
    )
    assert np.isfinite(loss)
    assert loss > 1e3
