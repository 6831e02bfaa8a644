"""Tests the outlines of categories and printed marks."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_prep.synthetic import products
from data_prep.synthetic.outlines import MARKS, SILHOUETTES, in_proportion
from data_prep.synthetic.products import CATEGORIES, PROPORTIONS


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


def test_unknown_proportions_are_an_error():
    with pytest.raises(ValueError, match=r"unknown proportion 'huge'; choose from regular, tall, wide, flared"):
        in_proportion(((0.0, 0.0),), "huge")


def test_every_mark_has_an_outline():
    assert set(MARKS) == set(products.MARKS)
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
