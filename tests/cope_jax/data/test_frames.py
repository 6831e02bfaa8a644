"""The choice of frames: positions by hand, randomness, short clips."""

import doctest

import numpy as np
import pytest

from cope_jax.data import frames
from cope_jax.data.frames import choose_frames, one_per_segment


@pytest.mark.parametrize(
    ("n", "T", "expected"),
    [
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (9, 1, [4]),
        (10, 3, [1, 5, 8]),
        (1, 4, [0, 0, 0, 0]),
        (3, 8, [0, 0, 0, 1, 1, 2, 2, 2]),
        (100, 8, [6, 18, 31, 43, 56, 68, 81, 93]),
    ],
)
def test_segment_centers_by_hand(n, T, expected):
    assert one_per_segment(n, T).tolist() == expected


def test_docstring_examples():
    results = doctest.testmod(frames)
    assert results.attempted >= 6
    assert results.failed == 0


def test_random_frames_are_one_per_segment_and_reach_every_frame():
    rng = np.random.default_rng(3)
    draws = np.array([one_per_segment(12, 4, rng) for _ in range(300)])
    np.testing.assert_array_equal(draws // 3, np.tile([0, 1, 2, 3], (300, 1)))
    assert set(draws.ravel().tolist()) == set(range(12))


def test_random_frames_are_equally_likely_if_segments_share_a_frame():
    # Segments [0, 1.5) and [1.5, 3): frame 1 is half in each, so each frame is drawn in 2/3 of the clips.
    rng = np.random.default_rng(4)
    draws = np.array([one_per_segment(3, 2, rng) for _ in range(6000)])
    np.testing.assert_allclose(np.bincount(draws.ravel(), minlength=3) / 6000, 2 / 3, atol=0.03)
    assert (np.diff(draws, axis=-1) >= 0).all()


def test_the_largest_random_number_stays_inside_the_clip():
    class Largest:
        def random(self, size):
            return np.full(size, np.nextafter(1, 0))

    assert one_per_segment(7, 3, Largest()).tolist() == [2, 4, 6]


def test_short_clips():
    rng = np.random.default_rng(5)
    assert choose_frames(2, 5, kind="clip", short_clips="mask", rng=rng).tolist() == [0, 1]
    assert choose_frames(2, 4, kind="clip", short_clips="repeat", rng=rng).tolist() == [0, 0, 1, 1]
    assert choose_frames(6, 3, kind="clip", short_clips="mask", rng=None).tolist() == [1, 3, 5]
    assert choose_frames(0, 3, kind="clip", short_clips="repeat", rng=None).tolist() == []


@pytest.mark.parametrize("rng", [None, np.random.default_rng(6)])
def test_a_page_gives_its_first_pictures(rng):
    assert choose_frames(5, 1, kind="image", short_clips="repeat", rng=rng).tolist() == [0]
    assert choose_frames(9, 3, kind="image", short_clips="mask", rng=rng).tolist() == [0, 1, 2]
    assert choose_frames(2, 3, kind="image", short_clips="mask", rng=rng).tolist() == [0, 1]


def test_a_page_with_one_picture_draws_as_clips_do():
    ours, theirs = np.random.default_rng(7), np.random.default_rng(7)
    choose_frames(1, 1, kind="image", short_clips="repeat", rng=ours)
    choose_frames(1, 1, kind="clip", short_clips="repeat", rng=theirs)
    assert ours.random() == theirs.random()


def test_invalid_arguments_are_reported():
    with pytest.raises(ValueError, match="short_clips is 'loop'; choose one of repeat, mask"):
        choose_frames(4, 2, kind="clip", short_clips="loop", rng=None)
    with pytest.raises(ValueError, match="cannot choose 2 of 0 frames"):
        one_per_segment(0, 2)
    with pytest.raises(ValueError, match="cannot choose 0 of 4 frames"):
        one_per_segment(4, 0, np.random.default_rng(0))
