import numpy as np
import pytest

from data_prep.synthetic.products import CATEGORIES, PROPORTIONS
from data_prep.synthetic.silhouettes import SILHOUETTES, in_proportion


def test_every_category_has_an_outline():
    assert set(SILHOUETTES) == set(CATEGORIES)


@pytest.mark.parametrize("proportion", PROPORTIONS)
def test_nothing_sticks_out_of_the_unit_square(proportion):
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
    with pytest.raises(ValueError, match=r"unknown proportion 'huge'; known: regular, tall, wide, flared"):
        in_proportion(((0.0, 0.0),), "huge")
