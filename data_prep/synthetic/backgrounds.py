"""Surroundings of products: clutter, stages, intro cards, hands and overlays."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.synthetic.products import COLORS, Color, darker

PALETTE = tuple(COLORS.values())
CLUTTER_SHAPES = (12, 24)
FADING = 0.6  # of surroundings, from the strong colors of products (0) to gray (1)
GRAY = 140
CLUTTER_SIZE = (0.05, 0.35)  # relative to the side of the background
SKIN = ((242, 206, 178), (224, 178, 146), (188, 136, 104), (128, 86, 62))


def clutter(side: int, rng: np.random.Generator) -> Image.Image:
    """Draws a cluttered room: slightly blurred shapes in all colors, including those of products."""
    background = _gradient(side, _color(rng), _color(rng))
    pen = ImageDraw.Draw(background)
    count = rng.integers(*CLUTTER_SHAPES, endpoint=True)
    corners = rng.uniform(-0.1, 1.0, (count, 2)) * side
    extents = rng.uniform(*CLUTTER_SIZE, (count, 2)) * side
    for kind, corner, extent in zip(rng.integers(4, size=count), corners, extents, strict=True):
        (left, top), (right, bottom) = corner, corner + extent
        fill = _color(rng)
        match kind:
            case 0:
                pen.rectangle((left, top, right, bottom), fill=fill)
            case 1:
                pen.ellipse((left, top, right, bottom), fill=fill)
            case 2:
                pen.polygon(((left, bottom), (right, bottom), (right, top)), fill=fill)
            case 3:
                pen.line((left, top, right, bottom), fill=fill, width=max(2, side // 24))
    return background.filter(ImageFilter.BoxBlur(side / 120))


def stage(side: int, rng: np.random.Generator) -> Image.Image:
    """Draws a streamer's room: a wall with pictures, a table, and the streamer behind it to one side."""
    wall = _muted(rng)
    background = _gradient(side, wall, darker(wall, 0.8))
    pen = ImageDraw.Draw(background)
    for left, top, width, height in rng.uniform((0, 0, 0.1, 0.05), (0.9, 0.5, 0.4, 0.3), (5, 4)) * side:
        pen.rectangle((left, top, left + width, top + height), fill=_color(rng), outline=_muted(rng))
    skin, x = SKIN[rng.integers(len(SKIN))], side * float(rng.choice((0.28, 0.72)) + rng.uniform(-0.06, 0.06))
    head, shoulders = 0.09 * side, 0.20 * side
    neck = side * float(rng.uniform(0.28, 0.38))
    pen.ellipse((x - shoulders, neck, x + shoulders, neck + 0.9 * side), fill=_color(rng))
    pen.ellipse((x - 1.2 * head, neck - 2.3 * head, x + 1.2 * head, neck), fill=_muted(rng, 30, 90))
    pen.ellipse((x - head, neck - 1.9 * head, x + head, neck + 0.3 * head), fill=skin)
    table = side * float(rng.uniform(0.70, 0.80))
    pen.rectangle((0, table, side, side), fill=_muted(rng))
    return background


def card(side: int, rng: np.random.Generator) -> Image.Image:
    """Draws an intro or price card: one color with lines of text too small to read."""
    background = Image.new("RGB", (side, side), _color(rng))
    pen = ImageDraw.Draw(background)
    ink = _color(rng)
    for top in np.arange(0.2, 0.8, rng.uniform(0.12, 0.25)) * side:
        left, right = rng.uniform((0.08, 0.6), (0.3, 0.92)) * side
        pen.rectangle((left, top, right, top + 0.07 * side), fill=ink)
    return background


def cover(canvas: Image.Image, center: tuple[float, float], size: float, rng: np.random.Generator) -> None:
    """Draws a hand or an object over an edge of the product of `size` pixels at `center`."""
    pen = ImageDraw.Draw(canvas)
    angle = rng.uniform(0, 2 * np.pi)
    out, along = np.array((np.cos(angle), np.sin(angle))), np.array((-np.sin(angle), np.cos(angle)))
    rim = np.array(center) + out * size * rng.uniform(0.22, 0.34)
    if rng.random() < 0.4:
        ends = rim + out * size * 0.5, rim + along * size * 0.6, rim - along * size * 0.6
        pen.polygon([tuple(end) for end in ends], fill=_color(rng))
        return
    skin, width = SKIN[rng.integers(len(SKIN))], max(3, round(0.11 * size))
    for finger in (-1.5, -0.5, 0.5, 1.5):
        tip = rim + along * finger * 1.15 * width - out * size * rng.uniform(0.0, 0.10)
        palm = rim + along * finger * 1.15 * width + out * 0.4 * size
        pen.line((*tip, *palm), fill=skin, width=width)
        pen.ellipse((*(tip - width / 2), *(tip + width / 2)), fill=skin)
    palm = rim + out * 0.6 * size
    pen.ellipse((*(palm - 0.34 * size), *(palm + 0.34 * size)), fill=skin)


def overlay(side: int, rng: np.random.Generator) -> Image.Image:
    """Draws the overlay of a live app, mode RGBA: a badge at the top, comments at the lower left, a price tag."""
    layer = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(layer)
    pen.rectangle((0.04 * side, 0.03 * side, 0.34 * side, 0.10 * side), fill=(30, 30, 30, 140))
    top = side * float(rng.uniform(0.76, 0.84))
    for line in range(int(rng.integers(1, 4))):
        y, right = top + line * 0.07 * side, side * float(rng.uniform(0.25, 0.6))
        pen.rectangle((0.03 * side, y, right, y + 0.05 * side), fill=(250, 250, 250, 150))
    x, y = rng.uniform((0.68, 0.80), (0.78, 0.88)) * side
    pen.rectangle((x, y, x + 0.2 * side, y + 0.09 * side), fill=(*_color(rng), 230))
    return layer


def paper(rng: np.random.Generator) -> Color:
    """Returns the plain light background of a page: white to slightly tinted."""
    return tuple((rng.integers(228, 256) - rng.integers(0, 9, 3)).tolist())


def _gradient(side: int, top: Color, bottom: Color) -> Image.Image:
    return Image.fromarray(np.array([[top], [bottom]], np.uint8)).resize((side, side), Image.Resampling.BILINEAR)


def _color(rng: np.random.Generator) -> Color:
    """Returns a slightly changed color of the palette of products, so that hue does not reveal clutter."""
    shifted = np.array(PALETTE[rng.integers(len(PALETTE))]) + rng.integers(-30, 31, 3)
    faded = (1 - FADING) * shifted + FADING * GRAY
    return tuple(np.clip(faded, 0, 255).astype(int).tolist())


def _muted(rng: np.random.Generator, low: int = 120, high: int = 220) -> Color:
    return tuple((rng.integers(low, high) + rng.integers(-18, 19, 3)).tolist())
