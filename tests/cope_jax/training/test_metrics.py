"""Metrics that can be merged."""

import numpy as np
import pytest

from cope_jax.training.metrics import Mean, merge


def test_means_are_weighted_by_count():
    first, second = ({"x": Mean(np.float32(total), np.float32(count))} for total, count in ((3, 1), (5, 3)))
    assert merge(merge({}, first), second)["x"].compute() == pytest.approx(2.0)


def test_a_mean_over_nothing_is_nan():
    assert np.isnan(Mean(np.float32(0), np.float32(0)).compute())
