"""Transforms of encoded images to square uint8 frames: random crop, flip and color jitter of whole clips.

JPEGs are decoded at a reduced scale if the crop leaves enough pixels. simplejpeg and OpenCV's resize release the GIL,
so the pipeline's threads scale.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

# For `cope_jax.search`: no other package than `cope_jax.data` imports `data_prep.images`.
from data_prep.images.decoding import JPEG_START as JPEG_START
from data_prep.images.decoding import MAX_PIXELS as MAX_PIXELS
from data_prep.images.decoding import MAX_SIDE as MAX_SIDE
from data_prep.images.decoding import ImageProblem as ImageProblem
from data_prep.images.decoding import InvalidImageError as InvalidImageError
from data_prep.images.decoding import decode_rgb, image_size
from data_prep.images.decoding import open_image as open_image
from data_prep.images.decoding import upright_pixels as upright_pixels

Box = tuple[float, float, float, float]  # (top, left, height, width) as fractions of the image's height and width
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
# How whole images become squares: by stretching them, as their largest central square, like CLIP's (None), or by
# stretching their central half. Random crops enlarge what they show, so a model that was trained from scratch on small
# ones does better if images are enlarged in evaluation, too (arXiv 1906.06423).
RESIZES: dict[str, Box | None] = {"stretch": WHOLE, "crop": None, "zoom": (0.15, 0.15, 0.7, 0.7)}
# Luma weights (ITU-R BT.601), as in Pillow's "L" and the usual color jitter.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_GRAY_AXIS = np.full(3, 1 / math.sqrt(3))
_GRAY_CROSS, _GRAY_OUTER = np.cross(_GRAY_AXIS, np.eye(3)), np.outer(_GRAY_AXIS, _GRAY_AXIS)


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, horizontal flip and color jitter, drawn once for all frames of a clip.

    The jitter draws brightness, contrast and saturation factors from 1 ± `color_jitter` and a hue rotation from ± 1/20
    of it, in turns; colors tell products apart, so hue changes little.
    """

    size: int  # side of the square frames in pixels
    scale: tuple[float, float] = (0.64, 1.0)  # range of the crop's area as a fraction of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of the crop's width / height
    flip: bool = True  # mirrors half of the clips
    color_jitter: float = 0.0  # 0 is off

    def __call__(
        self, images: Sequence[bytes], rng: np.random.Generator | None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns encoded images as u8[N, size, size, 3], written to `out` if given; ValueError if one is invalid."""
        if rng is None:
            raise ValueError("TrainTransform needs random numbers")
        height, width = image_size(images[0])
        box = random_box(height, width, scale=self.scale, ratio=self.ratio, rng=rng)
        # Round to whole pixels here, so that a frame of twice the size is cropped at the same place.
        (top, bottom), (left, right) = _pixel_edges(box, height, width)
        box = top / height, left / width, (bottom - top) / height, (right - left) / width
        mirrored = self.flip and rng.random() < 0.5
        frames = crop_resize_clip(images, box, self.size, out)
        if mirrored:
            rows = frames.reshape(-1, self.size, 3)  # all frames in one call, which releases the GIL once
            cv2.flip(rows, 1, dst=rows)
        if self.color_jitter:
            frames[:] = jitter_color(frames, self.color_jitter, rng)
        return frames


@dataclass(frozen=True)
class EvalTransform:
    """The whole image, or `box` of it, resized to a square of `size` pixels whatever its aspect ratio."""

    size: int
    box: Box | None = WHOLE

    def __call__(
        self, images: Sequence[bytes], rng: np.random.Generator | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Does the same as `TrainTransform.__call__`, without randomness."""
        return crop_resize_clip(images, self.box, self.size, out)


def limit_opencv_threads() -> None:
    """Makes OpenCV work in the calling thread, because the callers of transforms have threads of their own."""
    cv2.setNumThreads(1)


def crop_resize_clip(images: Sequence[bytes], box: Box | None, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """Decodes a part of each image and resizes it with antialiasing: u8[N, size, size, 3], in `out` if given.

    A box of None is the largest central square.
    """
    frames = np.empty((len(images), size, size, 3), np.uint8) if out is None else out
    _, _, height, width = box or WHOLE
    min_height, min_width = math.ceil(size / height), math.ceil(size / width)
    for image, frame in zip(images, frames, strict=True):
        resize(decode_rgb(image, min_height=min_height, min_width=min_width), box, size, out=frame)
    return frames


def crop_resize(data: bytes, box: Box | None, size: int) -> np.ndarray:
    """Decodes a part of an image and resizes it with antialiasing: u8[size, size, 3]."""
    return crop_resize_clip([data], box, size)[0]


def resize(pixels: np.ndarray, box: Box | None, size: int, *, out: np.ndarray | None = None) -> np.ndarray:
    """Resizes a part of u8[H, W, 3] to u8[size, size, 3]."""
    (top, bottom), (left, right) = _pixel_edges(box, *pixels.shape[:2])
    # Bilinear interpolation skips no pixel if the image shrinks by less than 2, as decoded JPEGs do; area averages take
    # six times as long.
    method = cv2.INTER_AREA if max(bottom - top, right - left) >= 2 * size else cv2.INTER_LINEAR
    return cv2.resize(pixels[top:bottom, left:right], (size, size), dst=out, interpolation=method)


@functools.lru_cache(maxsize=64)  # the frames of a clip have the same
def _pixel_edges(box: Box | None, H: int, W: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns (first, last + 1) row and (first, last + 1) column of a box in an image of H × W pixels."""
    h, w = min(1.0, W / H), min(1.0, H / W)  # of the largest square
    top, left, height, width = box or ((1 - h) / 2, (1 - w) / 2, h, w)
    y, x = min(round(top * H), H - 1), min(round(left * W), W - 1)
    return (y, max(round((top + height) * H), y + 1)), (x, max(round((left + width) * W), x + 1))


def random_box(
    height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Draws a crop of an image of height × width pixels.

    Area uniform in `scale`, width/height log-uniform in `ratio`, position uniform: the first of ten draws that fits
    into the image. If none fits (a very long image), the largest central crop with an allowed ratio.
    """
    for _ in range(10):
        area = rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]))) * height / width
        h, w = math.sqrt(area / shape), math.sqrt(area * shape)
        if h <= 1 and w <= 1:
            return (1 - h) * rng.random(), (1 - w) * rng.random(), h, w
    shape = min(max(width / height, ratio[0]), ratio[1]) * height / width
    h, w = min(1.0, 1 / shape), min(1.0, shape)
    return (1 - h) / 2, (1 - w) / 2, h, w


def jitter_color(frames: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Applies one random change of color to all of u8[N, H, W, 3].

    Brightness, contrast (about the clip's mean luma), saturation and hue are each linear in the pixel, so together they
    are one 3×3 matrix and one offset.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3).astype(np.float32)
    angle = rng.uniform(-1, 1) * strength / 20 * 2 * math.pi
    pixels = frames.reshape(-1, 3).astype(np.float32)
    # A product with ones: NumPy's mean over so long and thin an array takes 20 times as long.
    mean = np.ones(len(pixels), np.float32) @ pixels / np.float32(len(pixels)) @ LUMA
    saturate = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * np.tile(LUMA[:, None], (1, 3))
    changed = pixels @ (brightness * contrast * (saturate @ _hue_rotation(angle)))
    # Saturation and hue leave grays unchanged, so the gray offset of the contrast can come last.
    changed += (1 - contrast) * brightness * mean
    np.clip(np.rint(changed, out=changed), 0, 255, out=changed)
    return changed.astype(np.uint8).reshape(frames.shape)


def _hue_rotation(angle: float) -> np.ndarray:
    """Returns f32[3, 3] that rotates (r, g, b) rows about the gray axis, red toward green (Rodrigues' formula)."""
    rotation = math.cos(angle) * np.eye(3) + math.sin(angle) * _GRAY_CROSS + (1 - math.cos(angle)) * _GRAY_OUTER
    return rotation.astype(np.float32)
