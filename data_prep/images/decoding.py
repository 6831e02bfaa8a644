"""Rules for images: which encoded images are valid, and how they decode to upright RGB.

JPEGs are decoded by simplejpeg, PNG, WebP, GIF and BMP by Pillow. Photos are turned as their EXIF orientation says,
transparent pixels lie on white, and of an animation the first frame is taken. The build checks images by these rules
and stores their bytes unchanged; training decodes them.
"""

import contextlib
import enum
import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

# Increase the version if other images become valid: ledgers of downloads store it, under this key of their schema's
# metadata, to say which rules their images passed.
RULES_KEY, RULES = b"image_rules", "1"
MAX_BYTES = 64 << 20  # no photo is as large, and files are read into memory whole
MAX_PIXELS = 64_000_000  # 192 MB once decoded; a small file can claim far more
# simplejpeg.is_jpeg also requires the end marker at the end, which truncated and padded files lack.
JPEG_START = b"\xff\xd8\xff"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # some of Pillow's other readers start programs

_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # a warning may be turned into an error
_CORRUPT = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # raised by Pillow for corrupt data
_ORIENTATION_TAG, _SHORT = 0x0112, 3  # EXIF


class ImageProblem(enum.StrEnum):
    """Why an image is skipped. The values are keys of the build's summary."""

    MISSING = "missing file"
    TOO_LARGE = "too large"
    NOT_AN_IMAGE = "not an image"
    CORRUPT = "does not decode"
    CHANGED = "other bytes than downloaded"


class InvalidImageError(ValueError):
    """An encoded image that does not decode."""

    def __init__(self, problem: ImageProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


def read_image(path: Path) -> tuple[bytes, ImageProblem | None]:
    """Returns the file's bytes and None, or b"" and the reason why the image is skipped.

    Raises:
        OSError: The file exists but cannot be read, which is a problem of the machine and not of the data.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return b"", ImageProblem.MISSING
    if problem := find_problem(data):
        return b"", problem
    return data, None


def find_problem(data: bytes) -> ImageProblem | None:
    """Returns None if `data` decodes to an RGB image, and the reason otherwise."""
    if len(data) > MAX_BYTES:
        return ImageProblem.TOO_LARGE
    if data.startswith(JPEG_START):
        return _find_jpeg_problem(data)
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            return _find_other_problem(data)
    except InvalidImageError as error:
        return error.problem


def _find_jpeg_problem(data: bytes) -> ImageProblem | None:
    try:
        height, width, colorspace = _read_jpeg_header(data, strict=True)
        if height * width > MAX_PIXELS:
            return ImageProblem.TOO_LARGE
        # Decoding to gray at an eighth of the size still reads the whole compressed stream, where damage shows: the
        # result is that of decoding in full, in a half to a third of the time. Truncated files are errors as well.
        target = "CMYK" if colorspace in ("CMYK", "YCCK") else "GRAY"
        simplejpeg.decode_jpeg(data, target, min_height=1, min_width=1, min_factor=8)
    except ValueError:
        return ImageProblem.CORRUPT
    return None


def _find_other_problem(data: bytes) -> ImageProblem | None:
    with open_image(data) as image:
        if image.width * image.height > MAX_PIXELS:
            return ImageProblem.TOO_LARGE
        image.load()
        if not image.mode.startswith("I"):  # `to_rgb` converts these without Pillow
            image.convert("RGBA" if image.has_transparency_data else "RGB")
    return None


@contextlib.contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """Opens an encoded image with Pillow, for a block that decodes it.

    Raises:
        InvalidImageError: The data is in none of `FORMATS`, or the block failed to decode it.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except _TOO_LARGE as error:
        raise InvalidImageError(ImageProblem.TOO_LARGE, f"image of {len(data)} bytes is too large: {error}") from error
    except Image.UnidentifiedImageError as error:
        message = f"{len(data)} bytes that start with {data[:8]!r} are not an image: {error}"
        raise InvalidImageError(ImageProblem.NOT_AN_IMAGE, message) from error
    except _CORRUPT as error:
        raise InvalidImageError(ImageProblem.CORRUPT, f"image of {len(data)} bytes does not decode: {error}") from error


def image_size(data: bytes) -> tuple[int, int]:
    """Returns (height, width) of the upright image, from the header of an encoded image.

    Raises:
        ValueError: The header is invalid.
    """
    if data.startswith(JPEG_START):
        height, width, _ = _read_jpeg_header(data)
        orientation = jpeg_orientation(data)
    else:
        with open_image(data) as image:
            height, width = image.height, image.width
            orientation = exif_orientation(image.info.get("exif", b""))
    return (width, height) if _is_sideways(orientation) else (height, width)


def decode_rgb(data: bytes, *, min_height: int = 0, min_width: int = 0) -> np.ndarray:
    """Decodes an image to upright RGB, u8[H, W, 3].

    If minimums are given, a JPEG is decoded at the smallest reduced scale that is at least as high and wide.

    Raises:
        ValueError: The image does not decode.
    """
    # Pillow decodes CMYK; like browsers, it assumes that all of it is inverted, as Adobe's is.
    if data.startswith(JPEG_START) and _read_jpeg_header(data)[2] not in ("CMYK", "YCCK"):
        orientation = jpeg_orientation(data)
        if _is_sideways(orientation):
            min_height, min_width = min_width, min_height
        # Reducing by less than 2 is slower than not at all (348 → 305 px took 0.92 ms, 348 → 348 0.54 ms).
        # Not strict: images were checked when built, and a warning about stray bytes must not end a long run.
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=min_height, min_width=min_width, min_factor=2, strict=False
        )
        return turn_upright(pixels, orientation)
    with open_image(data) as image:
        return upright_pixels(image)


def upright_pixels(image: Image.Image) -> np.ndarray:
    """Returns the pixels of a Pillow image as upright RGB, u8[H, W, 3]."""
    rgb = to_rgb(image)
    return turn_upright(np.asarray(rgb), exif_orientation(rgb.info.get("exif", b"")))


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB: transparent pixels lie on white, 16-bit gray keeps its upper bits.

    The image is not turned upright and keeps its EXIF data.
    """
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        rgb = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        rgb = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    else:
        return image.convert("RGB")
    rgb.info["exif"] = image.info.get("exif", b"")  # after the conversion: a PNG may have it after the pixels
    return rgb


def turn_upright(pixels_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Turns pixels as an EXIF orientation says: [H, W, C] or, for 5 to 8, [W, H, C]."""
    if _is_sideways(orientation):
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    flip_rows = orientation in (3, 4, 7, 8)  # of the transposed image
    flip_columns = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels_HWC[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def jpeg_orientation(data: bytes) -> int:
    """Returns the EXIF orientation of a JPEG, 1 to 8; 1 (upright) if it is missing or invalid."""
    start = 2
    while start + 4 <= len(data) and data[start] == 0xFF:
        marker, length = data[start + 1], int.from_bytes(data[start + 2 : start + 4], "big")
        if marker == 0xDA:  # start of the compressed pixels
            break
        if marker == 0xE1 and data.startswith(b"Exif\0\0", start + 4):
            return exif_orientation(data[start + 4 : start + 2 + length])
        start += 2 + length
    return 1


def exif_orientation(exif: bytes) -> int:
    """Returns the orientation in an EXIF block, with or without its prefix `Exif`; 1 if it is missing or invalid."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:  # the block is truncated
        pass
    return 1


def _is_sideways(orientation: int) -> bool:
    return orientation >= 5


def _read_jpeg_header(data: bytes, *, strict: bool = False) -> tuple[int, int, str]:
    """Returns height, width and color space."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=strict)
        return int(height), int(width), colorspace
    except KeyError as error:  # the header ends before the color space
        raise ValueError(f"image of {len(data)} bytes does not decode: its header is truncated") from error
