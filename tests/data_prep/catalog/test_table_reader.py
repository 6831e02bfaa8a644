"""Reading of tables: files as other programs write them, bounded memory, and errors that name the remedy."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.catalog import table_reader
from data_prep.catalog.table_parser import read_table

ROWS = [
    {"product": "a", "domain": "page", "item": "1", "text": "杯子", "images": "x.jpg|y.jpg"},
    {"product": "b", "domain": "video", "item": "2", "text": "", "images": "z.jpg"},
]
ITEMS = [("a", "page", "1", "杯子", ("x.jpg", "y.jpg")), ("b", "video", "2", "", ("z.jpg",))]


def csv_text(delimiter: str = ",") -> str:
    return "".join(f"{delimiter.join(row)}\r\n" for row in [list(ROWS[0]), *(list(row.values()) for row in ROWS)])


def read(path: Path) -> list:
    """Returns the content of a table's rows, and the reasons of the invalid ones."""
    return [
        (row.product, row.domain, row.item, row.text, tuple(name for name, _ in row.images))
        if hasattr(row, "product")
        else str(row)
        for _, _, row in read_table(path)
    ]


def write_parquet(path: Path, *, types: dict | None = None, **columns) -> Path:
    content = {name: [row[name] for row in ROWS] for name in ROWS[0]} | columns
    table = pa.table({name: pa.array(values, (types or {}).get(name)) for name, values in content.items()})
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ITEMS.CSV", csv_text().encode()),
        ("items.csv", csv_text().replace("product,domain", "Product, DOMAIN ").encode("utf-8-sig")),
        ("items.csv", csv_text().encode("utf-8-sig").replace(b"\xef\xbb\xbf", 2 * b"\xef\xbb\xbf")),
        ("items.csv", csv_text(";").encode()),
        ("items.csv", csv_text("\t").encode("utf-16")),
        ("items.csv", csv_text().encode("utf-16")),
        ("items.csv", csv_text(",").replace("product,", '"product",').replace("x.jpg|y.jpg", "x.jpg|y.jpg|").encode()),
        ("items.csv", csv_text().replace("\r\n", ",,\r\n").encode()),  # columns without a name
        ("items.tsv", csv_text("\t").encode()),
        ("items.CSV.gz", gzip.compress(csv_text().encode("utf-16"))),
        ("items.jsonl", "\n".join(map(json.dumps, ROWS)).encode("utf-8-sig")),
        ("items.ndjson.gz", gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
        ("items.jsonl", "\n".join(json.dumps(row | {"Images": row["images"]}) for row in ROWS).encode()),
    ],
)
def test_tables_are_read_as_spreadsheets_and_other_programs_write_them(tmp_path, name, content):
    if b"Images" in content:
        content = content.replace(b'"images"', b'"other"')
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == ITEMS


def test_json_objects_may_leave_out_missing_values(tmp_path):
    rows = [{"product": "a", "domain": "page", "item": "1"}, ROWS[1] | {"text": None}, {"images": "z.jpg"}]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "items.jsonl") == [("a", "page", "1", "", ()), ITEMS[1], "empty product or item id"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.csv", csv_text().replace("text", "images").encode(), "column images is given twice; its columns are"),
        ("items.csv", csv_text().replace("text", " Product").encode(), "column product is given twice"),
        ("items.csv", csv_text().encode("utf-16-le"), "begins with NUL bytes, as UTF-16 .*: save it as UTF-8"),
        ("items.csv", b"\xff\xfea", "begins like UTF-16 but is not: save it as CSV UTF-8"),
        ("items.jsonl", b"\xff\xfe{", "is UTF-16: save it as UTF-8"),
        ("items.csv", b"PK\x03\x04items.xlsx", "is a workbook, Parquet or a compressed file"),
        ("items.jsonl", b'\n [{"product": 1}]', r"line 2: a JSON array; write one object per line: jq -c '\.\[\]'"),
        *(
            (f"items.{suffix}", b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`")
            for suffix in ("csv", "jsonl", "parquet")
        ),
        ("items.parquet", b"PAR1", "cannot read .* as Parquet; it may be cut off or damaged"),
        ("items.parquet", b"product,domain,item,images\n" * 9, "cannot read .* as Parquet"),
        ("items.xlsx", b"", r"unknown format of table .*: choose from \*\.parquet, \*\.csv, \*\.tsv, \*\.jsonl"),
        ("items.parquet.gz", b"", r"unknown format of table .*: choose from .*, \*\.csv\.gz, \*\.jsonl\.gz"),
        (
            "items.csv.gz",
            b"product,domain",
            r"cannot unpack .*items\.csv\.gz; it may be cut off or damaged: Not a gzip",
        ),
        ("items.csv.gz", gzip.compress(csv_text().encode())[:-9], r"cannot unpack .*items\.csv\.gz; it may be cut off"),
    ],
)
def test_files_that_are_no_tables_are_errors_that_name_the_remedy(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_a_json_object_with_a_repeated_column_is_invalid(tmp_path):
    path = tmp_path / "items.jsonl"
    good = json.dumps(ROWS[0])
    path.write_text(
        f'{good}\n{good[:-1]}, "images": "z.jpg"}}\n{good[:-1]}, "IMAGES": []}}\n{good[:-1]}, "a": 1, "a": 2}}\n'
    )
    assert read(path) == [ITEMS[0], *["column given twice"] * 3]


def test_parts_of_a_folder_are_one_table(tmp_path):
    folder = tmp_path / "items"
    folder.mkdir()
    write_parquet(folder / "part-1.snappy.parquet")
    (folder / "part-0.parquet").write_bytes((folder / "part-1.snappy.parquet").read_bytes())
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.parquet.crc").touch()
    assert read(folder) == 2 * ITEMS
    assert [line for line, _, _ in read_table(folder)] == [1, 2, 3, 4]
    (folder / "split=train").mkdir()
    with pytest.raises(ValueError, match=r"unknown format of table .*split=train: choose from"):
        read(folder)
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"images is an empty folder: it needs part files \(\*\.parquet"):
        read(tmp_path / "images")


def invalid_text(content: bytes) -> pa.Array:
    """Returns two texts of one byte each."""
    offsets = np.array([0, 1, 2], np.int32)
    return pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(content)])


def test_other_columns_of_parquet_are_read_if_they_have_text_or_numbers(tmp_path):
    far = pa.array([2**62, 2**62], pa.int64()).cast(pa.timestamp("us"))
    other = {"Name": ["a", None], "thumb": [b"\0"] * 2, "price": [{"eur": 1}] * 2, "sizes": [["s"]] * 2}
    path = write_parquet(tmp_path / "items.parquet", day=far, **other)
    assert read(path) == ITEMS
    assert [values["name"] for _, _, values in table_reader.read_rows(path)] == ["a", None]
    assert all(values.keys() == {*ROWS[0], "name"} for _, _, values in table_reader.read_rows(path))


def test_invalid_text_in_parquet_is_an_invalid_row(tmp_path):
    path = write_parquet(tmp_path / "items.parquet", text=invalid_text(b"\xe9a"))
    assert read(path) == ["not UTF-8", (*ITEMS[1][:3], "a", ("z.jpg",))]


def test_invalid_text_in_another_column_of_parquet_is_left_out(tmp_path):
    path = write_parquet(tmp_path / "items.parquet", brand=invalid_text(b"\xe9a"))
    assert read(path) == ITEMS
    assert [values["brand"] for _, _, values in table_reader.read_rows(path)] == [None, "a"]


@pytest.mark.parametrize(
    "types",
    [
        {"text": pa.large_string(), "product": pa.dictionary(pa.int32(), pa.string())},
        {"images": pa.list_(pa.string())},
        {"images": pa.large_list(pa.dictionary(pa.int8(), pa.string()))},
        {"item": pa.int32()},
        {"item": pa.float32()},
    ],
)
def test_parquet_columns_may_have_any_type_of_text_or_number(tmp_path, types):
    values = {"images": [["x.jpg", "y.jpg"], ["z.jpg"]]} if "images" in types else {}
    values |= {"item": [1.0, 2.0] if types["item"] == pa.float32() else [1, 2]} if "item" in types else {}
    assert read(write_parquet(tmp_path / "items.parquet", types=types, **values)) == ITEMS


def test_short_floats_that_may_have_lost_digits_are_invalid(tmp_path):
    ids = pa.array([2.0**24, 2.0**24 + 2], pa.float32())
    path = write_parquet(tmp_path / "items.parquet", item=ids)
    assert read(path) == [
        (*ITEMS[0][:2], str(2**24), *ITEMS[0][3:]),
        "number that may have lost digits, store it as text",
    ]


def test_a_column_given_twice_in_parquet_is_an_error(tmp_path):
    columns = [pa.array([row[name] for row in ROWS]) for name in ROWS[0]]
    pq.write_table(pa.table([*columns, columns[-1]], names=[*ROWS[0], "Images"]), tmp_path / "items.parquet")
    with pytest.raises(ValueError, match=r"column images is given twice; its columns are product, .*, images, images"):
        read(tmp_path / "items.parquet")


def test_parquet_columns_of_other_types_are_an_error(tmp_path):
    path = write_parquet(tmp_path / "items.parquet", start=[1, 2], types={"start": pa.duration("ms")})
    with pytest.raises(ValueError, match=r"column start has type duration\[ms\], but must have text or numbers"):
        read(path)
    path = write_parquet(tmp_path / "items.parquet", images=[{"bytes": b"", "path": "x.jpg"}] * 2)
    with pytest.raises(ValueError, match=r"column images has type struct<.*>, but must have text or numbers"):
        read(path)


def test_rows_that_are_too_long_are_invalid(tmp_path, monkeypatch):
    monkeypatch.setattr(table_reader, "MAX_LINE_BYTES", 200)
    long = [{**ROWS[0], "text": "x" * 300}, ROWS[1], {**ROWS[1], "images": "|".join(["z.jpg"] * 50)}, ROWS[0]]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, long)))
    lines = [list(ROWS[0]), *(list(row.values()) for row in long)]
    (tmp_path / "items.csv").write_text("".join(f"{','.join(line)}\n" for line in lines))
    pq.write_table(
        pa.Table.from_pylist([{**row, "images": row["images"].split("|")} for row in long]), tmp_path / "items.parquet"
    )
    for suffix in ("jsonl", "csv", "parquet"):
        assert read(tmp_path / f"items.{suffix}") == ["line too long", ITEMS[1], "line too long", ITEMS[0]], suffix
    quoted = 'a,page,1,"' + "\n".join(["t" * 20] * 20) + '",x.jpg\n'  # many short lines
    (tmp_path / "items.csv").write_text(csv_text().partition("\r")[0] + f"\n{quoted}" + "b,video,2,,z.jpg\n")
    assert read(tmp_path / "items.csv")[-1] == ITEMS[1]
    assert "line too long" in read(tmp_path / "items.csv")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_memory_is_bounded(tmp_path, suffix):
    """A row of 200 MB, in Parquet 10,000 rows that share a text of 1 MB, must not take as much memory."""
    path = tmp_path / f"items.{suffix}"
    if suffix == "parquet":
        texts = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), ["x" * (1 << 20)])
        columns = {name: [ROWS[0][name]] * 10_000 for name in ROWS[0] if name != "text"}
        pq.write_table(pa.table(columns | {"text": texts}), path, dictionary_pagesize_limit=1 << 22)
    else:
        with path.open("wb") as file:
            file.write(b"product,domain,item,images\na" if suffix == "csv" else b'{"product": "')
            file.seek(200 << 20, 1)
            file.write(b"\n")
    code = (
        "import resource, sys, pathlib; from data_prep.catalog.table_parser import read_table\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rows = sum(1 for _ in read_table(pathlib.Path(sys.argv[1])))\n"
        "print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == (10_000 if suffix == "parquet" else 1)
    assert kilobytes < 100_000 * (1 if sys.platform == "linux" else 1024)
