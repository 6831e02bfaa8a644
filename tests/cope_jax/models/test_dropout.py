"""Dropout: its mean, its rows, and on what the draws of an example depend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cope_jax.models.dropout import DropoutRngs, dropout


def test_dropout_keeps_the_mean_and_needs_rngs():
    x = jnp.ones((400, 50))
    dropped = dropout(x, 0.25, DropoutRngs(jax.random.split(jax.random.key(1), 100)))
    np.testing.assert_array_equal(dropout(x, 0.25, None), x)
    assert np.unique(dropped).tolist() == pytest.approx([0, 4 / 3])
    assert abs(float(dropped.mean()) - 1.0) < 0.02


def test_dropout_per_row_drops_whole_rows():
    rngs = DropoutRngs(jax.random.split(jax.random.key(1), 50))
    dropped = np.asarray(dropout(jnp.ones((200, 3, 4)), 0.5, rngs, per_row=True))
    assert all(len(np.unique(row)) == 1 for row in dropped)
    assert 60 < (dropped[:, 0, 0] == 0).sum() < 140
    rows = dropped[:, 0, 0].reshape(50, 4)  # of examples
    assert 0.3 < (rows[:, 0] == rows[:, 1]).mean() < 0.7


@pytest.mark.parametrize("per_row", [True, False])
def test_dropout_of_an_example_depends_on_its_own_key_only(per_row):
    """Three rows per example: what is dropped in some examples is the same without the others."""
    keys, x = jax.random.split(jax.random.key(3), 20), jnp.ones((60, 8))
    whole, part = DropoutRngs(keys), DropoutRngs(keys[5:9])
    draws = [dropout(x, 0.5, whole, per_row=per_row) for _ in range(2)]
    for dropped in draws:
        np.testing.assert_array_equal(dropout(x[15:27], 0.5, part, per_row=per_row), dropped[15:27])
    assert (draws[0] != draws[1]).any()
    layers = [dropout(x, 0.5, DropoutRngs(keys).for_layer(i), per_row=per_row) for i in range(2)]
    assert (layers[0] != layers[1]).any()
