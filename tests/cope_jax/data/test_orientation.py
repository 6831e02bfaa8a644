import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from cope_jax.data.orientation import exif_orientation, jpeg_orientation, turn_upright


def tiff(order: str, entries: list[tuple[int, int, int]], *, start: int = 8) -> bytes:
    """An EXIF block with entries (tag, kind, value)."""
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, start) + b"\0" * (start - 8)
    fields = [struct.pack(f"{order}HHIHH", tag, kind, 1, value, 0) for tag, kind, value in entries]
    return b"Exif\0\0" + head + struct.pack(f"{order}H", len(entries)) + b"".join(fields) + b"\0" * 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_pillows(orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(image))
    turned = turn_upright(pixels, orientation)
    np.testing.assert_array_equal(turned, wanted)
    assert turned.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_orientation_is_read_in_both_byte_orders(order, orientation):
    block = tiff(order, [(0x010F, 3, 7), (0x0112, 3, orientation), (0x011A, 3, 2)], start=20)
    assert exif_orientation(block) == exif_orientation(block[6:]) == orientation
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7)).save(buffer, "JPEG", exif=block, icc_profile=b"x" * 300)
    assert Image.open(buffer).getexif()[0x0112] == orientation
    assert jpeg_orientation(buffer.getvalue()) == orientation


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        tiff("<", []),
        tiff("<", [(0x0112, 3, 0)]),
        tiff("<", [(0x0112, 3, 9)]),
        tiff("<", [(0x0112, 4, 6)]),
        tiff("<", [(0x0112, 3, 6)])[:-12],
        b"XX" + tiff("<", [(0x0112, 3, 6)])[8:],
    ],
    ids=str,
)
def test_what_is_broken_is_upright(exif):
    assert exif_orientation(exif) == 1


def test_jpegs_without_exif_or_cut_anywhere_are_upright_or_read():
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7)).save(buffer, "JPEG")
    assert jpeg_orientation(buffer.getvalue()) == 1
    Image.new("RGB", (9, 7)).save(buffer, "JPEG", exif=tiff(">", [(0x0112, 3, 8)]))
    data = buffer.getvalue()
    assert {jpeg_orientation(data[:length]) for length in range(len(data))} <= {1, 8}
    # A camera's comment may hold anything, also what looks like EXIF after the image has begun.
    assert jpeg_orientation(b"\xff\xd8\xff\xda\0\2" + tiff("<", [(0x0112, 3, 6)])) == 1
