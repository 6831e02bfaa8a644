"""Curves of R@k, and of guessing, against counting."""

import math

import numpy as np
import pytest

from cope_jax.evaluation.metrics.ranks import Ranks
from cope_jax.evaluation.metrics.recall_curves import guessed_curve, recall_curve

# Four queries: positives at ranks 1 and 3, none, at 2, and at 7 of a gallery of 9.
RANKS = Ranks(
    offsets=np.array([0, 2, 2, 3, 4]),
    rows=np.array([4, 5, 6, 7]),
    scores=np.array([0.9, 0.8, 0.7, 0.6]),
    ranks=np.array([1, 3, 2, 7]),
    gallery=9,
)


def test_recall_rises_where_a_query_finds_its_first():
    assert recall_curve(RANKS, 8).tolist() == pytest.approx([1 / 3, *[2 / 3] * 5, 1, 1])
    assert recall_curve(RANKS, 4).tolist() == pytest.approx([1 / 3, *[2 / 3] * 3])


def test_guessing_is_drawing_without_putting_back():
    """Of P positives among 9 items, k draws miss all in C(9 − P, k) of C(9, k) cases."""
    expected = [
        sum(1 - math.comb(9 - positives, k) / math.comb(9, k) for positives in (2, 1, 1)) / 3 for k in range(1, 10)
    ]
    assert guessed_curve(RANKS, 9).tolist() == pytest.approx(expected)
    assert expected[-1] == 1
