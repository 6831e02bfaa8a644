"""Near-duplicates of a picture are found among other pictures, however it was copied."""

import cv2
import numpy as np
import pytest

from data_prep.common.process_pool import process_map
from data_prep.inspect.near_duplicates import describe, find_near_duplicates, is_same_photo, mirror, thumbnail
from tests.data_prep.inspect.test_split_overlap import photo

PHOTOS = [photo(seed) for seed in range(12)]
COPIES = {
    "resized": lambda pixels: cv2.resize(pixels, (61, 50), interpolation=cv2.INTER_AREA),
    "cropped": lambda pixels: pixels[9:, 5:-4],
    "mirrored": lambda pixels: pixels[:, ::-1],
    "covered below": lambda pixels: np.concatenate([pixels[:-13], np.zeros_like(pixels[-13:])]),
    "covered above": lambda pixels: np.concatenate([np.full_like(pixels[:13], 255), pixels[13:]]),
    "extended below": lambda pixels: np.concatenate([pixels, np.full_like(pixels[-11:], 255)]),
    "mirrored and cropped": lambda pixels: pixels[4:-5, -5::-1],
}


def found_pairs(pictures, splits, products, tmp_path) -> list[list[int]]:
    thumbnails = np.stack([thumbnail(np.ascontiguousarray(pixels)) for pixels in pictures])
    (tmp_path / "thumbnails").write_bytes(thumbnails.tobytes())
    with process_map(1) as apply:
        found = find_near_duplicates(describe(thumbnails), tmp_path / "thumbnails", splits, np.array(products), apply)
    return found.tolist()


def test_copies_are_found_in_another_split(tmp_path):
    copies = [change(PHOTOS[number]) for number, change in enumerate(COPIES.values())]
    splits = [range(12), range(12, 12 + len(copies))]
    found = found_pairs([*PHOTOS, *copies], splits, [0] * 12 + [0] * len(copies), tmp_path)
    assert found == [[number, 12 + number] for number in range(len(COPIES))]


def test_copies_are_found_in_one_split_if_products_differ(tmp_path):
    pictures = [*PHOTOS, PHOTOS[3][:, ::-1], PHOTOS[4][:-8], PHOTOS[5][4:]]
    products = [*range(12), 3, 99, 98]
    assert found_pairs(pictures, [range(15)], products, tmp_path) == [[4, 13], [5, 14]]


def test_a_descriptor_is_mirrored_like_its_picture():
    rows = np.stack([thumbnail(pixels) for pixels in PHOTOS])
    mirrored = np.stack([thumbnail(np.ascontiguousarray(pixels[:, ::-1])) for pixels in PHOTOS])
    difference = np.abs(mirror(describe(rows)).astype(int) - describe(mirrored))
    assert difference.max() <= 8  # of rounding
    assert np.abs(describe(rows).astype(int) - describe(mirrored)).max() > 60


def rough(pixels: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), 3)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda pixels: rough(pixels) + PHOTOS[1] - rough(PHOTOS[1]), id="other details"),
        pytest.param(lambda pixels: pixels + np.linspace(0, 20, 96)[:, None, None], id="brighter below"),
        pytest.param(lambda pixels: pixels + np.array([-40.0, 20, 0]), id="another color"),
        pytest.param(lambda pixels: 0 * pixels + 200, id="blank"),
    ],
)
def test_other_pictures_are_not_the_same_photo(change):
    one, two = thumbnail(PHOTOS[0]), thumbnail(np.clip(change(PHOTOS[0] * 1.0), 0, 255).astype(np.uint8))
    assert is_same_photo(one, one)
    assert not is_same_photo(one, two)


def test_pictures_without_details_are_not_near_duplicates():
    noise = np.random.default_rng(0).normal(200, 0.6, (96, 96, 3)).astype(np.uint8)
    for pixels in (noise, np.full_like(noise, 200)):
        assert not is_same_photo(thumbnail(pixels), thumbnail(pixels))
