"""What stands behind, beside and in front of a product: clutter, stages, intro cards, hands, overlays."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.synthetic.products import COLOURS

PALETTE = tuple(COLOURS.values())
CLUTTER_SHAPES = (12, 24)
FADING = 0.6  # how far surroundings are from the products' strong colours to grey
GREY = 140
CLUTTER_SIZE = (0.05, 0.35)  # of the ground's side
SKIN = ((242, 206, 178), (224, 178, 146), (188, 136, 104), (128, 86, 62))


def clutter(side: int, rng: np.random.Generator) -> Image.Image:
    """A room full of things: shapes of any colour, products' colours among them, slightly out of focus."""
    ground = _gradient(side, _colour(rng), _colour(rng))
    pen = ImageDraw.Draw(ground)
    count = rng.integers(*CLUTTER_SHAPES, endpoint=True)
    corners = rng.uniform(-0.1, 1.0, (count, 2)) * side
    extents = rng.uniform(*CLUTTER_SIZE, (count, 2)) * side
    for kind, corner, extent in zip(rng.integers(4, size=count), corners, extents, strict=True):
        (left, top), (right, bottom) = corner, corner + extent
        fill = _colour(rng)
        match kind:
            case 0:
                pen.rectangle((left, top, right, bottom), fill=fill)
            case 1:
                pen.ellipse((left, top, right, bottom), fill=fill)
            case 2:
                pen.polygon(((left, bottom), (right, bottom), (right, top)), fill=fill)
            case 3:
                pen.line((left, top, right, bottom), fill=fill, width=max(2, side // 24))
    return ground.filter(ImageFilter.BoxBlur(side / 120))


def stage(side: int, rng: np.random.Generator) -> Image.Image:
    """A streamer's place: a wall with pictures, a table, and the streamer behind it to one side."""
    wall = _muted(rng)
    ground = _gradient(side, wall, tuple(int(0.8 * channel) for channel in wall))
    pen = ImageDraw.Draw(ground)
    for left, top, width, height in rng.uniform((0, 0, 0.1, 0.05), (0.9, 0.5, 0.4, 0.3), (5, 4)) * side:
        pen.rectangle((left, top, left + width, top + height), fill=_colour(rng), outline=_muted(rng))
    skin, x = SKIN[rng.integers(len(SKIN))], side * float(rng.choice((0.28, 0.72)) + rng.uniform(-0.06, 0.06))
    head, shoulders = 0.09 * side, 0.20 * side
    neck = side * float(rng.uniform(0.28, 0.38))
    pen.ellipse((x - shoulders, neck, x + shoulders, neck + 0.9 * side), fill=_colour(rng))
    pen.ellipse((x - 1.2 * head, neck - 2.3 * head, x + 1.2 * head, neck), fill=_muted(rng, 30, 90))
    pen.ellipse((x - head, neck - 1.9 * head, x + head, neck + 0.3 * head), fill=skin)
    table = side * float(rng.uniform(0.70, 0.80))
    pen.rectangle((0, table, side, side), fill=_muted(rng))
    return ground


def card(side: int, rng: np.random.Generator) -> Image.Image:
    """An intro or price card: one colour with lines of writing too small to read."""
    ground = Image.new("RGB", (side, side), _colour(rng))
    pen = ImageDraw.Draw(ground)
    ink = _colour(rng)
    for top in np.arange(0.2, 0.8, rng.uniform(0.12, 0.25)) * side:
        left, right = rng.uniform((0.08, 0.6), (0.3, 0.92)) * side
        pen.rectangle((left, top, right, top + 0.07 * side), fill=ink)
    return ground


def cover(canvas: Image.Image, centre: tuple[float, float], size: float, rng: np.random.Generator) -> None:
    """Draws a hand, or some object, over a border of the product of `size` pixels at `centre`."""
    pen = ImageDraw.Draw(canvas)
    angle = rng.uniform(0, 2 * np.pi)
    out, along = np.array((np.cos(angle), np.sin(angle))), np.array((-np.sin(angle), np.cos(angle)))
    rim = np.array(centre) + out * size * rng.uniform(0.22, 0.34)
    if rng.random() < 0.4:
        ends = rim + out * size * 0.5, rim + along * size * 0.6, rim - along * size * 0.6
        pen.polygon([tuple(end) for end in ends], fill=_colour(rng))
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
    """The live app's own marks, mode RGBA: a badge on top, comments at the lower left, a price tag."""
    layer = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(layer)
    pen.rectangle((0.04 * side, 0.03 * side, 0.34 * side, 0.10 * side), fill=(30, 30, 30, 140))
    top = side * float(rng.uniform(0.76, 0.84))
    for line in range(int(rng.integers(1, 4))):
        y, right = top + line * 0.07 * side, side * float(rng.uniform(0.25, 0.6))
        pen.rectangle((0.03 * side, y, right, y + 0.05 * side), fill=(250, 250, 250, 150))
    x, y = rng.uniform((0.68, 0.80), (0.78, 0.88)) * side
    pen.rectangle((x, y, x + 0.2 * side, y + 0.09 * side), fill=(*_colour(rng), 230))
    return layer


def paper(rng: np.random.Generator) -> tuple[int, int, int]:
    """The plain light ground of a page: white to a faint tint."""
    return tuple(int(channel) for channel in rng.integers(228, 256) - rng.integers(0, 9, 3))


def _gradient(side: int, top: tuple, bottom: tuple) -> Image.Image:
    return Image.fromarray(np.array([[top], [bottom]], np.uint8)).resize((side, side), Image.Resampling.BILINEAR)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour of the products' own palette, shifted a little: clutter must not be told by its hue."""
    shifted = np.array(PALETTE[rng.integers(len(PALETTE))]) + rng.integers(-30, 31, 3)
    faded = (1 - FADING) * shifted + FADING * GREY
    return tuple(int(channel) for channel in np.clip(faded, 0, 255))


def _muted(rng: np.random.Generator, low: int = 120, high: int = 220) -> tuple[int, int, int]:
    return tuple(int(channel) for channel in rng.integers(low, high) + rng.integers(-18, 19, 3))
