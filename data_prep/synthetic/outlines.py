"""Outlines of the product categories and of the printed marks; y points down."""

import math

import numpy as np

Points = tuple[tuple[float, float], ...]
Part = tuple[str, Points]


class Silhouette:
    """Outline of a category in the unit square.

    Parts are roles and polygons in drawing order: `body` has the base color and the pattern, `trim` the second color,
    `dark` is a dark detail, and `cut` is a hole through everything drawn before.
    """

    def __init__(self, *parts: Part, mark_at: tuple[float, float]) -> None:
        """Takes the parts and the center of the printed mark."""
        self.parts, self.mark_at = parts, mark_at


def oval(x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> Points:
    """Returns an ellipse, or its part between two angles in degrees (0 is right, 90 is down)."""
    angles = np.radians(np.linspace(start, end, 33))
    return tuple((float(x + rx * np.cos(a)), float(y + ry * np.sin(a))) for a in angles)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _rays(radii: tuple[float, ...]) -> Points:
    """Returns points at equal angles and the given radii, the first one at the top."""
    angles = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    return tuple((r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles, strict=True))


_CUFF = ((0.94, 0.30), (0.84, 0.47), (0.77, 0.43), (0.87, 0.25))
_CANOPY = (
    *oval(0.5, 0.52, 0.47, 0.42, 180, 360),
    *oval(0.81, 0.52, 0.16, 0.06, 0, -180),
    *oval(0.5, 0.52, 0.155, 0.06, 0, -180),
    *oval(0.19, 0.52, 0.16, 0.06, 0, -180),
)

# fmt: off
SILHOUETTES = {
    "bag": Silhouette(
        ("trim", oval(0.5, 0.32, 0.21, 0.24)),
        ("cut", oval(0.5, 0.32, 0.14, 0.17)),
        ("body", ((0.14, 0.34), (0.86, 0.34), (0.95, 0.92), (0.05, 0.92))),
        ("trim", ((0.06, 0.83), (0.94, 0.83), (0.95, 0.92), (0.05, 0.92))),
        mark_at=(0.5, 0.60),
    ),
    "mug": Silhouette(
        ("trim", oval(0.74, 0.52, 0.21, 0.23)),
        ("cut", oval(0.74, 0.52, 0.13, 0.15)),
        ("body", _box(0.10, 0.14, 0.72, 0.90)),
        ("trim", _box(0.10, 0.14, 0.72, 0.22)),
        mark_at=(0.41, 0.56),
    ),
    "shoe": Silhouette(
        ("body", (
            (0.06, 0.28), (0.20, 0.24), (0.36, 0.26), (0.54, 0.45),
            (0.80, 0.52), (0.93, 0.62), (0.95, 0.74), (0.05, 0.74),
        )),
        ("trim", ((0.03, 0.73), (0.96, 0.73), (0.95, 0.84), (0.05, 0.84))),
        ("trim", ((0.36, 0.26), (0.42, 0.33), (0.32, 0.40), (0.28, 0.33))),
        ("dark", ((0.46, 0.37), (0.50, 0.41), (0.42, 0.49), (0.39, 0.46))),
        ("dark", ((0.55, 0.45), (0.60, 0.47), (0.54, 0.55), (0.50, 0.53))),
        mark_at=(0.25, 0.56),
    ),
    "shirt": Silhouette(
        ("body", (
            (0.32, 0.10), (0.41, 0.18), (0.59, 0.18), (0.68, 0.10), (0.94, 0.30), (0.84, 0.47),
            (0.74, 0.41), (0.74, 0.92), (0.26, 0.92), (0.26, 0.41), (0.16, 0.47), (0.06, 0.30),
        )),
        ("trim", _CUFF),
        ("trim", tuple((1 - x, y) for x, y in _CUFF)),
        ("trim", ((0.32, 0.10), (0.41, 0.18), (0.59, 0.18), (0.68, 0.10), (0.62, 0.24), (0.38, 0.24))),
        mark_at=(0.5, 0.52),
    ),
    "bottle": Silhouette(
        ("body", ((0.42, 0.20), (0.58, 0.20), (0.72, 0.40), (0.72, 0.97), (0.28, 0.97), (0.28, 0.40))),
        ("trim", _box(0.42, 0.10, 0.58, 0.23)),
        ("dark", _box(0.40, 0.03, 0.60, 0.11)),
        mark_at=(0.5, 0.62),
    ),
    "lamp": Silhouette(
        ("trim", _box(0.46, 0.50, 0.54, 0.88)),
        ("trim", oval(0.5, 0.89, 0.24, 0.07)),
        ("body", ((0.32, 0.05), (0.68, 0.05), (0.90, 0.54), (0.10, 0.54))),
        mark_at=(0.5, 0.32),
    ),
    "chair": Silhouette(
        ("trim", _box(0.14, 0.62, 0.21, 0.96)),
        ("trim", _box(0.79, 0.62, 0.86, 0.96)),
        ("trim", _box(0.34, 0.62, 0.40, 0.86)),
        ("trim", _box(0.60, 0.62, 0.66, 0.86)),
        ("body", _box(0.22, 0.04, 0.78, 0.56)),
        ("body", ((0.18, 0.54), (0.82, 0.54), (0.92, 0.70), (0.08, 0.70))),
        mark_at=(0.5, 0.29),
    ),
    "hat": Silhouette(
        ("body", oval(0.5, 0.72, 0.48, 0.12)),
        ("body", (*oval(0.5, 0.56, 0.31, 0.42, 180, 360), (0.81, 0.72), (0.19, 0.72))),
        ("trim", _box(0.19, 0.59, 0.81, 0.70)),
        mark_at=(0.5, 0.38),
    ),
    "phone": Silhouette(
        ("dark", _box(0.24, 0.02, 0.76, 0.98)),
        ("body", _box(0.26, 0.04, 0.74, 0.96)),
        ("trim", _box(0.30, 0.08, 0.52, 0.27)),
        ("dark", oval(0.36, 0.14, 0.04, 0.04)),
        ("dark", oval(0.46, 0.20, 0.04, 0.04)),
        mark_at=(0.5, 0.57),
    ),
    "watch": Silhouette(
        ("trim", (
            (0.37, 0.01), (0.63, 0.01), (0.70, 0.30), (0.70, 0.70),
            (0.63, 0.99), (0.37, 0.99), (0.30, 0.70), (0.30, 0.30),
        )),
        ("trim", _box(0.80, 0.46, 0.88, 0.54)),
        ("dark", oval(0.5, 0.5, 0.34, 0.34)),
        ("body", oval(0.5, 0.5, 0.29, 0.29)),
        mark_at=(0.5, 0.5),
    ),
    "umbrella": Silhouette(
        ("trim", oval(0.42, 0.88, 0.11, 0.09, 0, 180)),
        ("cut", oval(0.42, 0.88, 0.05, 0.04)),
        ("trim", _box(0.475, 0.04, 0.53, 0.89)),
        ("body", _CANOPY),
        mark_at=(0.5, 0.30),
    ),
    "teapot": Silhouette(
        ("trim", oval(0.20, 0.56, 0.17, 0.20)),
        ("cut", oval(0.20, 0.56, 0.10, 0.13)),
        ("trim", ((0.66, 0.62), (0.84, 0.34), (0.97, 0.32), (0.90, 0.42), (0.76, 0.80))),
        ("trim", oval(0.48, 0.26, 0.05, 0.05)),
        ("body", oval(0.48, 0.60, 0.31, 0.30)),
        ("trim", oval(0.48, 0.33, 0.17, 0.05)),
        mark_at=(0.48, 0.61),
    ),
    "trousers": Silhouette(
        ("body", (
            (0.24, 0.04), (0.76, 0.04), (0.86, 0.96), (0.59, 0.96),
            (0.5, 0.44), (0.41, 0.96), (0.14, 0.96),
        )),
        ("trim", _box(0.24, 0.04, 0.76, 0.12)),
        mark_at=(0.5, 0.27),
    ),
    "dress": Silhouette(
        ("body", (
            (0.33, 0.04), (0.42, 0.16), (0.58, 0.16), (0.67, 0.04), (0.72, 0.08),
            (0.65, 0.42), (0.92, 0.96), (0.08, 0.96), (0.35, 0.42), (0.28, 0.08),
        )),
        ("trim", _box(0.34, 0.37, 0.66, 0.45)),
        mark_at=(0.5, 0.67),
    ),
    "guitar": Silhouette(
        ("body", oval(0.5, 0.50, 0.22, 0.18)),
        ("body", oval(0.5, 0.76, 0.31, 0.22)),
        ("trim", _box(0.46, 0.08, 0.54, 0.52)),
        ("dark", _box(0.42, 0.01, 0.58, 0.12)),
        ("trim", _box(0.38, 0.90, 0.62, 0.94)),
        mark_at=(0.5, 0.70),
    ),
    "cushion": Silhouette(
        *(("trim", oval(x, y, 0.08, 0.08)) for x in (0.1, 0.9) for y in (0.14, 0.86)),
        ("body", (
            (0.08, 0.12), (0.5, 0.18), (0.92, 0.12), (0.87, 0.5),
            (0.92, 0.88), (0.5, 0.82), (0.08, 0.88), (0.13, 0.5),
        )),
        mark_at=(0.5, 0.5),
    ),
}
# Polygons around the origin with a radius of about 1; a second polygon is a hole in the first.
MARKS: dict[str, tuple[Points, ...]] = {
    "none": (),
    "disc": (oval(0, 0, 0.85, 0.85),),
    "ring": (oval(0, 0, 1, 1), oval(0, 0, 0.5, 0.5)),
    "star": (_rays((1.1, 0.45) * 5),),
    "triangle": (_rays((1.1, 1.1, 1.1)),),
    "heart": ((*oval(-0.45, -0.3, 0.47, 0.5, 150, 360), *oval(0.45, -0.3, 0.47, 0.5, 180, 390), (0.0, 1.0)),),
    "cross": ((
        (-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32),
        (0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32),
    ),),
    "letter": ((  # a capital H, because it is the same when mirrored
        (-0.85, -1), (-0.35, -1), (-0.35, -0.25), (0.35, -0.25), (0.35, -1), (0.85, -1),
        (0.85, 1), (0.35, 1), (0.35, 0.25), (-0.35, 0.25), (-0.35, 1), (-0.85, 1),
    ),),
}
# fmt: on


def in_proportion(points: Points, proportion: str) -> Points:
    """Stretches a polygon about the center of the unit square."""
    match proportion:
        case "regular":
            return tuple((0.5 + 0.86 * (x - 0.5), 0.5 + 0.86 * (y - 0.5)) for x, y in points)
        case "tall":
            return tuple((0.5 + 0.62 * (x - 0.5), y) for x, y in points)
        case "wide":
            return tuple((x, 0.5 + 0.62 * (y - 0.5)) for x, y in points)
        case "flared":  # narrow at the top, wide at the bottom
            return tuple((0.5 + (0.45 + 0.55 * y) * (x - 0.5), 0.5 + 0.9 * (y - 0.5)) for x, y in points)
    raise ValueError(f"unknown proportion {proportion!r}; choose from regular, tall, wide, flared")
