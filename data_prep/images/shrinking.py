"""Shrinks images: those of a download, those of a build with --max_side, and thumbnails for HTML pages."""

import base64
import io

import numpy as np
from PIL import Image

from data_prep.images.decoding import open_image, to_rgb, turn_upright, upright_pixels
from data_prep.images.jpeg import exif_orientation

JPEG_QUALITY, THUMBNAIL_QUALITY = 90, 80


def shrink(data: bytes, scale: float) -> tuple[bytes, tuple[int, int]]:
    """Returns an image as an upright JPEG of `scale` times its width and height, and its new (width, height).

    Raises:
        InvalidImageError: The image does not decode.
    """
    with open_image(data) as image:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image.draft("RGB", size)  # a JPEG decodes at the next larger eighth of its size, in a fraction of the time
        small = to_rgb(image).resize(size, Image.Resampling.LANCZOS)
        small = Image.fromarray(turn_upright(np.asarray(small), exif_orientation(image.info.get("exif", b""))))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue(), small.size


def thumbnail(data: bytes, side: int) -> str:
    """Returns an encoded image as the data URI of an upright JPEG whose longest side is at most `side` pixels.

    Raises:
        InvalidImageError: The image does not decode.
    """
    with open_image(data) as image:
        image.draft("RGB", (side, side))  # a JPEG decodes at a reduced scale, four times as fast
        small = Image.fromarray(upright_pixels(image))
    small.thumbnail((side, side))
    return data_uri(small)


def data_uri(image: Image.Image) -> str:
    """Returns an image as the data URI of a JPEG."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=THUMBNAIL_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
