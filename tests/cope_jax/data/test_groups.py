"""Groups of similar products, and how they are mixed into batches."""

import numpy as np
import pytest

from cope_jax.data import groups
from cope_jax.data.groups import Groups, group_products


@pytest.mark.parametrize("cell", [1000, 16])
def test_products_of_a_cluster_are_grouped(cell, monkeypatch):
    """Five clusters of eight, far from each other, in random order; cells of 16 are found by two cuts."""
    monkeypatch.setattr(groups, "CELL", cell)
    rng = np.random.default_rng(0)
    clusters = rng.permutation(np.repeat(np.arange(5), 8))
    vectors = np.eye(5)[clusters] + rng.normal(size=(40, 5)) * 0.01
    order = group_products(vectors.astype(np.float32))
    assert sorted(order.tolist()) == list(range(40))
    assert [len(set(clusters[order[start : start + 8]].tolist())) for start in range(0, 40, 8)] == [1] * 5


def test_a_share_of_a_batch_is_drawn_from_the_groups_of_the_rest():
    """Groups 0-7, 8-15, …; of ten products, the first five stay and five neighbors of the first one are added."""
    own = Groups(np.arange(30, dtype=np.int32), 0.5)
    rows = np.array([3, 5, 17, 25, 11, 20, 21, 22, 23, 24])
    np.testing.assert_array_equal(own.mix(rows), [3, 5, 17, 25, 11, 0, 1, 2, 4, 6])
    # The last group has 24 to 29; with too few neighbors, products of the batch stay, those that are new first.
    rows = np.array([25, 24, 7, 26, 8, 9, 10, 12, 13, 14])
    np.testing.assert_array_equal(Groups(own.order, 0.9).mix(rows), [25, 24, 26, 27, 28, 29, 7, 8, 9, 10])
    np.testing.assert_array_equal(Groups(own.order, 0.0).mix(rows), rows)
