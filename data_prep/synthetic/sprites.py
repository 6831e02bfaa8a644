"""Outlines of the product categories, and frontal pictures of products, which the scenes turn, scale and cover."""

import functools
import json
import math
from collections.abc import Iterable
from pathlib import Path
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


def _rays(radii: tuple[float, ...]) -> Points:
    """Returns points at equal angles and the given radii, the first one at the top."""
    angles = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    return tuple((r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles, strict=True))


def _outline(entries: list[list[float]]) -> Points:
    """Returns the points of an outline; entries of two numbers are points, those of four or six ellipses (`oval`)."""
    parts = (oval(*entry) if len(entry) > 2 else [(entry[0], entry[1])] for entry in entries)
    return tuple(point for part in parts for point in part)


SILHOUETTES = {
    category: Silhouette(
        tuple(silhouette["mark_at"]), tuple((role, _outline(entries)) for role, entries in silhouette["parts"])
    )
    for category, silhouette in json.loads(Path(__file__).with_name("silhouettes.json").read_text()).items()
}
# Polygons around the origin with a radius of about 1; a second polygon is a hole in the first.
# fmt: off
MARKS: dict[str, tuple[Points, ...]] = {
    "none": (),
    "disc": (oval(0, 0, 0.85, 0.85),),
    "ring": (oval(0, 0, 1, 1), oval(0, 0, 0.5, 0.5)),
    "star": (_rays((1.1, 0.45) * 5),),
    "triangle": (_rays((1.1, 1.1, 1.1)),),
    "heart": ((*oval(-0.45, -0.3, 0.47, 0.5, 150, 360), *oval(0.45, -0.3, 0.47, 0.5, 180, 390), (0.0, 1.0)),),
    "diamond": (((0.0, -1.15), (0.75, 0.0), (0.0, 1.15), (-0.75, 0.0)),),
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
    trim = COLORS[attributes.trim or attributes.second]
    silhouette = SILHOUETTES[attributes.category]
    color, opacity = Image.new("RGB", (side, side), base), Image.new("L", (side, side))
    body = Image.new("RGB", (side, side), base)
    body.paste(second, mask=pattern_mask(attributes.pattern, attributes.scale, side))
    pen, mask_pen = ImageDraw.Draw(color), ImageDraw.Draw(opacity)
    for role, points in silhouette.parts:
        points = _pixels(in_proportion(points, attributes.proportion), side)
        mask_pen.polygon(points, fill=0 if role == "cut" else 255)
        if role == "body":
            part = Image.new("L", (side, side))
            ImageDraw.Draw(part).polygon(points, fill=255)
            color.paste(body, mask=part)
        # An outline keeps a white product visible on a white page.
        fill = {"body": None, "cut": None, "trim": trim, "dark": DARK}[role]
        pen.polygon(points, fill=fill, outline=darker(trim if role == "trim" else base, 0.62), width=side // 64)
    (place,) = in_proportion((silhouette.mark_at,), attributes.proportion)
    _print_mark(pen, attributes, place, side)
    return Sprite(_shaded(color, attributes.finish), opacity)


def _pixels(points: Iterable[tuple[float, float]], side: int) -> list[tuple[float, float]]:
    return [(x * side, y * side) for x, y in points]


def _print_mark(pen: ImageDraw.ImageDraw, attributes: Attributes, place: tuple[float, float], side: int) -> None:
    """Prints a mark, in its ink or dark on light bases and light on dark ones, with a rim of the other brightness."""
    ink = COLORS[attributes.ink] if attributes.ink else DARK if _is_light(COLORS[attributes.base]) else LIGHT
    rim = DARK if _is_light(ink) else LIGHT
    for outline, fill in zip(MARKS[attributes.mark], (ink, rim), strict=False):
        points = _pixels(((place[0] + MARK_RADIUS * x, place[1] + MARK_RADIUS * y) for x, y in outline), side)
        pen.polygon(points, fill=fill, outline=rim, width=max(1, side // 48))


def _is_light(color: Color) -> bool:
    return sum(color) > 360


# Finish → brightness at the top, and how much of it is lost toward the bottom.
FINISHES = {"matte": (1.10, 0.14), "glossy": (1.10, 0.14), "ombre": (1.25, 0.80)}
SHINE = 0.6  # opacity of the streak of white light on glossy products


def _shaded(color: Image.Image, finish: str) -> Image.Image:
    """Adds light from the upper left, so that the product looks less flat, with the shine or shade of its finish."""
    u, v = _grid(color.width)
    top, lost = FINISHES[finish]
    lit = np.asarray(color) * (top - 0.16 * u - lost * v)[..., None]
    if finish == "glossy":
        streak = np.abs(u + 0.5 * v - 0.62) < 0.05
        lit[streak] += SHINE * (255 - lit[streak])
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))


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
    "argyle": lambda u, v: np.abs(u % 0.2 - 0.1) + 0.7 * np.abs(v % 0.28 - 0.14) < 0.075,
}
SCALES = {"fine": 0.65, "regular": 1.0, "coarse": 1.6}


@functools.cache
def pattern_mask(pattern: str, scale: str, side: int) -> Image.Image:
    """Returns the mask of the second color in a pattern, mode 1, `side` × `side`."""
    u, v = _grid(side)
    return Image.fromarray(PATTERN_MASKS[pattern](u / SCALES[scale], v / SCALES[scale]))


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
