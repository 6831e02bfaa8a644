"""Shrinks encoded images: those of a download, and those of a build with --max_side."""

import io

import numpy as np
from PIL import Image

from data_prep.images.decoding import open_image, to_rgb, turn_upright
from data_prep.images.jpeg import exif_orientation

JPEG_QUALITY = 90


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
