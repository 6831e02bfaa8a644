"""Items as cards: small upright pictures, a placeholder for images that do not decode."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from cope_jax.data.records import open_records
from cope_jax.data.thumbnails import data_uri, placeholder, read_card

LEFT_RED = np.zeros((60, 200, 3), np.uint8)
LEFT_RED[:, :100, 0] = 255


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def shown(uri: str) -> np.ndarray:
    """Returns the pixels of a data URI, u8[H, W, 3]."""
    start, data = uri.split(",")
    assert start == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_longest_side_has_the_requested_size(kind):
    pixels = shown(data_uri(encoded(Image.fromarray(LEFT_RED), kind), 50))
    assert pixels.shape == (15, 50, 3)
    np.testing.assert_allclose(pixels[7, 5], [254, 0, 0], atol=3)
    np.testing.assert_allclose(pixels[7, 45], 0, atol=3)


def test_small_images_are_not_enlarged():
    assert shown(data_uri(encoded(Image.fromarray(LEFT_RED)), 500)).shape == (60, 200, 3)


def test_photos_are_turned_upright():
    """Orientation 6: the left of the stored pixels is the top of the photo."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = shown(data_uri(encoded(Image.fromarray(LEFT_RED), exif=exif), 100))
    assert pixels.shape == (100, 30, 3)
    assert pixels[10, 15, 0] > 250 > 5 > pixels[90, 15, 0]


def test_transparent_pixels_lie_on_white():
    glass = Image.new("RGBA", (8, 8), (0, 0, 200, 0))
    glass.putpixel((7, 7), (255, 255, 255, 1))  # if all are transparent, they count as opaque
    np.testing.assert_array_equal(shown(data_uri(encoded(glass, "PNG"))), 255)


JPEG = encoded(Image.fromarray(LEFT_RED))
PNG = encoded(Image.fromarray(LEFT_RED), "PNG")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<script>",
        JPEG[: len(JPEG) // 2],
        PNG[: len(PNG) // 2],
        PNG[:20] + b"\xff" * 20,
        encoded(Image.new("1", (9000, 9000)), "PNG"),
    ],
    ids=["empty", "text", "half a JPEG", "half a PNG", "PNG with a corrupt header", "81 megapixels"],
)
def test_images_that_do_not_decode_become_a_placeholder(data):
    assert data_uri(data, 40) == placeholder(40)
    assert shown(placeholder(40)).shape == (40, 40, 3)


def test_a_card_has_the_content_of_the_records(synthetic_data_dir):
    records = open_records(synthetic_data_dir, "test")
    for domain, limit in (("page", 1), ("video", 3)):
        row = max(range(len(records.items[domain])), key=lambda row: len(records.items[domain][row].frames))
        item = records.items[domain][row]
        card = read_card(records, domain, row, frames=3, side=16)
        assert (card.domain, card.item_id, card.text) == (domain, item.item_id, item.text)
        assert (card.product_ids, card.frame_count) == (item.product_ids, len(item.frames))
        n = len(item.frames)
        expected = [0] if n == 1 else [n // 6, n // 2, 5 * n // 6]
        assert card.frames == tuple(data_uri(item.frames[i], 16) for i in expected)
        assert len(card.frames) == limit
        assert max(shown(card.frames[0]).shape) == 16
