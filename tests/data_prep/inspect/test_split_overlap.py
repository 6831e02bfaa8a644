"""Tests that products and images planted in two splits are found."""

import cv2
import duckdb
import numpy as np
import pytest
import simplejpeg

from data_prep.inspect.split_overlap import check_split, format_overlap


def photo(seed: int, side: int = 96) -> np.ndarray:
    """A picture with structures of all sizes, uint8[side, side, 3]."""
    rng = np.random.default_rng(seed)
    layers = (rng.normal(size=(cells, cells, 3)) * 60 * cells**-0.4 for cells in (3, 6, 12, 24, 48))
    pixels = 128 + sum(cv2.resize(layer, (side, side), interpolation=cv2.INTER_CUBIC) for layer in layers)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality)


def test_check_split_finds_planted_products_and_images(own_small, built, tmp_path):
    none = check_split(built, processes=1)
    assert (none.products, none.images, none.leaks) == (0, 0, [])
    assert none.false_negatives == ["train page 3 and train video 0"]  # the same noise
    train, test = own_small.splits["train"], own_small.splits["test"]
    train["page"][1].frames = [(0, own_small.encode(9001))]
    test["page"].append(own_small.Wanted(6, [20, 501], "", train["page"][1].frames))  # a product and its image
    train["video"][13].frames[2] = (14, own_small.encode(9002))
    test["live"][0].frames = [(4, own_small.encode(9002)), (5, own_small.encode(9003))]  # in another domain
    train["video"][3].frames[1] = train["video"][3].frames[0]  # twice in one split only
    train["page"][2].frames = [(0, jpeg(photo(1)))]
    train["video"][15].frames[0] = (0, jpeg(photo(1)[:, ::-1]))  # of another product
    test["page"][0].frames = [(0, jpeg(photo(1), quality=50))]
    own_small.build(own_small.write(tmp_path), tmp_path / "data")
    found = check_split(tmp_path / "data", processes=1)
    assert (found.products, found.product_ids, found.images) == (1, [20], 2)
    assert sorted(found.examples) == ["test live 5, train video 13", "test page 6, train page 3"]
    assert set(found.leaks) == {
        "test page 5 and train page 1",
        "test page 5 and train video 15",
        "test live 5 and train video 13",
        "test page 6 and train page 3",
    }
    assert found.false_negatives == ["train page 1 and train video 15"]
    assert not list((tmp_path / "data").glob("check_split-*"))
    assert "products in more than one split: 1\n  product 20\nimages whose" in format_overlap(found)
    assert "images in different splits: 4\n  test" in format_overlap(found)


def test_a_frame_that_does_not_decode_is_no_near_duplicate(built, monkeypatch):
    def fail(*_, **__):
        raise ValueError("damaged")

    monkeypatch.setattr("data_prep.inspect.split_overlap.decode_rgb", fail)
    found = check_split(built, processes=1)
    assert (found.leaks, found.false_negatives) == ([], [])


def test_too_little_memory_or_disk_is_an_error(built, monkeypatch):
    def fail(*_):
        raise duckdb.IOException("No space left on device")

    monkeypatch.setattr("data_prep.inspect.split_overlap.find_overlap", fail)
    with pytest.raises(ValueError, match=rf"2GB of memory or the disk of {built} do not suffice: .*No space left"):
        check_split(built, processes=1)


def test_missing_data_sets_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no array records in .*rope/page, .*; build them with"):
        check_split(tmp_path)
