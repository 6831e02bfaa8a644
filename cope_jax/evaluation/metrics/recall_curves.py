"""R@k for every k, and what guessing would reach."""

import numpy as np

from cope_jax.evaluation.metrics.ranks import Ranks


def recall_curve(ranks: Ranks, upto: int) -> np.ndarray:
    """R@1 … R@upto: shares of the queries with a positive that have one among their first k, f64[upto]."""
    found = np.bincount(np.minimum(ranks.first, upto + 1), minlength=upto + 2)[1 : upto + 1]
    return found.cumsum() / len(ranks.first)


def guessed_curve(ranks: Ranks, upto: int) -> np.ndarray:
    """What R@1 … R@upto would be in expectation if galleries were in random order, f64[upto].

    A query with P positives among G items misses all of its first k with probability Π_{i<k} (G − P − i) / (G − i).
    """
    positives, queries = np.unique(np.diff(ranks.offsets)[ranks.asked], return_counts=True)
    left = np.maximum(ranks.gallery - np.arange(upto), 1)
    missed = np.maximum(left - positives[:, None], 0) / left
    return 1 - queries @ missed.cumprod(axis=-1) / queries.sum()
