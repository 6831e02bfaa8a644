"""Checks the body of a response: an image that decodes, shrunk if it is too large, a video, or a failure.

Only the start of a video is looked at: the build decodes it, in a process of its own.
"""

import dataclasses
import hashlib
import re
from collections.abc import Set

from data_prep.download.failures import Failure, FetchError
from data_prep.images.decoding import ImageProblem, find_problem, open_image, shrink

_VIDEO_STARTS = {
    "mp4": re.compile(rb"....(?:ftyp|moov|mdat|wide|free)", re.DOTALL),
    "mkv": re.compile(rb"\x1aE\xdf\xa3"),
}
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # of the others: their name


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that decodes, or a video, whose sizes are 0.

    `sha256` is the hash of `data`; the original sizes are those before shrinking.
    """

    data: bytes
    extension: str
    sha256: str
    width: int
    height: int
    original_width: int
    original_height: int


def check_image(body: bytes, video: bool = False, *, image_size: int | None, placeholders: Set[str]) -> Picture:
    """Returns the image in `body`, shrunk so that its shorter side is at most `image_size`.

    A shrunk image becomes an upright JPEG; all others keep their bytes.

    Args:
        body: Body of the response.
        video: Whether it may be a video instead.
        image_size: Longest shorter side in pixels; None keeps every size.
        placeholders: Hex SHA-256 of placeholders, before or after shrinking.

    Raises:
        FetchError: The body is no image, and no video if that is expected, or it is a placeholder.
    """
    sha256 = _hash(body, placeholders)
    problem = find_problem(body)
    if problem == ImageProblem.NOT_AN_IMAGE and video:
        for extension, start in _VIDEO_STARTS.items():
            if start.match(body):
                return Picture(body, extension, sha256, 0, 0, 0, 0)
    if problem:
        raise FetchError(Failure[problem.name], f"{problem}: {len(body)} bytes that start with {body[:16]!r}")
    with open_image(body) as image:
        kind, width, height = str(image.format), image.width, image.height
    extension = _EXTENSIONS.get(kind, kind.lower())
    if image_size is None or min(width, height) <= image_size:
        return Picture(body, extension, sha256, width, height, width, height)
    small, (small_width, small_height) = shrink(body, image_size / min(width, height))
    return Picture(small, "jpg", _hash(small, placeholders), small_width, small_height, width, height)


def _hash(data: bytes, placeholders: Set[str]) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 in placeholders:
        raise FetchError(Failure.PLACEHOLDER, f"the placeholder with sha256 {sha256}")
    return sha256
