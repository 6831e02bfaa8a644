"""Frontal pictures of single products without a background, which the scenes turn, scale and cover."""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from data_prep.synthetic.outlines import MARKS, SILHOUETTES, in_proportion
from data_prep.synthetic.products import COLORS, Attributes, Color, darker

SUPERSAMPLING = 2
MARK_RADIUS = 0.125  # relative to the side of the sprite
DARK = (40, 36, 36)
LIGHT = (252, 250, 246)
CACHED_SPRITES = 512  # more than the products of an item and its shelf


@dataclasses.dataclass(frozen=True)
class Sprite:
    """Color (mode RGB) and opacity (mode L) of a product, both square."""

    color: Image.Image
    opacity: Image.Image

    def halved(self) -> "Sprite":
        """Returns the sprite at half the side; bilinear sampling of the full sprite would alias below that scale."""
        return Sprite(self.color.reduce(2), self.opacity.reduce(2))


@functools.lru_cache(maxsize=CACHED_SPRITES)
def sprites(attributes: Attributes, side: int) -> tuple[Sprite, Sprite]:
    """Draws a product in a square of `side` pixels and in one of half that side."""
    full = _draw(attributes, side * SUPERSAMPLING)
    sprite = Sprite(full.color.reduce(SUPERSAMPLING), full.opacity.reduce(SUPERSAMPLING))
    return sprite, sprite.halved()


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


@functools.cache
def pattern_mask(pattern: str, side: int) -> Image.Image:
    """Returns the mask of the second color in a pattern, mode 1, `side` × `side`."""
    u, v = _grid(side)
    match pattern:
        case "plain":
            second = np.zeros((side, side), bool)
        case "horizontal":
            second = v % 0.17 < 0.085
        case "vertical":
            second = u % 0.17 < 0.085
        case "diagonal":
            second = (u + v) % 0.24 < 0.12
        case "dots":
            second = np.hypot(u % 0.17 - 0.085, v % 0.17 - 0.085) < 0.055
        case "checks":
            second = (u // 0.125 + v // 0.125) % 2 == 1
        case "zigzag":
            second = (v + np.abs(u % 0.25 - 0.125)) % 0.2 < 0.1
        case "halves":
            second = u < 0.5
        case "grid":
            second = (u % 0.19 < 0.05) | (v % 0.19 < 0.05)
        case _:
            raise ValueError(f"unknown pattern {pattern!r}")
    return Image.fromarray(second)
