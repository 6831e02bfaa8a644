"""Which items show one product."""

import jax.numpy as jnp
import numpy as np

from cope_jax.losses.pairs import same_product

PRODUCTS_A = [[1, -1, -1], [2, 9, -1], [3, -1, -1], [1, -1, -1], [5, -1, -1], [6, 8, -1], [7, -1, -1]]
PRODUCTS_B = [[1, -1, -1], [2, -1, -1], [9, 3, -1], [4, -1, -1], [5, -1, -1], [8, -1, -1], [7, 6, 1]]


def test_same_product_knows_every_shared_id_and_no_padding():
    found = np.asarray(same_product(jnp.asarray(PRODUCTS_A), jnp.asarray(PRODUCTS_B)))
    expected = [[bool(set(x) & set(y) - {-1}) for y in PRODUCTS_B] for x in PRODUCTS_A]
    np.testing.assert_array_equal(found, expected)
    # By hand: rows of product 1 meet columns 0 and 6 each; (2, 9), (3), (5), (6, 8) and (7) meet 2, 1, 1, 2 and 1.
    assert found.sum(axis=1).tolist() == [2, 2, 1, 2, 1, 2, 1]
