"""Rules for images: which encoded images are valid, how they decode to upright RGB, and how large ones are shrunk.

JPEGs are decoded by simplejpeg, the other `FORMATS` by Pillow. Photos are turned as their EXIF orientation says,
transparent pixels lie on white, and of an animation the first frame is taken. The build checks images by these rules
and stores their bytes unchanged; training decodes them by the same rules.
"""

import contextlib
import enum
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from data_prep.images.jpeg import JPEG_START, JpegHeader, exif_orientation, read_jpeg_header, tidy_jpeg, tiff_entries

# Ledgers of our downloads have this key in their schema's metadata. Increase the version if other images become valid.
RULES_KEY, RULES = b"image_rules", "2"
MAX_BYTES = 64 << 20  # no photo is as large, and files are read into memory whole
MAX_PIXELS = 64_000_000  # 192 MB once decoded; a small file can claim far more
MAX_SIDE = 65_535  # as in JPEGs; Pillow needs long and a gigabyte for an image of millions of rows
# Limits of the decoding time; real JPEGs have up to 10 scans. Within all limits, the slowest image found takes 6 s.
MAX_SCANS, MAX_SCANNED_PIXELS = 100, 20 * MAX_PIXELS
JPEG_QUALITY = 90  # of shrunk images
MAX_PARTS = 100_000  # chunks, blocks, runs or strips: Pillow's Python code reads each, 100,000 in 0.2 s
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")  # some of Pillow's other readers start programs

# HEIC, JPEG XL, JPEG 2000, JPEG XR, Photoshop and BigTIFF. AVIF and HEIC differ only in their lists of brands.
_UNSUPPORTED = re.compile(
    rb"....ftyp(?!.{0,60}avi[fs])(?:.{4})*?(?:hei[cxms]|hev[cmxs]|mif1|msf1|jxl )|\xff\x0a|\0\0\0\x0c(?:JXL |jP  )"
    rb"|\xff\x4f\xff\x51|II\xbc|8BPS|II\x2b\0|MM\0\x2b",
    re.DOTALL,
)
_PNG_START, _PNG_CHUNKS = b"\x89PNG\r\n\x1a\n", {b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"}
_TIFF_STARTS, _TIFF_BYTES = (b"II*\0", b"MM\0*"), {1, 2, 6, 7}  # types of values of one byte
# Webcams leave them after the whole picture; damage of a picture with one scan mostly leaves hundreds.
_PADDING = re.compile("Corrupt JPEG data: [1-8] extraneous bytes before marker 0xd9")
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # a warning may be turned into an error
# Raised by Pillow for corrupt data; some of its readers expect a valid file.
_CORRUPT = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, AssertionError, LookupError, TypeError)
_CORRUPT += (ArithmeticError, struct.error, zlib.error)


class ImageProblem(enum.StrEnum):
    """Why an image is skipped. The values are keys of the build's summary."""

    MISSING = "missing file"
    TOO_LARGE = "too large"
    TOO_SLOW = "takes too long to decode"
    NOT_AN_IMAGE = "not an image"
    UNSUPPORTED = "unsupported format"
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


def find_problem(data: bytes, *, header_only: bool = False) -> ImageProblem | None:
    """Returns None if `decode_rgb` decodes `data`, and the reason otherwise.

    With `header_only`, only the header is checked: format, size and scans. That takes a tenth of the time.
    """
    if len(data) > MAX_BYTES:
        return ImageProblem.TOO_LARGE
    try:
        if data.startswith(JPEG_START):
            header = _check_jpeg(data)
            # Decoding to gray at an eighth of the size still reads the whole compressed stream, where damage shows:
            # the result is that of decoding in full, in a half to a third of the time.
            if not header_only:
                _decode_jpeg(data, header, "GRAY", min_height=1, min_width=1, min_factor=8)
        else:
            # Pillow warns of metadata and of sizes.
            with warnings.catch_warnings(action="ignore"), open_image(data) as image:
                if not header_only:
                    to_rgb(image)
    except InvalidImageError as error:
        return error.problem
    return None


def image_size(data: bytes) -> tuple[int, int]:
    """Returns (height, width) of the upright image, from the header of an encoded image.

    Raises:
        ValueError: The header is invalid.
    """
    if data.startswith(JPEG_START):
        header = _check_jpeg(data)
        height, width, orientation = header.height, header.width, header.orientation
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
    if data.startswith(JPEG_START):
        header = _check_jpeg(data)
        if _is_sideways(header.orientation):
            min_height, min_width = min_width, min_height
        # Reducing by less than 2 is slower than not at all (348 → 305 px took 0.92 ms, 348 → 348 0.54 ms).
        pixels = _decode_jpeg(data, header, "RGB", min_height=min_height, min_width=min_width, min_factor=2)
        return turn_upright(pixels, header.orientation)
    with open_image(data) as image:
        return upright_pixels(image)


def _check_jpeg(data: bytes) -> JpegHeader:
    """Returns the header of a JPEG that may be decoded."""
    try:
        header = read_jpeg_header(data)
    except ValueError as error:
        raise InvalidImageError(ImageProblem.CORRUPT, f"JPEG of {len(data)} bytes does not decode: {error}") from error
    _check_pixels(data, header.height, header.width)
    if header.scans > MAX_SCANS or header.scans * header.height * header.width > MAX_SCANNED_PIXELS:
        raise InvalidImageError(
            ImageProblem.TOO_SLOW, f"JPEG of {header.width}×{header.height} pixels has {header.scans} scans"
        )
    return header


def _check_pixels(data: bytes, height: int, width: int) -> None:
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        limits = f"at most {MAX_PIXELS:,} are decoded, and {MAX_SIDE:,} a side"
        message = f"image of {len(data)} bytes has {width}×{height} pixels; {limits}"
        raise InvalidImageError(ImageProblem.TOO_LARGE, message)


def _decode_jpeg(data: bytes, header: JpegHeader, mode: str, **scale: int) -> np.ndarray:
    """Decodes a JPEG to u8[H, W, C]; C is 4 instead of 3 for the mode "GRAY" of CMYK images, whose values are unused.

    Oddities that other programs ignore are no problem, unlike damage of the compressed pixels.
    """
    if header.components == 4:
        mode = "CMYK"
    problem = ""
    for is_tidy in (False, True):
        try:
            pixels = _decode_strictly(tidy_jpeg(data) if is_tidy else data, mode, header.scans == 1, **scale)
            return _cmyk_to_rgb(pixels) if mode == "CMYK" else pixels
        except ValueError as error:
            problem = str(error)
    if "subsampling" in problem:  # which TurboJPEG does not have; Pillow uses libjpeg itself
        with open_image(data) as image:
            return np.asarray(to_rgb(image))
    raise InvalidImageError(ImageProblem.CORRUPT, f"JPEG of {len(data)} bytes does not decode: {problem}")


def _decode_strictly(data: bytes, mode: str, may_be_padded: bool, **scale: int) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(data, mode, strict=True, **scale)
    except ValueError as error:
        if not may_be_padded or not _PADDING.fullmatch(str(error)):
            raise
    return simplejpeg.decode_jpeg(data, mode, strict=False, **scale)


def _cmyk_to_rgb(pixels_HWC: np.ndarray) -> np.ndarray:
    """Converts CMYK to RGB; like browsers and Pillow, it assumes that all of it is inverted, as Adobe's is."""
    black = pixels_HWC[..., 3:].astype(np.uint16)
    return ((pixels_HWC[..., :3] * black + 127) // 255).astype(np.uint8)


class _LimitedReader(io.BytesIO):
    """Bytes that can be read in `MAX_PARTS` parts."""

    parts = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise InvalidImageError(ImageProblem.TOO_SLOW, f"image has more than {MAX_PARTS:,} parts")
        return super().read(size)


@contextlib.contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """Opens an encoded image with Pillow, for a block that decodes it.

    Raises:
        InvalidImageError: The data is in none of `FORMATS` or too large, or the block failed to decode it.
    """
    try:
        with Image.open(_LimitedReader(_tidy(data)), formats=FORMATS) as image:
            _check_pixels(data, image.height, image.width)
            yield image
    except InvalidImageError:
        raise
    except _TOO_LARGE as error:
        raise InvalidImageError(ImageProblem.TOO_LARGE, f"image of {len(data)} bytes is too large: {error}") from error
    except Image.UnidentifiedImageError as error:
        message = f"{len(data)} bytes that start with {data[:8]!r} are not an image: {error}"
        raise InvalidImageError(ImageProblem.NOT_AN_IMAGE, message) from error
    except _CORRUPT as error:
        raise InvalidImageError(ImageProblem.CORRUPT, f"image of {len(data)} bytes does not decode: {error}") from error


def _tidy(data: bytes) -> bytes:
    """Returns what Pillow needs of an image that may be decoded, without oddities at which it gives up."""
    if data.startswith(JPEG_START):
        _check_jpeg(data)
        return tidy_jpeg(data)
    if data.startswith(_PNG_START):
        return _essential_png(data)
    if _UNSUPPORTED.match(data):
        raise InvalidImageError(
            ImageProblem.UNSUPPORTED,
            f"{len(data)} bytes that start with {data[:12]!r} are in an unsupported format; convert them to one of "
            f"{', '.join(FORMATS)}",
        )
    if data.startswith(_TIFF_STARTS):
        counts = [count for _, kind, count, _ in tiff_entries(data) if kind not in _TIFF_BYTES]
        if max(counts, default=0) > MAX_PARTS:
            raise InvalidImageError(ImageProblem.TOO_SLOW, f"TIFF has more than {MAX_PARTS:,} parts")
    return data


def _essential_png(data: bytes) -> bytes:
    """Returns the chunks of a PNG with its pixels; the size and checksum of texts and profiles do not matter."""
    parts, start = [_PNG_START], len(_PNG_START)
    needs_palette = data[25:26] == b"\3"  # the color type
    for _ in range(MAX_PARTS):
        stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
        kind, checksum = data[start + 4 : start + 8], data[stop - 4 : stop]
        damaged = kind in (b"tRNS", b"eXIf") and zlib.crc32(data[start + 4 : stop - 4]).to_bytes(4, "big") != checksum
        if stop > len(data) or (kind in _PNG_CHUNKS and not damaged):
            parts.append(data[start:stop])
        if stop > len(data):
            if needs_palette:
                raise InvalidImageError(ImageProblem.CORRUPT, f"PNG of {len(data)} bytes does not decode: no palette")
            return b"".join(parts)
        needs_palette &= kind != b"PLTE"
        start = stop
    raise InvalidImageError(ImageProblem.TOO_SLOW, f"PNG has more than {MAX_PARTS:,} chunks")


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


def upright_pixels(image: Image.Image) -> np.ndarray:
    """Returns the pixels of a Pillow image as upright RGB, u8[H, W, 3]."""
    rgb = to_rgb(image)
    return turn_upright(np.asarray(rgb), exif_orientation(rgb.info.get("exif", b"")))


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB: transparent pixels lie on white, 16-bit gray keeps its upper bits.

    If all pixels are transparent, as in screenshots whose alpha was never set, they count as opaque. The image is not
    turned upright and keeps its EXIF data.

    Raises:
        InvalidImageError: The pixels are measurements of 32 bits, such as depths, and no colors.
    """
    if image.mode in ("I", "F"):
        raise InvalidImageError(ImageProblem.UNSUPPORTED, f"pixels of mode {image.mode} have no unique RGB values")
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        rgb = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() == (0, 0):
            rgb = rgba.convert("RGB")
        else:
            rgb = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")
    rgb.info["exif"] = image.info.get("exif", b"")  # after the conversion: a PNG may have it after the pixels
    return rgb


def turn_upright(pixels_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Turns pixels as an EXIF orientation says: [H, W, C] or, for 5 to 8, [W, H, C]."""
    if orientation == 1:
        return np.ascontiguousarray(pixels_HWC)
    if _is_sideways(orientation):
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    flip_rows = orientation in (3, 4, 7, 8)  # of the transposed image
    flip_columns = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels_HWC[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def _is_sideways(orientation: int) -> bool:
    return orientation >= 5
