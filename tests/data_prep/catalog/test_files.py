"""Catalogs on disk: any range of rows reads back as written, unfinished ones are errors, and counts are printed."""

import json

import pyarrow.parquet as pq
import pytest

from benchmarks.catalog_writer import write_catalog
from data_prep.catalog import files as catalog_files
from data_prep.catalog.files import ROPE, Catalog, Frame, Item, Product, compare_with_rope, format_summary
from tests.data_prep.catalog.sample_releases import build

PAGES = (
    Item(8, "", (26, 99), (Frame(0, "p8.jpg"),)),
    Item(7, "外套", (99,), ()),
    Item(9, "a,\u2028b", (99,), (Frame(0, "a.jpg"), Frame(0, "b.jpg"))),
)
VIDEOS = (Item(7, "v", (26,), (Frame(16, "b.jpg"), Frame(240, "a.jpg"))),)


@pytest.fixture
def catalog(tmp_path):
    return write_catalog(tmp_path, {"train": {"page": reversed(PAGES), "video": VIDEOS, "live": ()}})


def test_items_and_products_come_back_in_row_order(catalog):
    assert catalog.splits == ("train",)
    assert tuple(catalog.items("train", "page")) == PAGES
    assert tuple(catalog.items("train", "video")) == VIDEOS
    assert tuple(catalog.items("train", "live")) == ()
    assert [catalog.count("train", name) for name in ("page", "video", "live", "product")] == [3, 1, 0, 2]
    assert list(catalog.products("train")) == [
        Product(26, {"page": (0,), "video": (0,), "live": ()}),
        Product(99, {"page": (0, 1, 2), "video": (), "live": ()}),
    ]


def test_any_range_of_rows_reads_back_across_groups_and_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog_files, "GROUP_ROWS", 5)
    monkeypatch.setattr(catalog_files, "_READ_ROWS", 3)
    items = [Item(i, str(i), (i,), tuple(Frame(t, f"{i}-{t}.jpg") for t in range(i % 4))) for i in range(17)]
    catalog = write_catalog(tmp_path, {"test": {"page": items, "video": (), "live": ()}})
    assert [pq.ParquetFile(catalog.path("test", "page")).metadata.row_group(i).num_rows for i in range(4)] == [
        5,
        5,
        5,
        2,
    ]
    for start in range(19):
        assert list(catalog.items("test", "page", start)) == items[start:]
        for stop in range(19):
            assert list(catalog.items("test", "page", start, stop)) == items[start:stop]


def test_the_fingerprint_depends_on_the_content(tmp_path, catalog):
    same = write_catalog(tmp_path / "same", {"train": {"page": PAGES, "video": VIDEOS, "live": ()}})
    fewer = write_catalog(tmp_path / "fewer", {"train": {"page": PAGES[:2], "video": VIDEOS, "live": ()}})
    renamed = write_catalog(tmp_path / "renamed", {"test": {"page": PAGES, "video": VIDEOS, "live": ()}})
    assert same.fingerprint == catalog.fingerprint
    assert len({catalog.fingerprint, fewer.fingerprint, renamed.fingerprint}) == 3


def test_unfinished_catalogs_and_other_versions_are_errors(tmp_path, catalog):
    with pytest.raises(ValueError, match=r"has no split 'test': it has train"):
        catalog.count("test", "page")
    summary = catalog.folder / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"version": 0}))
    with pytest.raises(ValueError, match=r"summary\.json has version 0, not 1: remove"):
        _ = Catalog(catalog.folder).splits
    summary.unlink()
    with pytest.raises(ValueError, match=r"no summary\.json in .*unfinished one; build it with ./run.sh catalog"):
        next(Catalog(catalog.folder).items("train", "page"))


def test_unusual_files_are_noted(tmp_path):
    catalog = build(tmp_path, max_rejected=0, page_titles="\ufeff7, a\r\n\r\n8, b\r\n", product_lives_pair="99, 6\n")
    assert [item.text for item in catalog.items("train", "page")] == ["b", "a"]
    text = format_summary(catalog.summary)
    assert "training_page_titles.txt: of 3 lines 1 blank, 3 with CRLF, a byte order mark" in text
    assert "training_product_lives_pair.txt: of 1 lines 1 item without frames, kept" in text


def test_a_domain_without_items_is_noted(tmp_path):
    empty = {"product_lives_pair": "", "live_asrs": "", "live_clips": ""}
    text = format_summary(build(tmp_path, **empty).summary)
    assert text.endswith("\ntrain   has no live items, so it cannot be built")


def test_the_counts_of_rope_are_recognized():
    def domains(**changed):
        counts = ROPE["train"] | changed
        return {name: {"products" if name == "product" else "items": count} for name, count in counts.items()}

    assert compare_with_rope("train", domains()) == "the counts of ROPE's train split"
    near = "like ROPE's train split, but 187,430 products, not 187,431; 5,837,715 videos, not 5,837,716"
    assert compare_with_rope("train", domains(product=187_430, video=5_837_715)) == near
    assert compare_with_rope("train", domains(live=300)) == ""
    assert compare_with_rope("validation", domains()) == ""
