"""Reads the rows of a table of one's own products, one by one: Parquet, CSV or JSON lines."""

import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_prep.catalog.files import CatalogError
from data_prep.catalog.lines import INT64_MAX, MAX_LINE_BYTES, MAX_NAME_BYTES, Reason
from data_prep.common.domains import DOMAINS

SPLITS = ("train", "test")
SEPARATOR = "|"  # between names in one string
NEEDED = ("product", "domain", "item")
_PATH_BYTES = 4095  # the longest path that common systems take


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One row: ids as the table spells them, `split` "" where it says none, and (name, time or None) of images."""

    split: str
    domain: str
    product: str
    item: str
    text: str
    images: tuple[tuple[str, int | None], ...]


def read_table(path: Path) -> Iterator[tuple[int, Any, TableRow | Reason]]:
    """Yields (line, values, row or why it is none) of each row; lines of a Parquet file are its rows, from 1.

    Raises:
      CatalogError: another kind of file, or columns that are missing.
    """
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise CatalogError(f"{path} is none of {', '.join(f'*{suffix}' for suffix in readers)}")
    for line, values in readers[path.suffix](path):
        yield line, values, parse_row(values) if isinstance(values, dict) else Reason(values)


def _check_columns(where: str | Path, columns: list[str]) -> None:
    faults = [f"no column {name}" for name in NEEDED if name not in columns]
    if ("images" in columns) == ("image" in columns):
        faults.append("wanted either a column images (one row an item) or a column image (one row an image)")
    if faults:
        raise CatalogError(f"{where}: {'; '.join(faults)}; its columns are {', '.join(columns)}")


def _read_parquet(path: Path) -> Iterator[tuple[int, dict]]:
    with pq.ParquetFile(path) as file:
        _check_columns(path, file.schema_arrow.names)
        rows = (values for batch in file.iter_batches(1024) for values in batch.to_pylist())
        yield from enumerate(rows, start=1)


def _read_csv(path: Path) -> Iterator[tuple[int, dict | str]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            columns = [column.strip() for column in next(reader, [])]
        except csv.Error as error:
            raise CatalogError(f"{path}: the line of the columns' names cannot be read: {error}") from error
        _check_columns(path, columns)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fault = Reason.LONG_LINE if "limit" in str(error) else Reason.QUOTES
            else:
                if not fields:
                    continue
                if len(fields) == len(columns):
                    yield line, dict(zip(columns, fields, strict=True))
                    continue
                fault = Reason.FIELDS
            # A quote that nothing ends takes all rows into its field up to the next quote: each of them is lost.
            for lost in range(line, reader.line_num + 1):
                yield lost, fault


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict | str]]:
    checked = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                values = Reason.NOT_UTF8
            except (ValueError, RecursionError):  # numbers of thousands of digits and deep nesting are some, too
                values = Reason.NOT_JSON
            if isinstance(values, dict) and not checked:
                _check_columns(f"{path}, first row (line {number})", list(values))
                checked = True
            yield number, values if isinstance(values, (dict, Reason)) else Reason.NOT_JSON


def parse_row(values: Mapping[str, Any]) -> TableRow | Reason:
    """Returns what a row says, or why it says nothing.

    `{"product": "A-1", "domain": "page", "item": 7, "images": "a.jpg|b/c.jpg"}` is
    `TableRow("", "page", "A-1", "7", "", (("a.jpg", None), ("b/c.jpg", None)))`.
    """
    said = [values.get(name) for name in ("split", "domain", "product", "item", "text", "time")]
    images = _images(values)
    if images is None or any(isinstance(value, (list, dict, bytes)) for value in (*said, *images)):
        return Reason.KIND
    split, domain, product, item, text, time = map(_spelled, said)
    names = list(map(_spelled, images))
    every = "".join((split, domain, product, item, text, *names))
    if "\0" in every:
        return Reason.NUL
    if any("\ud800" <= character <= "\udfff" for character in every):
        return Reason.NOT_UTF8
    if not product or not item:
        return Reason.EMPTY_ID
    if domain not in DOMAINS:
        return Reason.DOMAIN
    if split not in (*SPLITS, ""):
        return Reason.SPLIT
    if time and not (time.isascii() and time.isdigit() and len(time) <= 19 and int(time) <= INT64_MAX):
        return Reason.NUMBER
    if fault := next(filter(None, map(path_fault, names)), None):
        return fault
    return TableRow(split, domain, product, item, text, tuple((name, int(time) if time else None) for name in names))


def _images(values: Mapping[str, Any]) -> list[Any] | None:
    """Returns the names of a row's images as they stand there, None where they are neither a list nor text."""
    if "image" in values:
        return [] if _is_none(values["image"]) else [values["image"]]
    images = values.get("images")
    if _is_none(images):
        return []
    if isinstance(images, str):
        return images.split(SEPARATOR)
    return images if isinstance(images, list) else None


def _is_none(value: Any) -> bool:
    """Whether a row says nothing here, as one that gives a text alone does of images; a gap may also be NaN."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _spelled(value: Any) -> str:
    """Returns a value as text: "" for none, and "7" for the 7.0 that a column of numbers with gaps has for a 7."""
    if _is_none(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def path_fault(name: str) -> Reason | None:
    """Returns why `name` is no path inside a folder, with "/" between its parts, or None."""
    if not name:
        return Reason.EMPTY_NAME
    parts = name.split("/")
    if "\\" in name or any(part in ("", ".", "..") for part in parts):
        return Reason.PATH
    if len(name.encode()) > _PATH_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        return Reason.LONG_NAME
    return None
