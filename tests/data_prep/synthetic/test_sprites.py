"""Tests the pictures of single products."""

import dataclasses

import numpy as np
import pytest

from data_prep.synthetic.products import CATEGORIES, COLORS, PATTERNS, VALUES, Attributes
from data_prep.synthetic.sprites import pattern_mask, sprites

SIDE = 64


def picture(attributes: Attributes) -> np.ndarray:
    """Returns the product on gray, float[SIDE, SIDE, 3]."""
    sprite, _ = sprites(attributes, SIDE)
    opacity = np.asarray(sprite.opacity, float)[..., None] / 255
    return opacity * np.asarray(sprite.color, float) + (1 - opacity) * 128


@pytest.mark.parametrize("category", CATEGORIES)
def test_one_changed_attribute_is_visible(category):
    product = Attributes(category, "teal", "orange", "dots", "star", "regular")
    for name in ("base", "second", "pattern", "mark", "proportion"):
        changed = [
            dataclasses.replace(product, **{name: value})
            for value in VALUES[name][::2]
            if value not in (product.base, product.second, getattr(product, name))
        ]
        pictures = [picture(variant) for variant in [product, *changed]]
        for i, one in enumerate(pictures):
            for other in pictures[:i]:
                assert (np.abs(one - other).max(-1) > 25).sum() > 12, name


def test_categories_have_different_outlines():
    outlines = [picture(Attributes(c, "red", "red", "plain", "none", "regular")) for c in CATEGORIES]
    for i, one in enumerate(outlines):
        for other in outlines[:i]:
            assert (np.abs(one - other).max(-1) > 25).mean() > 0.03


def test_body_and_trim_have_the_base_and_second_color():
    sprite, half = sprites(Attributes("bag", "navy", "yellow", "plain", "none", "regular"), SIDE)
    color, opacity = np.asarray(sprite.color, int), np.asarray(sprite.opacity)
    assert np.abs(color[40, 32] - COLORS["navy"]).max() < 35
    assert np.abs(color[53, 32] - COLORS["yellow"]).max() < 35  # the hem
    assert opacity[40, 32] == 255
    assert opacity[2, 2] == 0
    assert opacity[21, 32] == 0  # through the handle
    assert (half.color.size, half.opacity.size) == ((SIDE // 2,) * 2, (SIDE // 2,) * 2)


def test_patterns_cover_part_of_the_body():
    masks = {pattern: np.asarray(pattern_mask(pattern, 100)) for pattern in PATTERNS}
    assert not masks["plain"].any()
    for pattern, mask in masks.items():
        assert pattern == "plain" or 0.2 < mask.mean() < 0.6
    assert (masks["horizontal"] == masks["horizontal"][:, :1]).all()
    assert (masks["vertical"] == masks["horizontal"].T).all()
    assert masks["halves"][:, :50].all()
    assert not masks["halves"][:, 50:].any()


def test_unknown_patterns_are_an_error():
    with pytest.raises(ValueError, match="unknown pattern 'tartan'"):
        pattern_mask("tartan", 8)
