"""Parsing of tables: the content of valid rows, the reason for each invalid one, and no lost lines."""

import io
import json
import random
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.catalog import table_parser, table_reader
from data_prep.catalog.rejected_lines import Reason
from data_prep.catalog.table_parser import TableRow, parse_row

GOOD = {"product": "a", "domain": "page", "item": "b", "images": "x.jpg|y/z.jpg"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"product": None}, "empty product or item id"),
        ({"item": " "}, "empty product or item id"),
        ({"product": float("nan")}, "empty product or item id"),
        ({"domain": "Web shop"}, "unknown domain"),
        ({"domain": None}, "unknown domain"),
        ({"split": "dev"}, "unknown split"),
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
        ({"images": "a\\..\\b"}, "image name leads out of its folder"),
        ({"images": "ftp://h/a"}, "image name leads out of its folder"),
        ({"images": "图" * 86}, "image name too long"),
        ({"images": "a/" * 2048 + "b"}, "image name too long"),
        ({"product": 6.1e17}, "number that may have lost digits, store it as text"),
        ({"item": -(2.0**54)}, "number that may have lost digits, store it as text"),
        ({"product": float("inf")}, "number that may have lost digits, store it as text"),
        ({"image": "a", "time": 1.7e18}, "number that may have lost digits, store it as text"),
        *(
            ({"product": text}, "number that may have lost digits, store it as text")
            for text in ("6.97E+12", "6,97E+12", "7e+12")
        ),
        *(
            ({"item": text}, "number that may have lost digits, store it as text")
            for text in ("1.2E17", "12345678901234567890.0")
        ),
        *(({"product": text}, "empty product or item id") for text in ("nan", "NaN", "None", "null", "<NA>")),
        ({"image": "a", "time": -1}, "no whole number"),
        ({"image": "a", "time": "1e3"}, "no whole number"),
        ({"image": "a", "time": 0.5}, "no whole number"),
        ({"image": "a", "time": 2**63}, "no whole number"),
    ],
)
def test_an_invalid_row_is_rejected_with_its_reason(change, reason):
    assert parse_row(GOOD | change) == reason


def test_images_may_be_the_urls_that_img2dataset_fetched():
    urls = ["https://h/a//b.jpg?w=1&x=../y", "http://h:80/" + "a" * 300]
    row = parse_row(GOOD | {"images": "|".join(urls)})
    assert isinstance(row, TableRow)
    assert [name for name, _ in row.images] == urls


def test_a_valid_row_is_parsed():
    row = parse_row(GOOD | {"text": float("nan"), "split": "test"})
    assert row == TableRow("test", "page", "a", "b", "", (("x.jpg", None), ("y/z.jpg", None)))
    for none in (float("nan"), None, " ", []):
        assert parse_row(GOOD | {"images": none}) == TableRow("", "page", "a", "b", "", ())


NAN = float("nan")
MEANINGS = {  # values in each column and what they mean; None if the row is invalid
    "product": [("a", "a"), (" b", "b"), (7, "7"), (7.0, "7"), ("", None), (NAN, None), ([1], None), ({}, None)],
    "domain": [
        ("page", "page"),
        ("live ", "live"),
        ("shop", "shop"),
        ("Shop", None),
        ("page_2", None),
        (None, None),
        (3, None),
    ],
    "item": [
        *(("a", "a"), (2**70, str(2**70)), ("12E3", "12E3"), (2.0**53, str(2**53)), (False, "False"), (None, None)),
        *(("\0", None), ([], None), (2.0**54, None), ("NaN", None)),
    ],
    "text": [("空 \n", "空"), (None, ""), (NAN, ""), (0.5, "0.5"), ("\ud800", None), ([None], None)],
    "split": [("", ""), ("test", "test"), (None, ""), ("val", "val"), ("dev", None), ({"train": 1}, None)],
    "images": [
        *(("a.jpg| b|", ["a.jpg", "b"]), (["x/1.jpg"], ["x/1.jpg"]), ([5], ["5"]), ("", []), ([], []), (NAN, [])),
        *((["a\\b"], ["a/b"]), ("|", [])),
        *((5, None), (True, None), ({"a": 1}, None), ([["a"]], None), (["a", None], None), ("a||b", None)),
        *(("../a", None), (["/a"], None), ("图" * 86, None), (["\ud800"], None)),
    ],
}
INVALID_ROWS = [b"{", b"[1]", b"null", b"NaN", b'"a"', b"1" * 5000, b"[" * 100_000, b'{"product": "\xff"}', b"{}"]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_json_rows_are_parsed_or_rejected(seed):
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
            line, row = rng.choice(INVALID_ROWS), None
        content, wanted = content + b"\n" + line, [*wanted, row]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "items.jsonl").write_bytes(content)
        found = list(table_parser.read_table(Path(folder) / "items.jsonl"))
    assert [line for line, _, _ in found] == list(range(1, len(wanted) + 1))
    assert [None if isinstance(row, Reason) else row for _, _, row in found] == wanted


PIECES = [*(",a", ",page,", "|x.jpg", "图", "\udcff", "\0", " "), *('"', '""', '"a"', "\n", "\n", "\r\n", "\r")]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_line_of_a_mangled_csv_is_parsed_or_rejected(seed):
    rng = random.Random(seed)
    names = rng.choices(["x.jpg", '"x.jpg"'], k=rng.randrange(12))
    good = "".join(f"a,page,{item},{name}\n" for item, name in enumerate(names))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(good) + 1)
        good = good[:at] + "".join(rng.choices(PIECES, k=rng.randrange(1, 6))) + good[at:]
    content = ("product,domain,item,images\n" + good).encode(errors="surrogateescape")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_reader, "MAX_LINE_BYTES", 100)
        (Path(folder) / "items.csv").write_bytes(content)
        found = list(table_parser.read_table(Path(folder) / "items.csv"))
    lines = list(io.TextIOWrapper(io.BytesIO(content), "utf-8", "surrogateescape", newline=""))
    covered = [1]
    for line, values, _ in found:
        fields = values.values() if isinstance(values, dict) else ()
        covered += range(line, line + 1 + len(re.findall("\r\n|\r|\n", "".join(fields))))
    blank = [number for number, line in enumerate(lines, start=1) if not line.strip("\r\n")]
    assert sorted({*covered, *blank}) == list(range(1, len(lines) + 1))
    assert len(covered) == len(set(covered))


def test_invalid_csv_lines_are_rejected_with_their_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(table_reader, "MAX_LINE_BYTES", 30)
    (tmp_path / "items.csv").write_bytes(
        b"product,domain,item,images\na,page,b,x/1.jpg\na,page\n\na,page,b,"
        + b"c" * 40
        + b'\na,page,\xff,d\n"a\n",page,e,f\n'
    )
    found = [(line, getattr(row, "item", row)) for line, _, row in table_parser.read_table(tmp_path / "items.csv")]
    assert found == [(2, "b"), (3, "wrong number of fields"), (5, "line too long"), (6, "not UTF-8"), (7, "e")]


def test_all_lines_lost_to_an_unmatched_quote_are_rejected(tmp_path, monkeypatch):
    def read(*rows: str) -> list[tuple]:
        (tmp_path / "items.csv").write_text("\n".join(["product,domain,item,image", *rows]) + "\n")
        return [(line, getattr(row, "item", row)) for line, _, row in table_parser.read_table(tmp_path / "items.csv")]

    good = [f"a,page,{item},{item}.jpg" for item in "bcde"]
    assert read('a,page,"b\n""c""",b.jpg', good[1]) == [(2, 'b\n"c"'), (4, "c")]
    unmatched = "quotes that do not match"
    assert read('a,page,x,"x.jpg', *good) == [(line, unmatched) for line in range(2, 7)]  # to the end of the file
    assert read(good[0], 'a,page,"x,x.jpg', good[1], 'a,"page",d,d.jpg', good[3]) == [
        *((2, "b"), (3, unmatched), (4, unmatched), (5, unmatched), (6, "e"))
    ]
    fields = [(line, "wrong number of fields") for line in (2, 3, 4)]
    assert read('a,page,"x,x.jpg', good[0], 'a,page,c",c.jpg,c', good[2]) == [*fields, (5, "d")]
    monkeypatch.setattr(table_reader, "MAX_LINE_BYTES", 40)
    too_long = [(line, "line too long") for line in (2, 3, 4)]
    assert read('a,page,"x,x.jpg', *good) == [*too_long, (5, "d"), (6, "e")]
