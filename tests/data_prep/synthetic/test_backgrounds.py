"""Tests the surroundings of products."""

import itertools

import numpy as np
import pytest
from PIL import Image

from data_prep.synthetic import backgrounds
from data_prep.synthetic.products import COLORS


@pytest.mark.parametrize("draw", [backgrounds.clutter, backgrounds.stage, backgrounds.card])
def test_backgrounds_are_varied_and_differ(draw):
    pictures = [np.asarray(draw(80, np.random.default_rng(seed)), int) for seed in range(20)]
    one, again = pictures[0], np.asarray(draw(80, np.random.default_rng(0)), int)
    assert one.shape == (80, 80, 3)
    assert (one == again).all()
    differences = [np.abs(a - b).mean() for a, b in itertools.pairwise(pictures)]
    assert np.mean(differences) > 25
    assert min(differences) > 10
    assert len(np.unique((one // 32).reshape(-1, 3), axis=0)) >= 2


def test_clutter_shows_the_hues_of_products_in_duller_colors():
    rng = np.random.default_rng(0)
    shown = np.concatenate([np.asarray(backgrounds.clutter(60, rng), int).reshape(-1, 3) for _ in range(40)])
    for name, color in COLORS.items():
        faded = 0.4 * np.array(color) + 0.6 * 140
        near = np.abs(shown - faded).max(1) < 20
        assert near.mean() > 0.01, name
    assert np.ptp(shown, axis=1).mean() < 50  # 101 for products themselves


def test_covers_hide_an_edge_of_the_product_but_not_most_of_it():
    rng, shares = np.random.default_rng(0), []
    for _ in range(100):
        canvas = Image.new("RGB", (100, 100))
        backgrounds.cover(canvas, (50, 50), 60, rng)
        shares.append((np.asarray(canvas)[20:80, 20:80].sum(-1) > 0).mean())
    assert min(shares) > 0.01
    assert max(shares) < 0.55
    assert 0.08 < np.mean(shares) < 0.35


def test_overlays_do_not_cover_the_middle():
    for seed in range(20):
        opacity = np.asarray(backgrounds.overlay(100, np.random.default_rng(seed)))[..., 3]
        assert not opacity[12:74].any()
        assert (opacity > 0).mean() > 0.02


def test_paper_is_light_and_plain():
    rng = np.random.default_rng(0)
    papers = np.array([backgrounds.paper(rng) for _ in range(100)])
    assert papers.min() > 215
    assert np.ptp(papers, axis=1).max() <= 8
