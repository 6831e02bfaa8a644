"""Tests random access to array records."""

import re
import resource
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cope_jax.data.records import OTHER_FILES, fingerprint, open_records, sample_texts
from data_prep.common.domains import DOMAINS


@pytest.fixture(scope="module")
def records(data_dir):
    return open_records(data_dir, "train")


@pytest.mark.parametrize("domain", DOMAINS)
def test_items_equal_those_written(records, content, domain):
    items = records.items[domain]
    assert len(items) == len(content.items[domain])
    for row, (text, owners, count) in enumerate(content.items[domain]):
        item = items[row]
        assert item.item_id == 100 + 7 * row % 23
        assert (item.text, item.product_ids, len(item.frames)) == (text, owners, count)


def test_products_list_their_rows(records, content):
    assert len(records.products) == 13
    for index, (product_id, rows) in enumerate(content.products.items()):
        product = records.products[index]
        assert product.product_id == product_id
        assert {domain: found.tolist() for domain, found in product.rows.items()} == rows
    assert records.products[0].rows["page"].shape == (0,)


def test_several_splits_are_concatenated(two_splits_dir, content):
    both = open_records(two_splits_dir, "test+train")
    for domain, items in content.items.items():
        found = [both.items[domain][row].text for row in range(len(both.items[domain]))]
        assert found == [text for text, _, _ in items] * 2
        places = [both.items[domain].place(row).rpartition("rope-")[2][:5] for row in (0, len(items))]
        assert places == ["test.", "train"]
    assert len(both.products) == 2 * 13
    for index, (product_id, rows) in enumerate([*content.products.items()] * 2):
        product = both.products[index]
        assert product.product_id == product_id
        for domain, items in content.items.items():
            before = len(items) if index >= 13 else 0
            assert product.rows[domain].tolist() == [before + row for row in rows[domain]]


def test_records_equal_those_read_by_tfds(records, data_dir):
    source = tfds.builder_from_directory(data_dir / "rope" / "video" / "1.0.0").as_data_source("train")
    for row in (0, 5, len(source) - 1):
        reference, item = source[row], records.items["video"][row]
        assert item.item_id == reference["item_id"]
        assert item.text.encode() == reference["text"]
        assert list(item.frames) == list(reference["frames"])
        np.testing.assert_array_equal(item.product_ids, reference["product_ids"])


def test_a_split_given_twice_is_an_error(data_dir):
    with pytest.raises(ValueError, match=r"split 'train\+test\+train' names train more than once"):
        open_records(data_dir, "train+test+train")


def test_the_fingerprint_depends_on_the_records_but_not_on_their_folder(data_dir, tmp_path):
    shutil.copytree(data_dir / "rope", tmp_path / "rope")
    own = fingerprint(data_dir, "train")
    assert fingerprint(tmp_path, "train") == own
    changed = max((tmp_path / "rope" / "live" / "1.0.0").glob("*-train.array_record-*"))
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    assert fingerprint(tmp_path, "train") != own


def test_the_newest_finished_version_is_read(data_dir, tmp_path):
    shutil.copytree(data_dir / "rope", tmp_path / "rope")
    pages = tmp_path / "rope" / "page"
    video = open_records(data_dir, "train").items["video"]
    # 1.10.0 is newer than 1.9.0, and 2.0.0 is not finished. The newest page set is a copy of the videos.
    shutil.copytree(pages / "1.0.0", pages / "1.9.0")
    shutil.copytree(tmp_path / "rope" / "video" / "1.0.0", pages / "1.10.0")
    (pages / "2.0.0").mkdir()
    newest = open_records(tmp_path, "train").items["page"]
    assert [newest[row].text for row in range(len(newest))] == [video[row].text for row in range(len(video))]


def test_missing_data_sets_are_listed_with_the_remedy(data_dir, tmp_path):
    shutil.copytree(data_dir / "rope" / "page", tmp_path / "rope" / "page")
    with pytest.raises(FileNotFoundError, match=r"rope/video, .*rope/live, .*rope/product; .*\./run\.sh build"):
        open_records(tmp_path, "train")


def test_an_unknown_split_is_an_error_that_lists_the_splits(data_dir):
    for split in ("test", "train+test"):
        named = rf"no split '{re.escape(split)}' in .* for page \(has train\).*into another data_dir"
        with pytest.raises(ValueError, match=named):
            open_records(data_dir, split)


def test_sampled_texts_are_evenly_spaced_in_each_domain(records, content):
    pages, videos, lives = ([text for text, _, _ in content.items[domain]] for domain in DOMAINS)
    assert (len(pages), len(videos), len(lives)) == (24, 12, 12)
    expected = [pages[0], pages[8], pages[16], videos[0], videos[4], videos[8], lives[0], lives[4], lives[8]]
    assert sample_texts(records, limit=3) == expected
    # More than there are: each once, without the two missing page texts.
    assert sample_texts(records, limit=1000) == [text for text in pages + videos + lives if text]
    assert pages.count("") == 2


def test_the_limit_of_open_files_is_raised(data_dir, monkeypatch):
    limits = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: limits.append((kind, limit)))

    def open_within(soft, hard):
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
        limits.clear()
        open_records(data_dir, "train")
        return limits

    files = len(list(data_dir.glob("rope/*/*/*train.array_record*")))
    assert open_within(1024, 4096) == []
    assert open_within(100, 4096) == [(resource.RLIMIT_NOFILE, (2 * files + OTHER_FILES, 4096))]
    assert open_within(100, resource.RLIM_INFINITY)[0][1][0] == 2 * files + OTHER_FILES
    assert open_within(100, files + OTHER_FILES) == [(resource.RLIMIT_NOFILE, (files + OTHER_FILES,) * 2)]
    with pytest.raises(ValueError, match=rf"has {files} files, which stay open, but .* only 120; allow"):
        open_within(100, 120)
