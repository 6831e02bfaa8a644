import numpy as np
from PIL import Image, ImageDraw

from data_prep.synthetic.printed_marks import MARK_OUTLINES
from data_prep.synthetic.products import MARKS


def test_every_mark_has_an_outline():
    assert set(MARK_OUTLINES) == set(MARKS)
    assert MARK_OUTLINES["none"] == ()


def test_marks_fill_their_circle():
    for mark, outlines in MARK_OUTLINES.items():
        for points in outlines[:1]:
            assert 0.8 < np.linalg.norm(points, axis=1).max() < 1.35, mark


def test_marks_are_the_same_when_mirrored():
    """Training flips pictures: a flip must not make another mark."""
    for mark, outlines in MARK_OUTLINES.items():
        for points in outlines:
            picture = Image.new("L", (201, 201))
            ImageDraw.Draw(picture).polygon([(100 + 80 * x, 100 + 80 * y) for x, y in points], fill=1)
            pixels = np.asarray(picture)
            assert pixels.sum() > 1000
            assert (pixels != pixels[:, ::-1]).sum() < 0.06 * pixels.sum(), mark  # edges
