"""Outlines of the product categories, and frontal pictures of products, which the scenes turn, scale and cover."""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from data_prep.synthetic.products import COLORS, Attributes, Color, darker

Points = tuple[tuple[float, float], ...]

SUPERSAMPLING = 2
MARK_RADIUS = 0.125  # relative to the side of the sprite
DARK = (40, 36, 36)
LIGHT = (252, 250, 246)
CACHED_SPRITES = 512  # more than the products of an item and its shelf


class Silhouette(NamedTuple):
    """Outline of a category in the unit square; y points down.

    Parts are roles and polygons in drawing order: `body` has the base color and the pattern, `trim` the second color,
    `dark` is a dark detail, and `cut` is a hole through everything drawn before.
    """

    mark_at: tuple[float, float]  # center of the printed mark
    parts: tuple[tuple[str, Points], ...]


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
    "bag": Silhouette((0.5, 0.60), (
        ("trim", oval(0.5, 0.32, 0.21, 0.24)),
        ("cut", oval(0.5, 0.32, 0.14, 0.17)),
        ("body", ((0.14, 0.34), (0.86, 0.34), (0.95, 0.92), (0.05, 0.92))),
        ("trim", ((0.06, 0.83), (0.94, 0.83), (0.95, 0.92), (0.05, 0.92))),
    )),
    "mug": Silhouette((0.41, 0.56), (
        ("trim", oval(0.74, 0.52, 0.21, 0.23)),
        ("cut", oval(0.74, 0.52, 0.13, 0.15)),
        ("body", _box(0.10, 0.14, 0.72, 0.90)),
        ("trim", _box(0.10, 0.14, 0.72, 0.22)),
    )),
    "shoe": Silhouette((0.25, 0.56), (
        ("body", ((0.06, 0.28), (0.20, 0.24), (0.36, 0.26), (0.54, 0.45), (0.80, 0.52), (0.93, 0.62), (0.95, 0.74),
                  (0.05, 0.74))),
        ("trim", ((0.03, 0.73), (0.96, 0.73), (0.95, 0.84), (0.05, 0.84))),
        ("trim", ((0.36, 0.26), (0.42, 0.33), (0.32, 0.40), (0.28, 0.33))),
        ("dark", ((0.46, 0.37), (0.50, 0.41), (0.42, 0.49), (0.39, 0.46))),
        ("dark", ((0.55, 0.45), (0.60, 0.47), (0.54, 0.55), (0.50, 0.53))),
    )),
    "shirt": Silhouette((0.5, 0.52), (
        ("body", ((0.32, 0.10), (0.41, 0.18), (0.59, 0.18), (0.68, 0.10), (0.94, 0.30), (0.84, 0.47), (0.74, 0.41),
                  (0.74, 0.92), (0.26, 0.92), (0.26, 0.41), (0.16, 0.47), (0.06, 0.30))),
        ("trim", _CUFF),
        ("trim", tuple((1 - x, y) for x, y in _CUFF)),
        ("trim", ((0.32, 0.10), (0.41, 0.18), (0.59, 0.18), (0.68, 0.10), (0.62, 0.24), (0.38, 0.24))),
    )),
    "bottle": Silhouette((0.5, 0.62), (
        ("body", ((0.42, 0.20), (0.58, 0.20), (0.72, 0.40), (0.72, 0.97), (0.28, 0.97), (0.28, 0.40))),
        ("trim", _box(0.42, 0.10, 0.58, 0.23)),
        ("dark", _box(0.40, 0.03, 0.60, 0.11)),
    )),
    "lamp": Silhouette((0.5, 0.32), (
        ("trim", _box(0.46, 0.50, 0.54, 0.88)),
        ("trim", oval(0.5, 0.89, 0.24, 0.07)),
        ("body", ((0.32, 0.05), (0.68, 0.05), (0.90, 0.54), (0.10, 0.54))),
    )),
    "chair": Silhouette((0.5, 0.29), (
        ("trim", _box(0.14, 0.62, 0.21, 0.96)),
        ("trim", _box(0.79, 0.62, 0.86, 0.96)),
        ("trim", _box(0.34, 0.62, 0.40, 0.86)),
        ("trim", _box(0.60, 0.62, 0.66, 0.86)),
        ("body", _box(0.22, 0.04, 0.78, 0.56)),
        ("body", ((0.18, 0.54), (0.82, 0.54), (0.92, 0.70), (0.08, 0.70))),
    )),
    "hat": Silhouette((0.5, 0.38), (
        ("body", oval(0.5, 0.72, 0.48, 0.12)),
        ("body", (*oval(0.5, 0.56, 0.31, 0.42, 180, 360), (0.81, 0.72), (0.19, 0.72))),
        ("trim", _box(0.19, 0.59, 0.81, 0.70)),
    )),
    "phone": Silhouette((0.5, 0.57), (
        ("dark", _box(0.24, 0.02, 0.76, 0.98)),
        ("body", _box(0.26, 0.04, 0.74, 0.96)),
        ("trim", _box(0.30, 0.08, 0.52, 0.27)),
        ("dark", oval(0.36, 0.14, 0.04, 0.04)),
        ("dark", oval(0.46, 0.20, 0.04, 0.04)),
    )),
    "watch": Silhouette((0.5, 0.5), (
        ("trim", ((0.37, 0.01), (0.63, 0.01), (0.70, 0.30), (0.70, 0.70), (0.63, 0.99), (0.37, 0.99), (0.30, 0.70),
                  (0.30, 0.30))),
        ("trim", _box(0.80, 0.46, 0.88, 0.54)),
        ("dark", oval(0.5, 0.5, 0.34, 0.34)),
        ("body", oval(0.5, 0.5, 0.29, 0.29)),
    )),
    "umbrella": Silhouette((0.5, 0.30), (
        ("trim", oval(0.42, 0.88, 0.11, 0.09, 0, 180)),
        ("cut", oval(0.42, 0.88, 0.05, 0.04)),
        ("trim", _box(0.475, 0.04, 0.53, 0.89)),
        ("body", _CANOPY),
    )),
    "teapot": Silhouette((0.48, 0.61), (
        ("trim", oval(0.20, 0.56, 0.17, 0.20)),
        ("cut", oval(0.20, 0.56, 0.10, 0.13)),
        ("trim", ((0.66, 0.62), (0.84, 0.34), (0.97, 0.32), (0.90, 0.42), (0.76, 0.80))),
        ("trim", oval(0.48, 0.26, 0.05, 0.05)),
        ("body", oval(0.48, 0.60, 0.31, 0.30)),
        ("trim", oval(0.48, 0.33, 0.17, 0.05)),
    )),
    "trousers": Silhouette((0.5, 0.27), (
        ("body", ((0.24, 0.04), (0.76, 0.04), (0.86, 0.96), (0.59, 0.96), (0.5, 0.44), (0.41, 0.96), (0.14, 0.96))),
        ("trim", _box(0.24, 0.04, 0.76, 0.12)),
    )),
    "dress": Silhouette((0.5, 0.67), (
        ("body", ((0.33, 0.04), (0.42, 0.16), (0.58, 0.16), (0.67, 0.04), (0.72, 0.08), (0.65, 0.42), (0.92, 0.96),
                  (0.08, 0.96), (0.35, 0.42), (0.28, 0.08))),
        ("trim", _box(0.34, 0.37, 0.66, 0.45)),
    )),
    "guitar": Silhouette((0.5, 0.70), (
        ("body", oval(0.5, 0.50, 0.22, 0.18)),
        ("body", oval(0.5, 0.76, 0.31, 0.22)),
        ("trim", _box(0.46, 0.08, 0.54, 0.52)),
        ("dark", _box(0.42, 0.01, 0.58, 0.12)),
        ("trim", _box(0.38, 0.90, 0.62, 0.94)),
    )),
    "cushion": Silhouette((0.5, 0.5), (
        *(("trim", oval(x, y, 0.08, 0.08)) for x in (0.1, 0.9) for y in (0.14, 0.86)),
        ("body", ((0.08, 0.12), (0.5, 0.18), (0.92, 0.12), (0.87, 0.5), (0.92, 0.88), (0.5, 0.82), (0.08, 0.88),
                  (0.13, 0.5))),
    )),
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


class Sprite(NamedTuple):
    """Color (mode RGB) and opacity (mode L) of a product, both square."""

    color: Image.Image
    opacity: Image.Image

    def reduced(self, factor: int) -> "Sprite":
        """Returns the sprite with its side divided by `factor`."""
        return Sprite(self.color.reduce(factor), self.opacity.reduce(factor))


@functools.lru_cache(maxsize=CACHED_SPRITES)
def sprites(attributes: Attributes, side: int) -> tuple[Sprite, Sprite]:
    """Draws a product in a square of `side` pixels and in one of half that side.

    Bilinear sampling of the larger one would alias if it is scaled to less than half.
    """
    sprite = _draw(attributes, side * SUPERSAMPLING).reduced(SUPERSAMPLING)
    return sprite, sprite.reduced(2)


def _draw(attributes: Attributes, side: int) -> Sprite:
    base, second = COLORS[attributes.base], COLORS[attributes.second]
    silhouette = SILHOUETTES[attributes.category]
    color, opacity = Image.new("RGB", (side, side), base), Image.new("L", (side, side))
    body = Image.new("RGB", (side, side), base)
    body.paste(second, mask=pattern_mask(attributes.pattern, side))
    pen, mask_pen = ImageDraw.Draw(color), ImageDraw.Draw(opacity)
    for role, points in silhouette.parts:
        points = _pixels(in_proportion(points, attributes.proportion), side)
        mask_pen.polygon(points, fill=0 if role == "cut" else 255)
        if role == "body":
            part = Image.new("L", (side, side))
            ImageDraw.Draw(part).polygon(points, fill=255)
            color.paste(body, mask=part)
        # An outline keeps a white product visible on a white page.
        fill = {"body": None, "cut": None, "trim": second, "dark": DARK}[role]
        pen.polygon(points, fill=fill, outline=darker(second if role == "trim" else base, 0.62), width=side // 64)
    (place,) = in_proportion((silhouette.mark_at,), attributes.proportion)
    _print_mark(pen, attributes.mark, place, base, side)
    return Sprite(_shaded(color), opacity)


def _pixels(points: Iterable[tuple[float, float]], side: int) -> list[tuple[float, float]]:
    return [(x * side, y * side) for x, y in points]


def _print_mark(pen: ImageDraw.ImageDraw, mark: str, place: tuple[float, float], base: Color, side: int) -> None:
    """Prints a mark, dark on light bases and light on dark ones, with a rim of the other color."""
    ink, rim = (DARK, LIGHT) if sum(base) > 360 else (LIGHT, DARK)
    for outline, fill in zip(MARKS[mark], (ink, rim), strict=False):
        points = _pixels(((place[0] + MARK_RADIUS * x, place[1] + MARK_RADIUS * y) for x, y in outline), side)
        pen.polygon(points, fill=fill, outline=rim, width=max(1, side // 48))


def _shaded(color: Image.Image) -> Image.Image:
    """Adds light from the upper left, so that the product looks less flat."""
    u, v = _grid(color.width)
    light = 1.10 - 0.16 * u - 0.14 * v
    return Image.fromarray(np.clip(np.asarray(color) * light[..., None], 0, 255).astype(np.uint8))


@functools.cache
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns columns u and rows v of the pixel centers in the unit square, float32[side, side] each."""
    ticks = (np.arange(side, dtype=np.float32) + 0.5) / side
    return np.broadcast_to(ticks, (side, side)), np.broadcast_to(ticks[:, None], (side, side))


# Pattern → mask of the second color from the columns u and rows v of the pixel centers, in the unit square.
PATTERN_MASKS = {
    "plain": lambda u, v: np.zeros(u.shape, bool),
    "horizontal": lambda u, v: v % 0.17 < 0.085,
    "vertical": lambda u, v: u % 0.17 < 0.085,
    "diagonal": lambda u, v: (u + v) % 0.24 < 0.12,
    "dots": lambda u, v: np.hypot(u % 0.17 - 0.085, v % 0.17 - 0.085) < 0.055,
    "checks": lambda u, v: (u // 0.125 + v // 0.125) % 2 == 1,
    "zigzag": lambda u, v: (v + np.abs(u % 0.25 - 0.125)) % 0.2 < 0.1,
    "halves": lambda u, v: u < 0.5,
    "grid": lambda u, v: (u % 0.19 < 0.05) | (v % 0.19 < 0.05),
}


@functools.cache
def pattern_mask(pattern: str, side: int) -> Image.Image:
    """Returns the mask of the second color in a pattern, mode 1, `side` × `side`."""
    return Image.fromarray(PATTERN_MASKS[pattern](*_grid(side)))


# Proportion → position of a point of an outline, stretched about the center of the unit square.
STRETCHED = {
    "regular": lambda x, y: (0.5 + 0.86 * (x - 0.5), 0.5 + 0.86 * (y - 0.5)),
    "tall": lambda x, y: (0.5 + 0.62 * (x - 0.5), y),
    "wide": lambda x, y: (x, 0.5 + 0.62 * (y - 0.5)),
    "flared": lambda x, y: (0.5 + (0.45 + 0.55 * y) * (x - 0.5), 0.5 + 0.9 * (y - 0.5)),  # narrow at the top
}


def in_proportion(points: Points, proportion: str) -> Points:
    """Stretches a polygon about the center of the unit square."""
    return tuple(STRETCHED[proportion](x, y) for x, y in points)
