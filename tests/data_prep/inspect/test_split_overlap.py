"""Tests that products and images planted in two splits are found."""

import duckdb
import pytest

from data_prep.inspect.split_overlap import check_split, format_overlap


def test_check_split_finds_planted_products_and_images(own_small, built, tmp_path):
    none = check_split(built, processes=1)
    assert (none.products, none.images) == (0, 0)
    train, test = own_small.splits["train"], own_small.splits["test"]
    train["page"][1].frames = [(0, own_small.encode(9001))]
    test["page"].append(own_small.Wanted(6, [20, 501], "", train["page"][1].frames))  # a product and its image
    train["video"][13].frames[2] = (14, own_small.encode(9002))
    test["live"][0].frames = [(4, own_small.encode(9002)), (5, own_small.encode(9003))]  # in another domain
    train["video"][3].frames[1] = train["video"][3].frames[0]  # twice in one split only
    own_small.build(own_small.write(tmp_path), tmp_path / "data")
    found = check_split(tmp_path / "data", processes=1)
    assert (found.products, found.product_ids, found.images) == (1, [20], 2)
    assert sorted(found.examples) == ["test live 5, train video 13", "test page 6, train page 3"]
    assert not list((tmp_path / "data").glob("check_split-*"))
    assert "products in more than one split: 1\n  product 20\nimages whose" in format_overlap(found)


def test_too_little_memory_or_disk_is_an_error(built, monkeypatch):
    def fail(*_):
        raise duckdb.IOException("No space left on device")

    monkeypatch.setattr("data_prep.inspect.split_overlap.find_overlap", fail)
    with pytest.raises(ValueError, match=rf"2GB of memory or the disk of {built} do not suffice: .*No space left"):
        check_split(built, processes=1)


def test_missing_data_sets_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no finished data set in .*rope/page/1.0.0, .*: build it with"):
        check_split(tmp_path)
