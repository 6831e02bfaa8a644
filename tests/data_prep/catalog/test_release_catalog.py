"""Catalogs of releases: joined content, tolerated oddities and rejected lines."""

import collections
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.catalog import release_parser, split_writer
from data_prep.catalog.files import Catalog, Frame, Item, Product
from data_prep.catalog.release_catalog import build_release_catalog
from tests.data_prep.catalog import reference_catalog
from tests.data_prep.catalog.sample_releases import (
    FILES,
    INVALID_LINES,
    LASTS,
    build,
    mangled,
    read_rejected,
    write_release,
)

ROOT = Path(__file__).parents[3]


def assert_is_reference(catalog: Catalog, release: Path, prefix: str = "training_", split: str = "train") -> None:
    items, noted = reference_catalog.read_release(release, prefix)
    for domain, wanted in items.items():
        assert list(catalog.items(split, domain)) == wanted
    products = collections.defaultdict(lambda: collections.defaultdict(list))
    for domain, wanted in items.items():
        for row, item in enumerate(wanted):
            for product in item.product_ids:
                products[product][domain].append(row)
    assert list(catalog.products(split)) == [
        Product(product, {domain: tuple(products[product][domain]) for domain in items}) for product in sorted(products)
    ]
    said = collections.defaultdict(set)
    for entry in read_rejected(catalog):
        if entry["split"] == split:
            said[entry["file"]].add((entry["line"], entry["reason"]))
    for file, wanted in noted.items():
        assert said[file] == wanted
        summary = catalog.summary["splits"][split]["files"][file]
        assert summary["reasons"] == collections.Counter(reason for _, reason in wanted)
        assert summary["broken"] == sum(reason not in reference_catalog.HARMLESS for _, reason in wanted)


def test_a_split_is_joined_and_ordered(tmp_path):
    catalog = build(tmp_path, max_rejected=0)
    # Page 8 belongs to products 26 and 99; 26 puts it before page 7. Video 7 is not page 7.
    assert list(catalog.items("train", "page")) == [
        Item(8, "", (26, 99), (Frame(0, "p8.jpg"),)),
        Item(7, "外套", (99,), (Frame(0, "p7.jpg"),)),
    ]
    assert list(catalog.items("train", "video")) == [
        Item(7, "不买亏大了,碧根果才1元,限时", (26,), (Frame(16, "a.jpg"), Frame(240, "b.jpg")))
    ]
    assert list(catalog.items("train", "live")) == [Item(5, "", (99,), (Frame(1668122889829, "l.jpg"),))]
    assert list(catalog.products("train")) == [
        Product(26, {"page": (0,), "video": (0,), "live": ()}),
        Product(99, {"page": (0, 1), "video": (), "live": (0,)}),
    ]
    assert read_rejected(catalog) == []
    assert catalog.summary["splits"]["train"]["domains"] == {
        "page": {"items": 2, "texts": 1, "frames": 2, "items_without_frames": 0, "items_of_several_products": 1},
        "video": {"items": 1, "texts": 1, "frames": 2, "items_without_frames": 0, "items_of_several_products": 0},
        "live": {"items": 1, "texts": 0, "frames": 1, "items_without_frames": 0, "items_of_several_products": 0},
        "product": {"products": 2},
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("7,外套", "外套"),
        ("  7 ,\t 外套 \u3000 \n", "外套"),
        ("7, 外套\r\n", "外套"),
        ("\ufeff7, 外套\n", "外套"),
        ("7, 外套\n\n", "外套"),
        ("7, 外套\n7,外套\n", "外套"),
        ("7, ,a,,b,\n", ",a,,b,"),
        ("7, a\u2028b\x85c\x0bd\n", "a\u2028b\x85c\x0bd"),
        ("7, 空\n", ""),
        ("7, 空气\n", "空气"),
        ("7,\n", ""),
        ("", ""),
        ("007, a\n", "a"),
        ("7, a\n7, b\n", "a"),
    ],
)
def test_unusual_text_lines_are_read(tmp_path, content, text):
    catalog = build(tmp_path, page_titles=content)
    assert {item.item_id: item.text for item in catalog.items("train", "page")} == {8: "", 7: text}


def test_invalid_lines_of_all_kinds_are_left_out_and_listed(tmp_path):
    odd = collections.defaultdict(bytes)
    for name, content, _ in INVALID_LINES:
        odd[name] += content if isinstance(content, bytes) else content.encode()
    for name, content in FILES.items():  # among valid lines, some of which repeat, contradict or have no item
        odd[name] += (
            content.encode() + b"70, 2\n" + odd[name] + content.encode() + b"7, 3\n70, 5, c.jpg\n7, 16, a.jpg\n"
        )
    catalog = build(tmp_path, **odd)
    assert_is_reference(catalog, tmp_path / "release")
    assert {entry["reason"] for entry in read_rejected(catalog)} == (
        {reason for _, _, reason in INVALID_LINES}
        | set(reference_catalog.HARMLESS)
        | {"another text for the same item"}
    )


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), block=st.integers(4, 400))
def test_mangled_releases_give_the_same_catalog_as_the_reference(seed, block):
    rng = random.Random(seed)
    files = {name: mangled(rng, last) for name, last in LASTS.items()}
    files["product_pages_pair"] += b"\n1, 1\n"  # a split has a product
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(release_parser, "BLOCK_BYTES", block)
        patch.setattr(split_writer, "GROUP_ROWS", 2)
        catalog = build(Path(folder), **files)
        assert_is_reference(catalog, Path(folder) / "release")


def test_file_prefixes_can_be_given(tmp_path):
    write_release(tmp_path / "release", "valid-")
    catalog = build_release_catalog(
        tmp_path / "release", tmp_path / "catalog", splits=("test",), prefixes={"test": "valid-"}, max_rejected=0
    )
    assert_is_reference(catalog, tmp_path / "release", "valid-", "test")


def test_all_missing_files_are_listed(tmp_path):
    release = write_release(tmp_path / "release")
    (release / "training_live_asrs.txt").unlink()
    (release / "training_page_titles.txt").unlink()
    with pytest.raises(ValueError, match=rf"training_page_titles\.txt, training_live_asrs\.txt not found in {release}"):
        build_release_catalog(release, tmp_path / "catalog", splits=("train",))


def test_the_command_prints_the_counts_or_the_error(tmp_path):
    write_release(tmp_path / "release")
    command = [sys.executable, "-m", "data_prep.catalog", f"--release={tmp_path / 'release'}", "--splits=train"]
    done = subprocess.run([*command, f"--out={tmp_path / 'catalog'}"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "train   page                2           1             2          0            1" in done.stdout
    done = subprocess.run([*command, f"--out={tmp_path}"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert "exists and is not a catalog" in done.stderr
