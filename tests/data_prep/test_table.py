"""Catalogs of own tables: three forms of file, two of rows, string ids, splits, and what each bad row is told."""

import collections
import csv
import io
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cope_jax.data.collate import checked_id
from data_prep.catalog import table_rows
from data_prep.catalog.files import Catalog, CatalogError, Frame, Item, Product
from data_prep.catalog.lines import Reason
from data_prep.catalog.table_rows import TableRow, parse_row
from data_prep.table import _split, make_catalog

ROOT = Path(__file__).parents[2]
BAG, MUG = "SKU-b", "SKU-m"
ITEMS = [
    {
        "split": "train",
        "product": MUG,
        "domain": "page",
        "item": "p2",
        "text": "杯子, 大",
        "images": ["x/1.jpg", "2.jpg"],
    },
    {"split": "train", "product": BAG, "domain": "page", "item": "p1", "text": "包", "images": ["3.jpg"]},
    {"split": "train", "product": MUG, "domain": "video", "item": "30", "text": "", "images": ["z.jpg", "a.jpg"]},
    {"split": "train", "product": BAG, "domain": "video", "item": "30", "text": "说", "images": ["z.jpg", "b.jpg"]},
    {"split": "train", "product": MUG, "domain": "live", "item": "9", "text": "", "images": []},
    {"split": "test", "product": "SKU-a", "domain": "page", "item": "p1", "text": "", "images": ["4.jpg"]},
]
# Ids are numbered in their order over both splits: SKU-a, SKU-b, SKU-m and p1, p2; those of videos are numbers already.
WANTED = {
    "page": [
        Item(0, "包", (1,), (Frame(0, "3.jpg"),)),
        Item(1, "杯子, 大", (2,), (Frame(0, "2.jpg"), Frame(0, "x/1.jpg"))),
    ],
    "video": [Item(30, "说", (1, 2), (Frame(0, "z.jpg"), Frame(1, "a.jpg"), Frame(2, "b.jpg")))],
    "live": [Item(9, "", (2,), ())],
}


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "x").mkdir(parents=True)
    (folder / "x" / "1.jpg").touch()
    return folder


def write_table(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                joined = {"images": "|".join(row["images"])} if "images" in row else {}
                writer.writerow(row | joined)
    return path


def make(folder: Path, rows: list[dict], suffix: str = ".jsonl", **options) -> Catalog:
    table = write_table(folder / f"items{suffix}", rows)
    return make_catalog(table, folder / "images", folder / "catalog", report=lambda line: None, **options)


def rejected(folder: Path) -> list[tuple]:
    with (folder / "rejected.jsonl").open(encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    return [(entry["split"], entry["line"], entry["reason"]) for entry in entries]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("an_image_a_row", [False, True])
def test_every_form_of_a_table_gives_the_same_catalog(tmp_path, images, suffix, an_image_a_row):
    rows = ITEMS
    if an_image_a_row:
        rows = [
            {name: value for name, value in row.items() if name != "images"} | {"image": image}
            for row in ITEMS
            for image in row["images"] or [""]
        ]
    catalog = make(tmp_path, rows, suffix, max_rejected=0)
    assert {domain: list(catalog.items("train", domain)) for domain in WANTED} == WANTED
    assert list(catalog.products("train")) == [
        Product(1, {"page": (0,), "video": (0,), "live": ()}),
        Product(2, {"page": (1,), "video": (0,), "live": (0,)}),
    ]
    assert list(catalog.items("test", "page")) == [Item(0, "", (0,), (Frame(0, "4.jpg"),))]
    assert pq.read_table(catalog.folder / "ids.parquet").to_pylist() == [
        {"kind": "page", "id": 0, "original": "p1"},
        {"kind": "page", "id": 1, "original": "p2"},
        {"kind": "product", "id": 0, "original": "SKU-a"},
        {"kind": "product", "id": 1, "original": "SKU-b"},
        {"kind": "product", "id": 2, "original": "SKU-m"},
    ]
    assert [reason for _, _, reason in rejected(catalog.folder)] == ["item without frames, kept"]


def test_whole_numbers_stay_as_they_are_and_times_order_frames(tmp_path, images):
    shown = {"product": 12, "domain": "live", "item": 7.0}
    rows = [
        shown | {"image": "late.jpg", "time": 1668122889829},
        shown | {"image": "x/1.jpg", "time": 5.0, "text": "a"},
        shown | {"image": "late.jpg", "time": 1668122889829, "text": "a"},
    ]
    catalog = make(tmp_path, rows, test_fraction=0)
    assert catalog.splits == ("train",)
    frames = (Frame(5, "x/1.jpg"), Frame(1668122889829, "late.jpg"))
    assert list(catalog.items("train", "live")) == [Item(7, "a", (12,), frames)]
    assert pq.read_table(catalog.folder / "ids.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("products", "wanted"),
    [((6901234567892, 5), (1, 0)), ((2**31, 5), (0, 1)), ((2**31 - 1, 5), (2**31 - 1, 5))],
)
def test_products_with_numbers_too_large_for_training_are_numbered(tmp_path, images, products, wanted):
    shown = {"domain": "page", "images": ["x/1.jpg"]}
    rows = [shown | {"product": product, "item": 10**12 + i} for i, product in enumerate(products)]
    catalog = make(tmp_path, rows, test_fraction=0)
    found = {item.item_id: item.product_ids for item in catalog.items("train", "page")}
    assert found == {10**12 + i: (product,) for i, product in enumerate(wanted)}  # items have room
    assert all(checked_id(product.product_id) in wanted for product in catalog.products("train"))


def test_products_are_split_by_hash_and_shared_items_go_to_test(tmp_path, images):
    rows = [
        {"product": f"p{i}", "domain": domain, "item": f"{domain}{i}", "images": ["x/1.jpg"]}
        for i in range(200)
        for domain in ("page", "video")
    ]
    test = {f"p{i}" for i in range(200) if _split(f"p{i}", 0.25) == "test"}
    train = sorted({f"p{i}" for i in range(200)} - test)
    assert 30 < len(test) < 70
    rows.append({"product": train[0], "domain": "page", "item": f"page{min(test)[1:]}", "images": []})
    catalog = make(tmp_path, rows, ".parquet", test_fraction=0.25)
    ids = {
        (row["kind"], row["id"]): row["original"] for row in pq.read_table(catalog.folder / "ids.parquet").to_pylist()
    }
    found = {split: {ids["product", p.product_id] for p in catalog.products(split)} for split in ("train", "test")}
    assert found == {"train": set(train), "test": test}
    assert rejected(catalog.folder) == [("", 401, "item of a test product too, left to test")]
    pages = {split: {item.item_id for item in catalog.items(split, "page")} for split in ("train", "test")}
    assert not pages["train"] & pages["test"]
    assert sum(map(len, pages.values())) == 200


GOOD = {"product": "a", "domain": "page", "item": "b", "images": "x.jpg|y/z.jpg"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"product": None}, "empty product or item id"),
        ({"item": " "}, "empty product or item id"),
        ({"product": float("nan")}, "empty product or item id"),
        ({"domain": "shop"}, "unknown domain"),
        ({"domain": None}, "unknown domain"),
        ({"split": "val"}, "unknown split"),
        ({"text": "a\0"}, "NUL byte"),
        ({"images": ["a\0"]}, "NUL byte"),
        ({"text": "\ud800"}, "not UTF-8"),
        ({"product": ["a"]}, "value of a wrong kind"),
        ({"item": b"a"}, "value of a wrong kind"),
        ({"text": {"a": 1}}, "value of a wrong kind"),
        ({"images": 5}, "value of a wrong kind"),
        ({"images": {"a.jpg": 1}}, "value of a wrong kind"),
        ({"images": [["a.jpg"]]}, "value of a wrong kind"),
        ({"image": ["a.jpg"]}, "value of a wrong kind"),
        ({"image": "a", "time": [1]}, "value of a wrong kind"),
        ({"images": "a||b"}, "empty image name"),
        ({"images": ["a", None]}, "empty image name"),
        ({"images": "/etc/passwd"}, "image name leads out of its folder"),
        ({"images": "a/../b"}, "image name leads out of its folder"),
        ({"images": "./a"}, "image name leads out of its folder"),
        ({"images": "a//b"}, "image name leads out of its folder"),
        ({"images": "a\\b"}, "image name leads out of its folder"),
        ({"images": "图" * 86}, "image name too long"),
        ({"images": "a/" * 2048 + "b"}, "image name too long"),
        ({"image": "a", "time": -1}, "no whole number"),
        ({"image": "a", "time": "1e3"}, "no whole number"),
        ({"image": "a", "time": 0.5}, "no whole number"),
        ({"image": "a", "time": 2**63}, "no whole number"),
    ],
)
def test_a_bad_row_is_told_by_its_reason(change, reason):
    assert parse_row(GOOD | change) == reason


def test_a_good_row_is_read():
    row = parse_row(GOOD | {"text": float("nan"), "split": "test"})
    assert row == TableRow("test", "page", "a", "b", "", (("x.jpg", None), ("y/z.jpg", None)))
    for none in (float("nan"), None, " ", []):
        assert parse_row(GOOD | {"images": none}) == TableRow("", "page", "a", "b", "", ())


NAN = float("nan")
MEANINGS = {  # of values in each column: what they say, None where the row is a bad one
    "product": [("a", "a"), (" b", "b"), (7, "7"), (7.0, "7"), ("", None), (NAN, None), ([1], None), ({}, None)],
    "domain": [("page", "page"), ("live ", "live"), ("shop", None), (None, None), (3, None)],
    "item": [("a", "a"), (2**70, str(2**70)), (False, "False"), (None, None), ("\0", None), ([], None)],
    "text": [("空 \n", "空"), (None, ""), (NAN, ""), (0.5, "0.5"), ("\ud800", None), ([None], None)],
    "split": [("", ""), ("test", "test"), (None, ""), ("val", None), ({"train": 1}, None)],
    "images": [
        *(("a.jpg| b", ["a.jpg", "b"]), (["x/1.jpg"], ["x/1.jpg"]), ([5], ["5"]), ("", []), ([], []), (NAN, [])),
        *((5, None), (True, None), ({"a": 1}, None), ([["a"]], None), (["a", None], None), ("a||b", None)),
        *(("../a", None), (["/a"], None), (["a\\b"], None), ("图" * 86, None), (["\ud800"], None)),
    ],
}
NO_ROWS = [b"{", b"[1]", b"null", b"NaN", b'"a"', b"1" * 5000, b"[" * 100_000, b'{"product": "\xff"}', b"{}"]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_row_of_json_stops_the_reading_or_is_misunderstood(seed):
    rng = random.Random(seed)
    content, wanted = json.dumps(GOOD).encode(), [parse_row(GOOD)]
    for _ in range(rng.randrange(20)):
        drawn = {name: rng.choice(values[: 2 if rng.random() < 0.8 else None]) for name, values in MEANINGS.items()}
        split, domain, product, item, text, names = (
            drawn[name][1] for name in ("split", "domain", "product", "item", "text", "images")
        )
        line, row = json.dumps({name: value for name, (value, _) in drawn.items()}).encode(), None
        if None not in (split, domain, product, item, text, names):
            row = TableRow(split, domain, product, item, text, tuple((name, None) for name in names))
        if rng.random() < 0.2:
            line, row = rng.choice(NO_ROWS), None
        content, wanted = content + b"\n" + line, [*wanted, row]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "items.jsonl").write_bytes(content)
        found = list(table_rows.read_table(Path(folder) / "items.jsonl"))
    assert [line for line, _, _ in found] == list(range(1, len(wanted) + 1))
    assert [None if isinstance(row, Reason) else row for _, _, row in found] == wanted


PIECES = [*(",a", ",page,", "|x.jpg", "图", "\udcff", "\0", " "), *('"', '""', '"a"', "\n", "\n", "\r\n", "\r")]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_line_of_a_mangled_csv_is_in_a_row_or_counted(seed):
    rng = random.Random(seed)
    names = rng.choices(["x.jpg", '"x.jpg"'], k=rng.randrange(12))
    good = "".join(f"a,page,{item},{name}\n" for item, name in enumerate(names))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(good) + 1)
        good = good[:at] + "".join(rng.choices(PIECES, k=rng.randrange(1, 6))) + good[at:]
    content = ("product,domain,item,images\n" + good).encode(errors="surrogateescape")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_rows, "MAX_LINE_BYTES", 100)
        (Path(folder) / "items.csv").write_bytes(content)
        found = list(table_rows.read_table(Path(folder) / "items.csv"))
    lines = list(io.TextIOWrapper(io.BytesIO(content), "utf-8", "surrogateescape", newline=""))
    covered = [1]
    for line, values, _ in found:
        fields = values.values() if isinstance(values, dict) else ()
        covered += range(line, line + 1 + len(re.findall("\r\n|\r|\n", "".join(fields))))
    blank = [number for number, line in enumerate(lines, start=1) if not line.strip("\r\n")]
    assert sorted({*covered, *blank}) == list(range(1, len(lines) + 1))
    assert len(covered) == len(set(covered))


def test_lines_that_are_no_rows_and_contradictions_are_noted(tmp_path, images, monkeypatch):
    row = b'{"product": "a", "domain": "page", "item": "b", "images": ["x/1.jpg"], "text": "%b"}\n'
    lines = [
        row % b"one",
        b"[1]\n",
        b"{\n",
        b'{"a": "\xff"}\n',
        row % b"two",
        row % b"",
        row % b"one",
        row % b"\xe6\x9d\xaf",
    ]
    (tmp_path / "items.jsonl").write_bytes(b"".join(lines))
    options = {"report": lambda line: None, "test_fraction": 0}
    catalog = make_catalog(tmp_path / "items.jsonl", images, tmp_path / "catalog", max_rejected=0.4, **options)
    assert list(catalog.items("train", "page")) == [Item(0, "one", (0,), (Frame(0, "x/1.jpg"),))]
    assert rejected(catalog.folder) == [
        *(("", 2, "no JSON object"), ("", 3, "no JSON object"), ("", 4, "not UTF-8")),
        *(("train", 5, "another text for the same item"), ("train", 8, "another text for the same item")),
    ]
    with pytest.raises(
        CatalogError, match=r"(?s)items\.jsonl: 3 of 8 lines are broken, .*no JSON object: 2, not UTF-8: 1"
    ):
        make_catalog(tmp_path / "items.jsonl", images, tmp_path / "other", max_rejected=0.3, **options)

    monkeypatch.setattr(table_rows, "MAX_LINE_BYTES", 30)
    (tmp_path / "items.csv").write_bytes(
        b"product,domain,item,images\na,page,b,x/1.jpg\na,page\n\na,page,b,"
        + b"c" * 40
        + b'\na,page,\xff,d\n"a\n",page,e,f\n'
    )
    found = [(line, getattr(row, "item", row)) for line, _, row in table_rows.read_table(tmp_path / "items.csv")]
    assert found == [(2, "b"), (3, "wrong number of fields"), (5, "line too long"), (6, "not UTF-8"), (7, "e")]


def test_rows_that_a_stray_quote_swallows_are_all_counted(tmp_path, monkeypatch):
    def read(*rows: str) -> list[tuple]:
        (tmp_path / "items.csv").write_text("\n".join(["product,domain,item,image", *rows]) + "\n")
        return [(line, getattr(row, "item", row)) for line, _, row in table_rows.read_table(tmp_path / "items.csv")]

    good = [f"a,page,{item},{item}.jpg" for item in "bcde"]
    assert read('a,page,"b\n""c""",b.jpg', good[1]) == [(2, 'b\n"c"'), (4, "c")]
    unmatched = "quotes that do not match"
    assert read('a,page,x,"x.jpg', *good) == [(line, unmatched) for line in range(2, 7)]  # to the end of the file
    assert read(good[0], 'a,page,"x,x.jpg', good[1], 'a,"page",d,d.jpg', good[3]) == [
        *((2, "b"), (3, unmatched), (4, unmatched), (5, unmatched), (6, "e"))
    ]
    fields = [(line, "wrong number of fields") for line in (2, 3, 4)]
    assert read('a,page,"x,x.jpg', good[0], 'a,page,c",c.jpg,c', good[2]) == [*fields, (5, "d")]
    monkeypatch.setattr(table_rows, "MAX_LINE_BYTES", 30)
    too_long = [(line, "line too long") for line in (2, 3, 4)]
    assert read('a,page,"x,x.jpg', *good) == [*too_long, (5, "d"), (6, "e")]


def test_what_is_no_table_is_said(tmp_path, images):
    def made(name, content, folder=images):
        (tmp_path / name).write_text(content)
        return make_catalog(tmp_path / name, folder, tmp_path / "catalog", report=lambda line: None)

    with pytest.raises(CatalogError, match=r"items\.txt is none of \*\.parquet, \*\.csv, \*\.jsonl"):
        made("items.txt", "")
    with pytest.raises(CatalogError, match=r"no column domain; wanted either .* its columns are product, item, text"):
        made("items.csv", "product,item,text\n")
    with pytest.raises(CatalogError, match=r"items\.csv: the line of the columns' names .*: unexpected end of data"):
        made("items.csv", 'product,domain,item,"image\n')
    with pytest.raises(
        CatalogError, match=r"no column item; wanted either a column images .* product, domain, image, images"
    ):
        made("items.jsonl", '{"product": 1, "domain": "page", "image": "", "images": ""}\n')
    with pytest.raises(
        CatalogError, match=r"first row \(line 2\): wanted either .* its columns are product, domain, item$"
    ):
        made("items.jsonl", '\n{"product": 1, "domain": "page", "item": 2}\n')
    with pytest.raises(CatalogError, match="no rows: every split is empty"):
        made("items.csv", "product,domain,item,images\n")
    with pytest.raises(CatalogError, match=r"none of 2 images of the table is in .*images, e\.g\. '[ab]\.jpg': names"):
        made("items.csv", "product,domain,item,images\n1,page,2,a.jpg|b.jpg\n")
    with pytest.raises(CatalogError, match=r"images folder .*nowhere not found"):
        made("items.csv", "", tmp_path / "nowhere")
    with pytest.raises(CatalogError, match=r"table .*none\.csv not found"):
        make_catalog(tmp_path / "none.csv", images, tmp_path / "catalog")


def test_the_command_makes_it_once(tmp_path, images):
    table = write_table(tmp_path / "items.csv", ITEMS)
    command = [sys.executable, "-m", "data_prep.table", f"--table={table}", f"--images={images}"]
    command.append(f"--out={tmp_path / 'catalog'}")
    done = [subprocess.run(command, capture_output=True, text=True, cwd=ROOT) for _ in range(2)]
    assert [(each.returncode, each.stderr) for each in done] == [(0, ""), (0, "")]
    assert "train   video               1           1             3          0            1" in done[0].stdout
    assert "nothing to do" in done[1].stdout
    with table.open("a") as file:
        file.write("\n")
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (again.returncode, collections.Counter(again.stderr)["\n"]) == (1, 1)
    assert "is a catalog of another source (table differ)" in again.stderr
