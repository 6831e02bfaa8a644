"""Counts, compared with the whole float64 matrix."""

import numpy as np
import pytest

from cope_jax.evaluation.metrics.ranks import TIE
from cope_jax.evaluation.metrics.score_counts import TILE, ItemThresholds, count_between


def unit(rng: np.random.Generator, rows: int) -> np.ndarray:
    vectors = rng.normal(size=(rows, 12))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_items(rng: np.random.Generator, rows: int, most: int) -> ItemThresholds:
    """Returns items with 0 to `most` random thresholds each."""
    numbers = rng.integers(0, most + 1, rows)
    offsets = np.concatenate([[0], np.cumsum(numbers)])
    return ItemThresholds(unit(rng, rows), offsets, rng.uniform(-0.6, 0.6, offsets[-1]).astype(np.float32))


def by_matrix(a: ItemThresholds, b: ItemThresholds) -> list[int]:
    scores = (a.vectors.astype(np.float64) @ b.vectors.T.astype(np.float64)).astype(np.float32)
    owners = np.repeat(np.arange(len(a.vectors)), np.diff(a.offsets))
    return [int((scores[n] >= t).sum()) for n, t in zip(owners, a.thresholds, strict=True)]


@pytest.mark.parametrize(("sizes", "block"), [((37, 53), 32), ((300, 45), None), ((1, 9), 4)])
def test_counts_match_the_whole_matrix(sizes, block):
    rng = np.random.default_rng(sum(sizes))
    a, b = random_items(rng, sizes[0], 2), random_items(rng, sizes[1], 3)
    for_a, for_b = count_between(a, b, block=block)
    assert for_a.tolist() == by_matrix(a, b)
    assert for_b.tolist() == by_matrix(b, a)


def test_counts_above_255():
    """All scores reach a threshold of -2: the sums of bytes must not overflow."""
    rng = np.random.default_rng(1)
    columns = TILE[1]
    a, b = (
        ItemThresholds(unit(rng, size), np.arange(size + 1), np.full(size, -2, np.float32)) for size in (300, columns)
    )
    for_a, for_b = count_between(a, b)
    assert set(for_a.tolist()) == {columns}
    assert set(for_b.tolist()) == {300}


def test_equal_embeddings_tie_in_all_positions():
    """A collapsed model must not look good."""
    vectors = np.repeat(unit(np.random.default_rng(3), 1), 75, axis=0)
    score = np.float64(vectors[0].astype(np.float64) @ vectors[0].astype(np.float64)) - TIE
    same = ItemThresholds(vectors, np.arange(76), np.full(75, score, np.float32))
    assert [counts.tolist() for counts in count_between(same, same, block=31)] == [[75] * 75] * 2
