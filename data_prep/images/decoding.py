"""Does an encoded image decode? Judged as training will read it: JPEG by simplejpeg, the rest by Pillow.

What passes stays in the records byte for byte; training turns it into upright RGB (`cope_jax.data.images`). Of an
animation that is the first frame; only that one is looked at.
"""

import enum
import io
import struct
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

# Raise where images are judged otherwise: ledgers of downloads name the rules that their images passed, in the metadata
# of their schema under this key.
RULES_KEY, RULES = b"image_rules", "1"
MAX_BYTES = 64 << 20  # no photo is as large; a file that is would be read into memory whole
MAX_PIXELS = 64_000_000  # 192 MB once decoded: a small file can ask for far more
# simplejpeg.is_jpeg also wants the end marker at the end, which truncated and padded files lack.
JPEG_START = b"\xff\xd8\xff"
FORMATS = ("PNG", "WEBP", "GIF", "BMP")  # beside JPEG; some of Pillow's other readers start programs


class Fault(enum.StrEnum):
    """Why an image is left out. The values are the keys of the build's summary."""

    MISSING = "missing file"
    TOO_LARGE = "too large"
    NOT_AN_IMAGE = "not an image"
    CORRUPT = "does not decode"
    CHANGED = "other bytes than downloaded"


def read_image(path: Path) -> tuple[bytes, Fault | None]:
    """Returns the file's bytes and None, or b"" and the reason why the image cannot be used.

    Raises:
      OSError: the file is there but cannot be read: a fault of the machine, to be mended, not of the data.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return b"", Fault.MISSING
    if fault := find_fault(data):
        return b"", fault
    return data, None


def find_fault(data: bytes) -> Fault | None:
    """Returns None when `data` decodes to an RGB image, the reason otherwise."""
    if len(data) > MAX_BYTES:
        return Fault.TOO_LARGE
    return _jpeg_fault(data) if data.startswith(JPEG_START) else _other_fault(data)


def _jpeg_fault(data: bytes) -> Fault | None:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS:
            return Fault.TOO_LARGE
        # At an eighth of the size in grey the whole compressed stream is still read, and damage shows there:
        # the verdict is that of decoding in full, in a half to a third of the time.
        target = "CMYK" if colours in ("CMYK", "YCCK") else "GRAY"
        simplejpeg.decode_jpeg(data, target, min_height=1, min_width=1, min_factor=8)
    except ValueError:  # strict: a truncated file is one too, though half of it could be shown
        return Fault.CORRUPT
    return None


def _other_fault(data: bytes) -> Fault | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    return Fault.TOO_LARGE
                image.load()
                if not image.mode.startswith("I"):  # 16-bit grey, which training turns to RGB itself
                    image.convert("RGBA" if image.has_transparency_data else "RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Fault.TOO_LARGE
    except Image.UnidentifiedImageError:
        return Fault.NOT_AN_IMAGE
    except (OSError, SyntaxError, ValueError, EOFError, struct.error):  # what Pillow raises on broken data
        return Fault.CORRUPT
    return None


def as_rgb(image: Image.Image) -> Image.Image:
    """Returns an image in RGB as training has it: transparent parts on white, of 16-bit grey the upper bits.

    Its EXIF stays with it: it is still to be turned upright.
    """
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        rgb = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    elif image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        rgb = Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    else:
        return image.convert("RGB")
    rgb.info["exif"] = image.info.get("exif", b"")
    return rgb
