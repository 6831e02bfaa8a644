"""Counting tile by tile, on the host and on devices, against a whole matrix in float64."""

import numpy as np
import pytest

from cope_jax.evaluation.metrics import score_counts as counting
from cope_jax.evaluation.metrics.ranks import TIE
from cope_jax.evaluation.metrics.score_counts import Asked, count_between, count_within

KERNELS = {"host": counting.host_tiles, "devices": counting.device_tiles}


def unit(rng: np.random.Generator, rows: int) -> np.ndarray:
    vectors = rng.normal(size=(rows, 12))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def asked(rng: np.random.Generator, rows: int, most: int) -> Asked:
    """Items with 0 to `most` random thresholds each."""
    numbers = rng.integers(0, most + 1, rows)
    offsets = np.concatenate([[0], np.cumsum(numbers)])
    return Asked(unit(rng, rows), offsets, rng.uniform(-0.6, 0.6, offsets[-1]).astype(np.float32))


def by_matrix(a: Asked, b: Asked) -> list[int]:
    scores = (a.vectors.astype(np.float64) @ b.vectors.T.astype(np.float64)).astype(np.float32)
    owners = np.repeat(np.arange(len(a.vectors)), np.diff(a.offsets))
    return [int((scores[n] >= t).sum()) for n, t in zip(owners, a.thresholds, strict=True)]


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    """Both kernels, with blocks of whatever size."""
    monkeypatch.setattr(counting, "_tile_of_backend", lambda block: (KERNELS[request.param], block or 8160))


@pytest.mark.parametrize(("sizes", "block"), [((37, 53), 32), ((300, 45), None), ((1, 9), 4)])
def test_counts_are_those_of_the_whole_matrix(kernel, sizes, block):
    rng = np.random.default_rng(sum(sizes))
    a, b = asked(rng, sizes[0], 2), asked(rng, sizes[1], 3)
    for_a, for_b = count_between(a, b, block=block)
    assert for_a.tolist() == by_matrix(a, b)
    assert for_b.tolist() == by_matrix(b, a)
    assert count_within(b, block=block).tolist() == by_matrix(b, b)


def test_more_columns_than_a_byte_counts():
    """All of 8,160 columns and 300 rows reach a threshold of −2: no sum of bytes may run over."""
    rng = np.random.default_rng(1)
    a, b = (
        Asked(unit(rng, size), np.arange(size + 1), np.full(size, -2, np.float32))
        for size in (300, counting.HOST_BLOCK)
    )
    for_a, for_b = count_between(a, b)
    assert set(for_a.tolist()) == {counting.HOST_BLOCK}
    assert set(for_b.tolist()) == {300}


def test_scores_on_devices_are_right_to_the_last_bit():
    """float32 sums alone are wrong in most last bits."""
    rng = np.random.default_rng(2)
    a, b = unit(rng, 200), unit(rng, 300)
    exact = (a.astype(np.float64) @ b.T.astype(np.float64)).astype(np.float32)
    assert np.mean(np.asarray(counting.close_scores(a, b)) == exact) > 0.99
    assert np.mean(a @ b.T == exact) < 0.8


def test_equal_embeddings_reach_each_other(kernel):
    """Wherever they stand in a tile: a collapsed model must not look good."""
    vectors = np.repeat(unit(np.random.default_rng(3), 1), 75, axis=0)
    score = np.float64(vectors[0].astype(np.float64) @ vectors[0].astype(np.float64)) - TIE
    same = Asked(vectors, np.arange(76), np.full(75, score, np.float32))
    assert count_within(same, block=31).tolist() == [75] * 75
