"""Poses and motion of products in frames, and the effects of light and camera."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from data_prep.synthetic.products import Attributes, Color
from data_prep.synthetic.sprites import sprites


@dataclasses.dataclass(frozen=True)
class Pose:
    """Pose of a product in a frame; lengths are relative to the side of the frame."""

    center: tuple[float, float]
    size: float
    angle: float = 0.0  # degrees
    turn: float = 1.0  # horizontal scale from turning about the vertical axis
    shear: float = 0.0

    def moved(self, x: float, y: float) -> "Pose":
        """Returns the pose with another center."""
        return dataclasses.replace(self, center=(self.center[0] + x, self.center[1] + y))

    def pixels(self, side: int) -> tuple[float, float]:
        """Returns the center in pixels."""
        return self.center[0] * side, self.center[1] * side


@dataclasses.dataclass(frozen=True)
class Motion:
    """Limits of the motion of a product through a clip; lengths are relative to the side of the frame."""

    size: tuple[float, float]
    offset: float  # of the product's center from the frame's
    angle: float  # degrees to either side
    turn: float  # minimum horizontal scale; 1 is frontal
    shear: float
    blanks: float  # share of frames without the product
    covered: float  # share of frames in which something covers an edge of it

    def poses(self, frames: int, x: float, share: float, rng: np.random.Generator) -> list[Pose]:
        """Returns the poses of a product, about `x` right of the center and `share` times as large as usual."""
        columns = (
            0.5 + x + share * drift(-self.offset, self.offset, frames, rng),
            0.5 + drift(-self.offset, self.offset, frames, rng),
            share * drift(*self.size, frames, rng),
            drift(-self.angle, self.angle, frames, rng),
            drift(self.turn, 1.0, frames, rng),
            drift(-self.shear, self.shear, frames, rng),
        )
        return [Pose((x, y), *rest) for x, y, *rest in np.stack(columns, axis=-1).tolist()]

    def blank_frames(self, frames: int, rng: np.random.Generator) -> np.ndarray:
        """Returns which frames do not show the product, bool[frames]; always fewer than half of them."""
        blank = rng.random(frames) < self.blanks
        blank[rng.permutation(np.flatnonzero(blank))[(frames - 1) // 2 :]] = False
        return blank


@dataclasses.dataclass(frozen=True)
class Look:
    """Effects of light and camera on the frames of an item."""

    light: tuple[float, float]  # brightness, which changes through the clip
    tint: float  # maximum change of a color channel
    slope: float  # maximum slope of the light across the frame
    noise: float  # standard deviation, of 255
    quality: tuple[int, int]  # of the JPEG file; the upper limit is exclusive

    def develop(self, canvases: Sequence[Image.Image], rng: np.random.Generator) -> np.ndarray:
        """Returns the square frames with light and noise, uint8[frames, side, side, 3]."""
        frames, side = len(canvases), canvases[0].width
        gains = drift(*self.light, frames, rng)[:, None] * rng.uniform(1 - self.tint, 1 + self.tint, 3)
        direction, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, self.slope)
        ticks = np.linspace(-1, 1, side, dtype=np.float32)
        ramp = 1 + slope * (math.cos(direction) * ticks + math.sin(direction) * ticks[:, None])
        grain = np.float32(self.noise) * _grain(side)
        shots = np.empty((frames, side, side, 3), np.uint8)
        for i, (x, y) in enumerate(rng.integers(0, side, (frames, 2))):
            lit = np.asarray(canvases[i]) * (ramp[..., None] * gains[i]).astype(np.float32)
            lit += grain[y : y + side, x : x + side]
            shots[i] = np.clip(lit, 0, 255, out=lit)
        return shots


def drift(low: float, high: float, frames: int, rng: np.random.Generator, *, jitter: float = 0.15) -> np.ndarray:
    """Returns values that drift with jitter from one random value within the limits to another, float[frames]."""
    start, stop = rng.uniform(low, high, 2)
    steady = np.linspace(start, stop, frames)
    return np.clip(steady + rng.uniform(-jitter, jitter, frames) * (high - low), low, high)


def pan(background: Image.Image, frames: int, side: int, rng: np.random.Generator) -> list[Image.Image]:
    """Returns the crops of a larger background that a moving camera shows."""
    spare = background.width - side
    corners = zip(*(drift(0, spare, frames, rng).round().astype(int).tolist() for _ in "xy"), strict=True)
    return [background.crop((x, y, x + side, y + side)) for x, y in corners]


def place(canvas: Image.Image, attributes: Attributes, pose: Pose, *, ink: Color | None = None) -> None:
    """Draws a product on a square canvas; with `ink`, only its shadow in that color."""
    size = pose.size * canvas.width
    sprite = sprites(attributes, canvas.width)[size < 0.55 * canvas.width]
    box, matrix = _warp(pose, size, sprite.color.width)
    x, y = pose.pixels(canvas.width)
    left, top = round(x - box / 2), round(y - box / 2)
    color, opacity = (
        part.transform((box, box), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR) for part in sprite
    )
    canvas.paste(color if ink is None else ink, (left, top, left + box, top + box), opacity)


def _warp(pose: Pose, size: float, source: int) -> tuple[int, tuple[float, ...]]:
    """Returns the side of the box around a posed product, and the affine map from the box to its sprite."""
    cos, sin = math.cos(math.radians(pose.angle)), math.sin(math.radians(pose.angle))
    forward = np.array(((cos, -sin), (sin, cos))) @ ((pose.turn, pose.shear), (0, 1)) * size / source
    (a, b), (d, e) = np.linalg.inv(forward).tolist()
    box, middle = math.ceil(1.3 * size), source / 2
    return box, (a, b, middle - (a + b) * box / 2, d, e, middle - (d + e) * box / 2)


@functools.cache
def _grain(side: int) -> np.ndarray:
    """Returns standard normal noise, float32[2 · side, 2 · side, 3]; frames use random crops of it."""
    return np.random.default_rng(0).standard_normal((2 * side, 2 * side, 3), np.float32)
