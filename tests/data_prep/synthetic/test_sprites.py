"""Tests the outlines of categories and printed marks, and the pictures of single products."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_prep.synthetic.products import CATEGORIES, COLORS, PROPORTIONS, RECIPES, Attributes
from data_prep.synthetic.sprites import (
    FINISHES,
    MARKS,
    PATTERN_MASKS,
    SCALES,
    SILHOUETTES,
    STRETCHED,
    in_proportion,
    pattern_mask,
    sprites,
)

SIDE = 64
# Values of all recipes
VALUES = {
    name: tuple(dict.fromkeys(value for recipe in RECIPES.values() for value in recipe.attributes.get(name, ())))
    for name in RECIPES[7].attributes
}


def picture(attributes: Attributes) -> np.ndarray:
    """Returns the product on gray, float[SIDE, SIDE, 3]."""
    sprite, _ = sprites(attributes, SIDE)
    opacity = np.asarray(sprite.opacity, float)[..., None] / 255
    return opacity * np.asarray(sprite.color, float) + (1 - opacity) * 128


@pytest.mark.parametrize("category", CATEGORIES)
def test_one_changed_attribute_is_visible(category):
    product = Attributes(category, "teal", "orange", "dots", "star", "regular")
    for name in VALUES.keys() - {"category"}:
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
    masks = {pattern: np.asarray(pattern_mask(pattern, "regular", 100)) for pattern in VALUES["pattern"]}
    assert not masks["plain"].any()
    for pattern, mask in masks.items():
        assert pattern == "plain" or 0.2 < mask.mean() < 0.6
    assert (masks["horizontal"] == masks["horizontal"][:, :1]).all()
    assert (masks["vertical"] == masks["horizontal"].T).all()
    assert masks["halves"][:, :50].all()
    assert not masks["halves"][:, 50:].any()


def test_scales_enlarge_patterns():
    checks = {scale: np.asarray(pattern_mask("checks", scale, 200))[0] for scale in VALUES["scale"]}
    assert {scale: int(row.argmax()) for scale, row in checks.items()} == {"fine": 16, "regular": 25, "coarse": 40}
    for pattern in VALUES["pattern"]:
        shares = [np.asarray(pattern_mask(pattern, scale, 400)).mean() for scale in SCALES]
        assert pattern == "halves" or np.ptp(shares) < 0.12, pattern


def test_trim_and_ink_replace_the_second_color_and_that_of_the_mark():
    product = Attributes("bag", "navy", "yellow", "dots", "disc", "regular")
    assert (picture(product) == picture(dataclasses.replace(product, trim="yellow"))).all()
    other = np.asarray(sprites(dataclasses.replace(product, trim="pink", ink="red"), SIDE)[0].color, int)
    assert np.abs(other[53, 32] - COLORS["pink"]).max() < 35  # the hem
    assert np.abs(other[38, 32] - COLORS["red"]).max() < 35  # the middle of the mark
    assert np.abs(np.asarray(sprites(product, SIDE)[0].color, int)[38, 32] - 252).max() < 35


def test_finishes_change_the_light():
    light = {
        finish: picture(Attributes("cushion", "gray", "red", "plain", "none", "wide", finish=finish))
        for finish in FINISHES
    }
    brighter = light["glossy"] - light["matte"]
    assert brighter.min() >= 0
    assert 0.02 < (brighter.max(-1) > 40).mean() < 0.10
    ratio = light["ombre"][[20, 44], 20] / light["matte"][[20, 44], 20]
    assert (ratio[0] > 0.9).all()
    assert (ratio[1] < 0.8).all()


def test_every_category_has_an_outline():
    assert set(SILHOUETTES) == set(CATEGORIES)


@pytest.mark.parametrize("proportion", PROPORTIONS)
def test_outlines_are_inside_the_unit_square(proportion):
    for category, silhouette in SILHOUETTES.items():
        for _, points in silhouette.parts:
            inside = np.array(in_proportion(points, proportion))
            assert inside.min() >= 0, category
            assert inside.max() <= 1, category


def test_proportions_stretch_about_the_middle():
    corners = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
    extents = {p: np.ptp(np.array(in_proportion(corners, p)), axis=0).tolist() for p in PROPORTIONS}
    assert extents["regular"] == pytest.approx([0.86, 0.86])
    assert extents["tall"] == pytest.approx([0.62, 1])
    assert extents["wide"] == pytest.approx([1, 0.62])
    flared = in_proportion(corners, "flared")
    assert flared[1][0] - flared[0][0] == pytest.approx(0.45)
    assert flared[2][0] - flared[3][0] == pytest.approx(1.0)


def test_every_value_has_a_drawing():
    drawings = {"pattern": PATTERN_MASKS, "proportion": STRETCHED, "scale": SCALES, "finish": FINISHES}
    assert {name: list(drawn) for name, drawn in drawings.items()} == {name: list(VALUES[name]) for name in drawings}


def test_every_mark_has_an_outline():
    assert set(MARKS) == set(VALUES["mark"])
    assert MARKS["none"] == ()


def test_marks_fill_their_circle():
    for mark, outlines in MARKS.items():
        for points in outlines[:1]:
            assert 0.8 < np.linalg.norm(points, axis=1).max() < 1.35, mark


def test_marks_are_the_same_when_mirrored():
    """Checks this because training flips pictures, and a flip must not give another mark."""
    for mark, outlines in MARKS.items():
        for points in outlines:
            picture = Image.new("L", (201, 201))
            ImageDraw.Draw(picture).polygon([(100 + 80 * x, 100 + 80 * y) for x, y in points], fill=1)
            pixels = np.asarray(picture)
            assert pixels.sum() > 1000
            assert (pixels != pixels[:, ::-1]).sum() < 0.06 * pixels.sum(), mark  # edges
