"""Outlines of the printed marks: polygons about their own centre, of radius 1, y pointing down."""

import math

from data_prep.synthetic.silhouettes import Points, oval


def _rays(radii: tuple[float, ...]) -> Points:
    """Points at equal angles, the first at the top."""
    angles = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    return tuple((r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles, strict=True))


# A second polygon is a hole in the first.
MARK_OUTLINES: dict[str, tuple[Points, ...]] = {
    "none": (),
    "disc": (oval(0, 0, 0.85, 0.85),),
    "ring": (oval(0, 0, 1, 1), oval(0, 0, 0.5, 0.5)),
    "star": (_rays((1.1, 0.45) * 5),),
    "triangle": (_rays((1.1, 1.1, 1.1)),),
    "heart": (
        (*oval(-0.45, -0.3, 0.47, 0.5, 150, 360), *oval(0.45, -0.3, 0.47, 0.5, 180, 390), (0.0, 1.0)),
    ),
    "cross": (
        (
            (-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32),
            (0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32),
        ),
    ),
    "letter": (  # a capital H: the same when mirrored
        (
            (-0.85, -1), (-0.35, -1), (-0.35, -0.25), (0.35, -0.25), (0.35, -1), (0.85, -1),
            (0.85, 1), (0.35, 1), (0.35, 0.25), (-0.35, 0.25), (-0.35, 1), (-0.85, 1),
        ),
    ),
}  # fmt: skip
