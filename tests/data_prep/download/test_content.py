"""Which bodies are images, and how images are shrunk."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from data_prep.download.content import check_image
from data_prep.download.failures import Failure, FetchError


def encode(kind: str, size=(40, 20), mode="RGB", **kwargs) -> bytes:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[: size[1] // 2, : size[0] // 2] = 250  # the upper left quarter is white
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) << 8) if mode == "I;16" else Image.fromarray(pixels)
    image.convert(mode).save(buffer, kind, **kwargs)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp")]
)
@pytest.mark.parametrize("image_size", [None, 20])
def test_bytes_stay_and_get_the_extension_of_their_format(kind, extension, image_size):
    data = encode(kind)
    picture = check_image(data, image_size=image_size, placeholders=frozenset())
    assert (picture.data, picture.extension, picture.width, picture.height) == (data, extension, 40, 20)
    assert picture.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (b"", Failure.NOT_AN_IMAGE),
        (b"<html>", Failure.NOT_AN_IMAGE),
        (encode("JPEG")[:-100], Failure.CORRUPT),
        (encode("BMP", size=(9000, 8000), mode="1"), Failure.TOO_LARGE),
    ],
)
def test_other_bodies_have_a_failure(body, failure):
    with pytest.raises(FetchError, match=f"{len(body)} bytes that start with") as caught:
        check_image(body, image_size=None, placeholders=frozenset())
    assert caught.value.failure == failure


def test_a_placeholder_is_a_failure_before_and_after_shrinking():
    data = encode("PNG")
    small = check_image(data, image_size=10, placeholders=frozenset()).sha256
    for placeholder in (hashlib.sha256(data).hexdigest(), small):
        with pytest.raises(FetchError, match=f"the placeholder with sha256 {placeholder}") as caught:
            check_image(data, image_size=10, placeholders={placeholder})
        assert caught.value.failure == Failure.PLACEHOLDER


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "I;16"), ("GIF", "P")]
)
def test_shrinking_keeps_the_picture(kind, mode):
    picture = check_image(encode(kind, mode=mode), image_size=10, placeholders=frozenset())
    assert (picture.extension, picture.width, picture.height) == ("jpg", 20, 10)
    assert (picture.original_width, picture.original_height) == (40, 20)
    with Image.open(io.BytesIO(picture.data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (20, 10))
        white, *black = (sum(image.getpixel(at)) / 3 for at in ((3, 2), (16, 2), (3, 8), (16, 8)))
    assert white > 230
    assert max(black) < 25


def test_shrinking_keeps_the_upper_bits_of_16_bit_gray():
    values = np.repeat(np.linspace(0, 65535, 40).astype(np.uint16)[None], 20, axis=0)  # most of them above 255
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    picture = check_image(buffer.getvalue(), image_size=10, placeholders=frozenset())
    with Image.open(io.BytesIO(picture.data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (20, 10))
        pixels = np.asarray(image.convert("L")).astype(float)
    np.testing.assert_allclose(pixels, (values / 256).reshape(10, 2, 20, 2).mean(axis=(1, 3)), atol=5)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGBA"), ("PNG", "I;16")])
def test_shrinking_turns_a_photo_upright(kind, mode):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise: the white quarter moves to the upper right
    picture = check_image(encode(kind, mode=mode, exif=exif), image_size=10, placeholders=frozenset())
    assert (picture.width, picture.height) == (10, 20)
    with Image.open(io.BytesIO(picture.data)) as image:
        assert not image.getexif()
        assert sum(image.getpixel((8, 3))) / 3 > 230
        assert sum(image.getpixel((2, 3))) / 3 < 25


@pytest.mark.parametrize(
    ("start", "extension"), [(b"\0\0\0\x20ftypisom\0\0\2\0", "mp4"), (b"\x1aE\xdf\xa3\x01\0", "mkv")]
)
def test_videos_are_kept_as_they_are(start, extension):
    picture = check_image(start + bytes(100), True, image_size=20, placeholders=frozenset())
    assert (picture.data, picture.extension, picture.width) == (start + bytes(100), extension, 0)
    with pytest.raises(FetchError, match="not an image"):
        check_image(start + bytes(100), image_size=20, placeholders=frozenset())
