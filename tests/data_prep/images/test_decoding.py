"""Which images are valid, and how they decode."""

import io
import random
import re
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from data_prep.images import decoding
from data_prep.images.decoding import (
    ImageProblem,
    InvalidImageError,
    decode_rgb,
    find_problem,
    image_size,
    read_image,
    turn_upright,
)


def encode(kind: str, mode: str = "RGB", size: tuple[int, int] = (37, 23)) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims `width` × `height` pixels."""
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
        ("AVIF", "RGB"),
        ("AVIF", "RGBA"),
        ("TIFF", "RGB"),
        ("TIFF", "CMYK"),
        ("TIFF", "1"),
    ],
)
def test_images_that_decode_are_valid(kind, mode):
    assert find_problem(encode(kind, mode)) is None


def test_bytes_after_the_end_of_a_jpeg_are_ignored():
    assert find_problem(encode("JPEG") + b"\0" * 9) is None


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", ImageProblem.NOT_AN_IMAGE),
        (b"<html>404</html>", ImageProblem.NOT_AN_IMAGE),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), ImageProblem.UNSUPPORTED),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), ImageProblem.UNSUPPORTED),
        (b"\xff\x0a" + bytes(99), ImageProblem.UNSUPPORTED),  # JPEG XL
        (encode("JPEG2000"), ImageProblem.UNSUPPORTED),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(99), ImageProblem.NOT_AN_IMAGE),  # a video
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ImageProblem.NOT_AN_IMAGE),
        (encode("JPEG")[:300], ImageProblem.CORRUPT),
        (encode("JPEG")[:-9], ImageProblem.CORRUPT),
        (encode("JPEG")[:20], ImageProblem.CORRUPT),
        (encode("PNG")[:1000], ImageProblem.CORRUPT),
        (encode("WEBP")[:200], ImageProblem.CORRUPT),
        (jpeg_that_claims(65000, 65000), ImageProblem.TOO_LARGE),
        (png_that_claims(9000, 9000), ImageProblem.TOO_LARGE),  # below the size at which Pillow warns
        (png_that_claims(11000, 11000), ImageProblem.TOO_LARGE),  # Pillow warns
        (png_that_claims(60000, 60000), ImageProblem.TOO_LARGE),  # Pillow raises
        (png_that_claims(90, 90), ImageProblem.CORRUPT),
    ],
    ids=lambda value: None if isinstance(value, ImageProblem) else f"{len(value)}_bytes",
)
def test_invalid_images_have_a_reason(data, problem):
    assert find_problem(data) is problem
    with pytest.raises(InvalidImageError) as caught:  # in training as well
        decode_rgb(data)
    assert caught.value.problem is problem


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF"])
def test_corrupt_bytes_give_a_reason_and_never_an_exception(kind):
    rng = random.Random(5)
    whole = encode(kind)
    seen = set()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(rng.choice([60, len(data)]))] = rng.randrange(256)
        seen.add(find_problem(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])))
    assert ImageProblem.CORRUPT in seen
    assert seen <= {None, *ImageProblem} - {ImageProblem.MISSING, ImageProblem.CHANGED}


def test_read_image_returns_the_bytes_unchanged_or_the_reason(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encode("PNG"))
    (tmp_path / "b.png").write_bytes(b"x")
    assert read_image(tmp_path / "a.png") == (encode("PNG"), None)
    assert read_image(tmp_path / "b.png") == (b"", ImageProblem.NOT_AN_IMAGE)
    assert read_image(tmp_path / "c.png") == (b"", ImageProblem.MISSING)
    monkeypatch.setattr(decoding, "MAX_BYTES", len(encode("PNG")) - 1)
    assert read_image(tmp_path / "a.png") == (b"", ImageProblem.TOO_LARGE)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "restart_marker_rows": 1}])
def test_a_jpeg_is_valid_if_it_decodes_in_full(options):
    """The check decodes at a reduced scale; strict decoding in full is the reference."""
    rng = random.Random(7)
    pixels = np.random.default_rng(3).integers(0, 256, (40, 52, 3), np.uint8)
    verdicts = []
    for mode in ("RGB", "L"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
        for _ in range(150):
            data = bytearray(buffer.getvalue())
            data[rng.randrange(300, len(data))] = rng.randrange(256)  # after the header
            data = bytes(data[: rng.choice([len(data), rng.randrange(300, len(data))])])
            try:
                simplejpeg.decode_jpeg(data, "RGB")
                verdicts.append(None)
            except ValueError as error:
                # Webcams pad the only scan of a picture.
                padded = re.search("data: [1-8] extraneous bytes before marker 0xd9", str(error))
                verdicts.append(None if padded and not options.get("progressive") else ImageProblem.CORRUPT)
            assert find_problem(data) is verdicts[-1]
    assert set(verdicts) == {None, ImageProblem.CORRUPT}


def picture(height: int, width: int) -> Image.Image:
    """A smooth colorful picture without symmetry."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None]
    red, blue = 127 + 120 * np.sin(7 * x + 3 * y), 127 + 120 * np.cos(5 * y - 4 * x * x)
    return Image.fromarray(np.stack([red, 255 * x * (1 - y), blue], axis=-1).astype(np.uint8))


def encode_image(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}), **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_decode_rgb_matches_pillow(kind):
    data = encode_image(picture(37, 53), kind)
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    pixels = decode_rgb(data)
    assert image_size(data) == (37, 53)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels, reference, atol=1 if kind == "JPEG" else 0)


def test_jpeg_is_reduced_only_as_far_as_asked():
    data = encode_image(picture(96, 128))
    assert decode_rgb(data, min_height=40, min_width=40).shape == (48, 64, 3)
    assert decode_rgb(data, min_height=49, min_width=40).shape == (96, 128, 3)
    assert decode_rgb(data, min_height=500, min_width=500).shape == (96, 128, 3)
    assert decode_rgb(data).shape == (96, 128, 3)


def test_color_modes_become_rgb():
    gray = encode_image(picture(20, 20).convert("L"))
    assert (np.ptp(decode_rgb(gray), axis=-1) == 0).all()
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(decode_rgb(encode_image(cmyk))[8, 8], [255, 0, 0], atol=4)
    glass = Image.new("RGBA", (8, 8), (0, 0, 200, 0))
    glass.putpixel((0, 0), (0, 0, 0, 1))
    np.testing.assert_array_equal(decode_rgb(encode_image(glass, "PNG"))[1:], 255)
    palette = Image.new("P", (8, 8), 3)
    palette.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 9, 80, 160])
    np.testing.assert_array_equal(decode_rgb(encode_image(palette, "PNG"))[0, 0], [9, 80, 160])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turn_upright_matches_pillow(orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(image))
    turned = turn_upright(pixels, orientation)
    np.testing.assert_array_equal(turned, wanted)
    assert turned.flags.c_contiguous
