"""Reading the headers of JPEGs."""

import io
import struct

import pytest
from PIL import Image

from data_prep.images.jpeg import JpegHeader, exif_orientation, read_jpeg_header


def tiff(order: str, entries: list[tuple[int, int, int]], *, start: int = 8) -> bytes:
    """Returns an EXIF block with entries (tag, kind, value)."""
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, start) + b"\0" * (start - 8)
    fields = [struct.pack(f"{order}HHIHH", tag, kind, 1, value, 0) for tag, kind, value in entries]
    return b"Exif\0\0" + head + struct.pack(f"{order}H", len(entries)) + b"".join(fields) + b"\0" * 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_orientation_is_read_in_both_byte_orders(order, orientation):
    block = tiff(order, [(0x010F, 3, 7), (0x0112, 3, orientation), (0x011A, 3, 2)], start=20)
    assert exif_orientation(block) == exif_orientation(block[6:]) == orientation
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7)).save(buffer, "JPEG", exif=block, icc_profile=b"x" * 300)
    assert Image.open(buffer).getexif()[0x0112] == orientation
    assert read_jpeg_header(buffer.getvalue()).orientation == orientation


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
def test_invalid_exif_is_upright(exif):
    assert exif_orientation(exif) == 1


def test_jpegs_without_exif_or_truncated_anywhere_do_not_fail():
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7)).save(buffer, "JPEG")
    assert read_jpeg_header(buffer.getvalue()) == JpegHeader(7, 9, 3, 1, 1)
    Image.new("RGB", (9, 7)).save(buffer, "JPEG", exif=tiff(">", [(0x0112, 3, 8)]))
    data = buffer.getvalue()
    for length in range(len(data)):
        if length > data.index(b"\xff\xda") + 20:
            assert read_jpeg_header(data[:length]).width == 9
        elif length < data.index(b"\xff\xda"):
            with pytest.raises(ValueError, match="its header is truncated"):
                read_jpeg_header(data[:length])
    # Data that looks like EXIF after the start of the pixels does not count.
    pixels = data.index(b"\xff\xda")
    late = data[:pixels].replace(b"Exif", b"else") + data[pixels:] + tiff("<", [(0x0112, 3, 6)])
    assert read_jpeg_header(late).orientation == 1
