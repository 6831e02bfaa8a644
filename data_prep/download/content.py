"""Checks the body of a response: an image that decodes, shrunk if it is too large, or a failure."""

import dataclasses
import hashlib
import io
from collections.abc import Set

import numpy as np
from PIL import Image

from data_prep.download.failures import Failure, FetchError
from data_prep.images.decoding import ImageProblem, find_problem, open_image, to_rgb, turn_upright
from data_prep.images.jpeg import exif_orientation

JPEG_QUALITY = 90  # of shrunk images
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # of the others: their name
_FAILURES = {
    ImageProblem.TOO_LARGE: Failure.TOO_LARGE,
    ImageProblem.TOO_SLOW: Failure.TOO_SLOW,
    ImageProblem.NOT_AN_IMAGE: Failure.NOT_AN_IMAGE,
    ImageProblem.UNSUPPORTED: Failure.UNSUPPORTED,
    ImageProblem.CORRUPT: Failure.CORRUPT,
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that decodes. `sha256` is the hash of `data`; the original sizes are those before shrinking."""

    data: bytes
    extension: str
    sha256: str
    width: int
    height: int
    original_width: int
    original_height: int


def check_image(body: bytes, *, image_size: int | None, placeholders: Set[str]) -> Picture:
    """Returns the image in `body`, shrunk so that its shorter side is at most `image_size`.

    A shrunk image becomes an upright JPEG; all others keep their bytes.

    Args:
        body: Body of the response.
        image_size: Longest shorter side in pixels; None keeps every size.
        placeholders: Hex SHA-256 of placeholders, before or after shrinking.

    Raises:
        FetchError: The body is not an image, or a placeholder.
    """
    sha256 = _hash(body, placeholders)
    if problem := find_problem(body):
        raise FetchError(_FAILURES[problem], f"{problem}: {len(body)} bytes that start with {body[:16]!r}")
    extension, width, height = _read_header(body)
    if image_size is None or min(width, height) <= image_size:
        return Picture(body, extension, sha256, width, height, width, height)
    small, (small_width, small_height) = _shrink(body, image_size)
    return Picture(small, "jpg", _hash(small, placeholders), small_width, small_height, width, height)


def _hash(data: bytes, placeholders: Set[str]) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 in placeholders:
        raise FetchError(Failure.PLACEHOLDER, f"the placeholder with sha256 {sha256}")
    return sha256


def _read_header(body: bytes) -> tuple[str, int, int]:
    with open_image(body) as image:
        kind = str(image.format)
        return _EXTENSIONS.get(kind, kind.lower()), image.width, image.height


def _shrink(body: bytes, image_size: int) -> tuple[bytes, tuple[int, int]]:
    with open_image(body) as image:
        scale = image_size / min(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image.draft("RGB", size)  # a JPEG decodes at the next larger eighth of its size, in a fraction of the time
        small = to_rgb(image).resize(size, Image.Resampling.LANCZOS)
        small = Image.fromarray(turn_upright(np.asarray(small), exif_orientation(image.info.get("exif", b""))))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue(), small.size
