"""Parses tables of products in Parquet, CSV or JSON Lines, row by row."""

import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq

from data_prep.catalog.rejected_lines import Reason
from data_prep.catalog.release_parser import INT64_MAX, MAX_LINE_BYTES, check_path
from data_prep.common.domains import DOMAINS

SPLITS = ("train", "test")
SEPARATOR = "|"  # between the names in a string of images
REQUIRED_COLUMNS = ("product", "domain", "item")


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a table: ids as written there, "" for missing values, and (name, time or None) of each image."""

    split: str
    domain: str
    product: str
    item: str
    text: str
    images: tuple[tuple[str, int | None], ...]


def read_table(path: Path) -> Iterator[tuple[int, object, TableRow | Reason]]:
    """Yields (line, values, row or the reason why it is invalid). Parquet rows count as lines, from 1.

    Raises:
        ValueError: The file has another format, or columns are missing.
    """
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise ValueError(f"unknown format of table {path}: choose from {', '.join(f'*{suffix}' for suffix in readers)}")
    for line, values in readers[path.suffix](path):
        yield line, values, values if isinstance(values, Reason) else parse_row(values)


def _check_columns(name: str | Path, columns: list[str]) -> None:
    problems = [f"no column {column}" for column in REQUIRED_COLUMNS if column not in columns]
    if ("images" in columns) == ("image" in columns):
        problems.append("needs either a column images (one row per item) or a column image (one row per image)")
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}; its columns are {', '.join(columns)}")


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    with pq.ParquetFile(path) as file:
        _check_columns(path, file.schema_arrow.names)
        rows = (values for batch in file.iter_batches(1024) for values in batch.to_pylist())
        yield from enumerate(rows, start=1)


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, object] | Reason]]:
    limit = csv.field_size_limit(MAX_LINE_BYTES)  # a setting of the process, restored below
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                columns = [column.strip() for column in next(reader, [])]
            except csv.Error as error:
                raise ValueError(f"{path}: cannot read the header: {error}") from error
            _check_columns(path, columns)
            line = reader.line_num + 1
            while (fields := _next_fields(reader)) is not None:
                if isinstance(fields, list) and len(fields) == len(columns):
                    yield line, dict(zip(columns, fields, strict=True))
                elif fields:
                    # An unmatched quote takes all lines up to the next quote into its field: each of them is lost.
                    for lost in range(line, reader.line_num + 1):
                        yield lost, fields if isinstance(fields, Reason) else Reason.FIELDS
                line = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _next_fields(reader: Iterator[list[str]]) -> list[str] | Reason | None:
    """Returns the fields of the next row, the reason why it is invalid, or None at the end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        return Reason.LONG_LINE if "limit" in str(error) else Reason.QUOTES


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, object] | Reason]]:
    checked = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                values = Reason.NOT_UTF8
            except (ValueError, RecursionError):  # also raised for numbers of thousands of digits and deep nesting
                values = Reason.NOT_JSON
            if isinstance(values, dict) and not checked:
                _check_columns(f"{path}, first row (line {number})", list(values))
                checked = True
            yield number, values if isinstance(values, (dict, Reason)) else Reason.NOT_JSON


def parse_row(values: Mapping[str, object]) -> TableRow | Reason:
    """Returns the content of a row, or the reason why it is invalid.

    `{"product": "A-1", "domain": "page", "item": 7, "images": "a.jpg|b/c.jpg"}` gives
    `TableRow("", "page", "A-1", "7", "", (("a.jpg", None), ("b/c.jpg", None)))`.
    """
    fields = [values.get(name) for name in ("split", "domain", "product", "item", "text", "time")]
    images = _images(values)
    if images is None or any(isinstance(value, (list, dict, bytes)) for value in (*fields, *images)):
        return Reason.TYPE
    split, domain, product, item, text, time = map(_string, fields)
    names = list(map(_string, images))
    characters = "".join((split, domain, product, item, text, *names))
    if "\0" in characters:
        return Reason.NUL
    if any("\ud800" <= character <= "\udfff" for character in characters):
        return Reason.NOT_UTF8
    if not product or not item:
        return Reason.EMPTY_ID
    if domain not in DOMAINS:
        return Reason.DOMAIN
    if split not in (*SPLITS, ""):
        return Reason.SPLIT
    if time and not (time.isascii() and time.isdigit() and len(time) <= 19 and int(time) <= INT64_MAX):
        return Reason.NUMBER
    if reason := next(filter(None, map(check_path, names)), None):
        return reason
    return TableRow(split, domain, product, item, text, tuple((name, int(time) if time else None) for name in names))


def _images(values: Mapping[str, object]) -> list[object] | None:
    """Returns the names of a row's images as given, or None if they are neither a list nor a string."""
    if "image" in values:
        return [] if _is_missing(values["image"]) else [values["image"]]
    images = values.get("images")
    if _is_missing(images):
        return []
    if isinstance(images, str):
        return list(images.split(SEPARATOR))
    return images if isinstance(images, list) else None


def _is_missing(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())  # NaN is a gap, too


def _string(value: object) -> str:
    """Returns a value as text: "" if missing, and "7" for 7.0, because columns of numbers with gaps hold floats."""
    if _is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
