"""Tests the summary of a histogram against NumPy."""

import numpy as np
import pytest

from data_prep.inspect.distributions import Distribution, Histogram, describe


def test_percentiles_equal_those_of_numpy():
    rng = np.random.default_rng(0)
    for size in (1, 7, 100, 333):
        values = rng.integers(0, 50, size)
        shares = [np.quantile(values, share, method="inverted_cdf") for share in (0.05, 0.5, 0.95)]
        found = describe(Histogram(values.tolist()))
        assert [found.low, found.median, found.high] == shares
        assert (found.mean, found.maximum) == (pytest.approx(values.mean()), values.max())
    assert describe(Histogram()) == Distribution()
