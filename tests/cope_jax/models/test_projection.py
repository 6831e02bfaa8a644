"""Projections into the shared space: normalisation over a batch, missing rows, running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cope_jax.models.projection import MaskedBatchNorm, Projection, l2_normalise

MASK = np.array([True, True, False, True, True])


def rows(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, size=(5, 4)).astype(np.float32)


def test_training_normalises_each_column_over_the_rows_that_exist():
    found = np.asarray(MaskedBatchNorm(4)(jnp.asarray(rows()), jnp.asarray(MASK), train=True))
    kept = rows()[MASK].astype(np.float64)
    expected = (kept - kept.mean(0)) / np.sqrt(kept.var(0) + 1e-5)
    np.testing.assert_allclose(found[MASK], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[2], np.zeros(4))


def test_evaluation_uses_the_running_statistics_alone():
    norm = MaskedBatchNorm(4, momentum=0.75)
    norm(jnp.asarray(rows()), jnp.asarray(MASK), train=True)
    mean, variance = 0.25 * rows()[MASK].mean(0), 0.75 + 0.25 * rows()[MASK].var(0)
    other = rows(seed=1)
    found = norm(jnp.asarray(other[:1]), jnp.asarray([True]), train=False)
    np.testing.assert_allclose(found, (other[:1] - mean) / np.sqrt(variance + 1e-5), rtol=1e-4)


def test_a_missing_row_changes_neither_outputs_nor_statistics():
    results = []
    for value in (0.0, 1e4):
        x = rows()
        x[2] = value
        norm = MaskedBatchNorm(4)
        results.append((norm(jnp.asarray(x), jnp.asarray(MASK), train=True), norm.mean[...], norm.variance[...]))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_without_rows_moves_nothing():
    norm = MaskedBatchNorm(4)
    found = norm(jnp.asarray(rows()), jnp.zeros(5, bool), train=True)
    np.testing.assert_array_equal(found, np.zeros((5, 4)))
    np.testing.assert_array_equal(norm.mean[...], np.zeros(4))
    np.testing.assert_array_equal(norm.variance[...], np.ones(4))


def test_l2_normalise_has_a_gradient_at_zero():
    gradient = jax.grad(lambda x: l2_normalise(x).sum())(jnp.zeros((1, 3)))
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(l2_normalise(jnp.array([[3.0, 4.0]])), [[0.6, 0.8]], rtol=1e-6)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="unknown head norm 'layer': choose one of none, batch"):
        Projection(3, 4, "layer", dtype=jnp.float32, rngs=nnx.Rngs(params=0))
