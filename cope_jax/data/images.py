"""Encoded images → square uint8 frames: decoding, random crop, flip and colour jitter for a whole clip.

JPEGs are decoded by simplejpeg at a reduced scale where the crop leaves enough pixels; it and OpenCV's
resize release the GIL, so the pipeline's threads scale. Other formats are decoded by Pillow. What decodes is what
`data_prep.images.decoding` lets pass; photos are turned upright as their EXIF says.
"""

import io
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from cope_jax.data.orientation import exif_orientation, is_sideways, jpeg_orientation, turn_upright

cv2.setNumThreads(1)  # a call's own: the pipeline has threads enough
# simplejpeg.is_jpeg also wants the end marker at the end, which padded files lack.
JPEG_START = b"\xff\xd8\xff"
WHOLE = (0.0, 0.0, 1.0, 1.0)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # what is built into records; some of Pillow's others start programs
# What Pillow raises on broken data, and its own guard against images that are huge once decoded.
TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # the latter where warnings are errors
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, *TOO_LARGE)
# Luma weights (ITU-R BT.601), as in Pillow's "L" and the usual colour jitter.
GREY = np.array([0.299, 0.587, 0.114], np.float32)
_GREY_AXIS = np.full(3, 1 / math.sqrt(3))
GREY_CROSS, GREY_OUTER = np.cross(_GREY_AXIS, np.eye(3)), np.outer(_GREY_AXIS, _GREY_AXIS)


@dataclass(frozen=True)
class TrainView:
    """Random resized crop, horizontal flip and colour jitter, drawn once for all frames of a clip.

    size: side of the square frames, pixels. scale: range of the crop's share of the image's area. ratio:
    range of its width/height. flip: whether half of the clips are mirrored. colour_jitter: j > 0 draws
    brightness, contrast and saturation factors from [1−j, 1+j] and a hue turn from ±j/20 of the circle
    (colour tells products apart, so it turns little); 0 is off.
    """

    size: int
    scale: tuple[float, float] = (0.64, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    colour_jitter: float = 0.0

    def __call__(self, images: Sequence[bytes], rng: np.random.Generator, out: np.ndarray | None = None) -> np.ndarray:
        """Encoded images → u8[N, size, size, 3], which is `out` if given. ValueError where an image does not decode."""
        height, width = image_size(images[0])
        box = random_box(height, width, scale=self.scale, ratio=self.ratio, rng=rng)
        # On whole pixels here, so that frames of twice the size are cut at the same place.
        (top, bottom), (left, right) = edges(box, height, width)
        box = top / height, left / width, (bottom - top) / height, (right - left) / width
        mirrored = self.flip and rng.random() < 0.5
        frames = np.empty((len(images), self.size, self.size, 3), np.uint8) if out is None else out
        for image, frame in zip(images, frames, strict=True):
            crop_resize(image, box, self.size, mirrored=mirrored, out=frame)
        if self.colour_jitter:
            frames[:] = jitter_colour(frames, self.colour_jitter, rng)
        return frames


@dataclass(frozen=True)
class EvalView:
    """The whole image resized to a square of side `size`, whatever its shape."""

    size: int

    def __call__(
        self, images: Sequence[bytes], rng: np.random.Generator | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Encoded images → u8[N, size, size, 3], which is `out` if given; ValueError where one does not decode."""
        frames = np.empty((len(images), self.size, self.size, 3), np.uint8) if out is None else out
        for image, frame in zip(images, frames, strict=True):
            crop_resize(image, WHOLE, self.size, out=frame)
        return frames


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image as it is to be seen, from its header. ValueError where it has none."""
    if data.startswith(JPEG_START):
        height, width = _jpeg_header(data)[:2]
        orientation = jpeg_orientation(data)
    else:
        with open_image(data) as image:
            height, width = image.height, image.width
            orientation = exif_orientation(image.info.get("exif", b""))
    return (width, height) if is_sideways(orientation) else (height, width)


def decode(data: bytes, *, min_height: int = 0, min_width: int = 0) -> np.ndarray:
    """Encoded image → RGB u8[H, W, 3], upright; transparent parts lie on white, of an animation the first frame.

    A JPEG comes at the smallest reduced scale whose height and width are at least the given minimum (at
    full scale where none is, and where no minimum is given).

    Raises:
      ValueError: the image does not decode.
    """
    if _is_rgb_jpeg(data):
        orientation = jpeg_orientation(data)
        if is_sideways(orientation):
            min_height, min_width = min_width, min_height
        # Reducing by less than 2 is slower than not at all (348 → 305 px took 0.92 ms, 348 → 348 0.54 ms).
        # Not strict: images were checked when built, and a warning of stray bytes must not end a long run.
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=min_height, min_width=min_width, min_factor=2, strict=False
        )
    else:
        with open_image(data) as image:
            pixels = on_white(image)
            orientation = exif_orientation(image.info.get("exif", b""))  # a PNG may have it behind the pixels
    return turn_upright(pixels, orientation)


def on_white(image: Image.Image) -> np.ndarray:
    """A Pillow image → RGB u8[H, W, 3]; transparent parts lie on white, 16-bit grey keeps its upper bits."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=-1)
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def crop_resize(
    data: bytes,
    box: tuple[float, float, float, float],
    size: int,
    *,
    mirrored: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The part `box` of an encoded image, resized with antialiasing: u8[size, size, 3], which is `out` if given.

    box is (top, left, height, width) in shares of the image, so that frames of different sizes are cut alike.
    """
    _, _, height, width = box
    pixels = decode(data, min_height=math.ceil(size / height), min_width=math.ceil(size / width))
    return resize(pixels, box, size, mirrored=mirrored, out=out)


def resize(
    pixels: np.ndarray,
    box: tuple[float, float, float, float],
    size: int,
    *,
    mirrored: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The part `box` of u8[H, W, 3], as `crop_resize` has it of an encoded image: u8[size, size, 3]."""
    (top, bottom), (left, right) = edges(box, *pixels.shape[:2])
    part = pixels[top:bottom, left:right]
    # Linear interpolation of neighbours passes over no pixel where less than two fall on one, as JPEGs are decoded;
    # averages of areas take six times as long.
    shrinks = max(part.shape[:2]) >= 2 * size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    if mirrored:
        return cv2.flip(cv2.resize(part, (size, size), interpolation=method), 1, dst=out)
    return cv2.resize(part, (size, size), dst=out, interpolation=method)


def edges(box: tuple[float, float, float, float], H: int, W: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The first and the last row, and columns, of a box in an image of H × W pixels, the last excluded."""
    top, left, height, width = box
    y, x = min(round(top * H), H - 1), min(round(left * W), W - 1)
    return (y, max(round((top + height) * H), y + 1)), (x, max(round((left + width) * W), x + 1))


def random_box(
    height: int,
    width: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    """A random (top, left, height, width), in shares of an image of height × width pixels.

    Area uniform in `scale`, width/height log-uniform in `ratio`, place uniform: the first of ten draws that
    fits into the image. Where none fits (a very long image) the largest central crop of allowed ratio.
    """
    for _ in range(10):
        share = rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]))) * height / width
        h, w = math.sqrt(share / shape), math.sqrt(share * shape)
        if h <= 1 and w <= 1:
            return (1 - h) * rng.random(), (1 - w) * rng.random(), h, w
    shape = min(max(width / height, ratio[0]), ratio[1]) * height / width
    h, w = min(1.0, 1 / shape), min(1.0, shape)
    return (1 - h) / 2, (1 - w) / 2, h, w


def jitter_colour(frames: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """u8[N, H, W, 3] → the same, under one random change of colour.

    Brightness, contrast (about the clip's mean grey), saturation and hue are each linear in the pixel, so
    they are one 3×3 matrix and one offset.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3).astype(np.float32)
    angle = rng.uniform(-1, 1) * strength / 20 * 2 * math.pi
    pixels = frames.reshape(-1, 3).astype(np.float32)
    # A product with ones: numpy's mean over so long and thin an array takes 20 times as long.
    mean = np.ones(len(pixels), np.float32) @ pixels / np.float32(len(pixels)) @ GREY
    saturate = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * np.tile(GREY[:, None], (1, 3))
    changed = pixels @ (brightness * contrast * (saturate @ _turn_hue(angle)))
    # Saturation and hue leave greys as they are, so the grey offset of the contrast can come last.
    changed += (1 - contrast) * brightness * mean
    np.clip(np.rint(changed, out=changed), 0, 255, out=changed)
    return changed.astype(np.uint8).reshape(frames.shape)


def _turn_hue(angle: float) -> np.ndarray:
    """f32[3, 3] that turns (r, g, b) rows about the grey axis, red towards green (Rodrigues' formula)."""
    return (math.cos(angle) * np.eye(3) + math.sin(angle) * GREY_CROSS + (1 - math.cos(angle)) * GREY_OUTER).astype(
        np.float32
    )


def _is_rgb_jpeg(data: bytes) -> bool:
    # Pillow takes CMYK for Adobe's, inverted, whatever its markers say, as browsers do.
    return data.startswith(JPEG_START) and _jpeg_header(data)[2] not in ("CMYK", "YCCK")


def _jpeg_header(data: bytes) -> tuple:
    try:
        return simplejpeg.decode_jpeg_header(data, strict=False)
    except KeyError as error:  # a header that ends before it says how colours are coded
        raise ValueError(f"image of {len(data)} bytes does not decode: its header is cut") from error


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """An encoded image in Pillow, for a block in which it is decoded.

    Raises:
      ValueError: it is none of FORMATS; the block's work on it fails.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{len(data)} bytes that start with {data[:8]!r} are no image: {error}") from error
    except BROKEN as error:
        raise ValueError(f"image of {len(data)} bytes does not decode: {error}") from error
