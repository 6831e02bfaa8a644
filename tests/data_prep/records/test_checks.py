"""Tests the comparison of links between items and products."""

import numpy as np

from data_prep.records.checks import differences


def test_differences_are_those_of_sets():
    rng = np.random.default_rng(0)
    for _ in range(30):
        first, second = ({tuple(pair) for pair in rng.integers(0, 5, (n, 2)).tolist()} for n in rng.integers(0, 20, 2))
        arrays = [np.array(sorted(pairs), np.int64).reshape(-1, 2) for pairs in (first, second)]
        left, right = ({tuple(pair) for pair in rows.tolist()} for rows in differences(*arrays))
        assert (left, right) == (first - second, second - first)
