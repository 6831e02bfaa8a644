"""Which images pass, and the reason given for those that do not."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_prep.images import decoding as images
from data_prep.images.decoding import Fault, find_fault, read_image


def encode(kind: str, mode: str = "RGB", size: tuple[int, int] = (37, 23)) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header asks for `width` × `height` pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = bytearray(encode("JPEG"))
    start = data.index(b"\xff\xc0") + 5  # marker, length, precision; then height and width
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("BMP", "RGB"),
    ],
)
def test_images_that_decode_pass(kind, mode):
    assert find_fault(encode(kind, mode)) is None


def test_bytes_after_the_end_of_a_jpeg_are_no_fault():
    assert find_fault(encode("JPEG") + b"\0" * 9) is None


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", Fault.NOT_AN_IMAGE),
        (b"<html>404</html>", Fault.NOT_AN_IMAGE),
        (encode("TIFF"), Fault.NOT_AN_IMAGE),  # not among FORMATS
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Fault.NOT_AN_IMAGE),
        (encode("JPEG")[:300], Fault.CORRUPT),
        (encode("JPEG")[:-2], Fault.CORRUPT),
        (encode("JPEG")[:20], Fault.CORRUPT),
        (encode("PNG")[:1000], Fault.CORRUPT),
        (encode("WEBP")[:200], Fault.CORRUPT),
        (jpeg_that_claims(65000, 65000), Fault.TOO_LARGE),
        (png_that_claims(9000, 9000), Fault.TOO_LARGE),  # below the size at which Pillow warns
        (png_that_claims(11000, 11000), Fault.TOO_LARGE),  # Pillow warns
        (png_that_claims(60000, 60000), Fault.TOO_LARGE),  # Pillow raises
        (png_that_claims(90, 90), Fault.CORRUPT),
    ],
    ids=lambda value: None if isinstance(value, Fault) else f"{len(value)}_bytes",
)
def test_others_are_named(data, fault):
    assert find_fault(data) is fault


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_broken_bytes_give_a_reason_and_never_an_exception(kind):
    rng = random.Random(5)
    whole = encode(kind)
    seen = set()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(rng.choice([60, len(data)]))] = rng.randrange(256)
        seen.add(find_fault(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])))
    assert Fault.CORRUPT in seen
    assert seen <= {None, Fault.CORRUPT, Fault.NOT_AN_IMAGE, Fault.TOO_LARGE}


def test_read_image_gives_the_bytes_untouched_or_the_reason(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encode("PNG"))
    (tmp_path / "b.png").write_bytes(b"x")
    assert read_image(tmp_path / "a.png") == (encode("PNG"), None)
    assert read_image(tmp_path / "b.png") == (b"", Fault.NOT_AN_IMAGE)
    assert read_image(tmp_path / "c.png") == (b"", Fault.MISSING)
    monkeypatch.setattr(images, "MAX_BYTES", len(encode("PNG")) - 1)
    assert read_image(tmp_path / "a.png") == (b"", Fault.TOO_LARGE)


def test_a_file_that_cannot_be_read_is_not_a_dropped_image(tmp_path):
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "restart_marker_rows": 1}])
def test_a_jpeg_is_judged_as_if_decoded_in_full(options):
    """The check reads the whole stream but makes few pixels of it; simplejpeg's strict decoding is the reference."""
    rng = random.Random(7)
    pixels = np.random.default_rng(3).integers(0, 256, (40, 52, 3), np.uint8)
    verdicts = []
    for mode in ("RGB", "L"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
        for _ in range(150):
            data = bytearray(buffer.getvalue())
            data[rng.randrange(300, len(data))] = rng.randrange(256)  # behind the header
            data = bytes(data[: rng.choice([len(data), rng.randrange(300, len(data))])])
            try:
                simplejpeg.decode_jpeg(data, "RGB")
                verdicts.append(None)
            except ValueError:
                verdicts.append(Fault.CORRUPT)
            assert find_fault(data) is verdicts[-1]
    assert set(verdicts) == {None, Fault.CORRUPT}
