"""Exports of shops (Shopify, WooCommerce, Magento, Google Merchant) as tables.

A column map is a TOML file. Its keys are columns of the table, its values the columns of the export that they come
from: one, or several, of which the first that is not empty counts (of images: all). `skip` lists values of rows to
leave out. Each image becomes an item of its own, "MH01", "MH01-2", … without those that are ids of other items; only
the first has the text.

Parquet tables with embedded images in the layout of Hugging Face are unpacked into a table and a folder.
"""

import collections
import hashlib
import html
import itertools
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import partial
from pathlib import Path

import pyarrow as pa

from data_prep.catalog.rejected_lines import Reason, RejectedLines, write_rejected
from data_prep.catalog.table_reader import DELIMITERS, REQUIRED_COLUMNS, read_fields, table_files
from data_prep.common.files import atomic_write
from data_prep.common.parquet import open_parquet

FORMATS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}
_NEEDED = (*REQUIRED_COLUMNS, "images")
_IMAGE_ROWS = 64  # rows with embedded images in memory at once
_PRICE = re.compile(r"(?:[A-Z]{3} )?(\d+(?:\.\d+)?)(?: [A-Z]{3})?")  # "52.00 USD"

Row = Mapping[str, list[str]]  # the values of each column, which may be given more than once


def convert_export(source: Path, name: str, target: Path, max_rejected: float) -> tuple[int, RejectedLines]:
    """Writes the items of an export as a table of JSON lines, and a list of the rows that cannot be read.

    Args:
        source: CSV file, or tab-separated text.
        name: One of FORMATS, or the path of a column map.
        target: File to write.
        max_rejected: Fraction of rows that may be invalid; one row in any case, unless it is 0.

    Returns:
        The number of items, and the rows that cannot be read and are left out.

    Raises:
        ValueError: The map is invalid, the export lacks its columns, or too many rows are invalid.
    """
    columns, skip = _read_map(name)
    starts: dict[int, str] = {}  # of invalid rows
    rejected = RejectedLines(
        "", source.name, max_rejected, lambda lines: {line: starts[line] for line in lines.tolist()}, max_rejected > 0
    )
    ids = set()
    for lines, start, row in _read_rows(source, name, columns):
        rejected.lines += len(lines)
        if isinstance(row, Reason):
            rejected.add(row, lines)
            starts |= dict.fromkeys(lines, start.rstrip("\r\n"))
        else:
            ids.add(_values(row, columns)["item"])
    rejected.check()
    rejected_file(target).unlink(missing_ok=True)
    if rejected.invalid:
        write_rejected(rejected_file(target), [rejected])
    valid = (row for _, _, row in _read_rows(source, name, columns) if not isinstance(row, Reason))
    kept = (row for row in valid if not any({*row.get(column, ())} & {*values} for column, values in skip.items()))
    count = 0
    with atomic_write(target, "w") as out:
        for item in _items(kept, columns, ids):
            out.write(f"{json.dumps(item, ensure_ascii=False)}\n")
            count += 1
    return count, rejected


def rejected_file(target: Path) -> Path:
    """Returns the list of the rows of an export that are left out of a table: items.rejected.jsonl for items.jsonl."""
    return target.with_suffix(".rejected.jsonl")


def _read_rows(source: Path, name: str, columns: Mapping[str, list[str]]) -> Iterator[tuple[range, str, Row | Reason]]:
    """Yields (lines, start of the row, its values or the reason why it is invalid) of an export."""
    rows = read_fields(source, lambda header: max(DELIMITERS, key=header.count))
    given = [_key(column) for column in next(rows)[2]]
    if missing := [key for key in _NEEDED if not any(column in given for column in columns[key])]:
        wanted = "; ".join(f"{key} from {' or '.join(columns[key])}" for key in missing)
        raise ValueError(f"{source} is not an export of {name}: it lacks {wanted}; it has {', '.join(given)}")
    for lines, start, fields in rows:
        if isinstance(fields, Reason):
            yield lines, start, fields
        elif not _is_utf8("".join(fields)):
            yield lines, start, Reason.NOT_UTF8
        else:
            row = collections.defaultdict(list)
            for column, value in zip(given, fields, strict=True):
                row[column].append(value.strip())
            yield lines, start, row


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def unpack_images(table: Path, target: Path) -> Path | None:
    """Writes Parquet files with embedded images as a table of JSON lines and a folder of images.

    Their column `image` or `images` has structs, or lists of structs, with `bytes` and `path`. An item without an id is
    named by its image.

    Returns:
        The folder, `target` with the suffix .images; None for other tables, of which nothing is written.
    """
    files = table_files(table)
    if not all(file.suffix.lower() == ".parquet" and "bytes" in _image_fields(file) for file in files):
        return None
    folder = target.with_suffix(".images")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(target, "w") as out:
        for file in files:
            with open_parquet(file) as parquet:
                for row in (row for batch in parquet.iter_batches(_IMAGE_ROWS) for row in batch.to_pylist()):
                    value = row.pop("image", None) or row.pop("images", None)
                    row["images"] = []
                    for image in filter(None, value if isinstance(value, list) else [value]):
                        if image["bytes"] is None:
                            raise ValueError(f"{file}: an image has no bytes, only the path {image.get('path')!r}")
                        suffix = Path(image.get("path") or "").suffix or ".jpg"
                        row["images"].append(hashlib.sha256(image["bytes"]).hexdigest()[:32] + suffix)
                        (folder / row["images"][-1]).write_bytes(image["bytes"])
                    out.write(
                        json.dumps({"item": row["images"][0] if row["images"] else "", **row}, default=str) + "\n"
                    )
    return folder


def _image_fields(file: Path) -> set[str]:
    """Returns the names of the fields of the structs in a column of images."""
    with open_parquet(file) as parquet:
        kinds = [field.type for field in parquet.schema_arrow if field.name in ("image", "images")]
    values = [kind.value_type if pa.types.is_list(kind) else kind for kind in kinds]
    return {field.name for value in values if pa.types.is_struct(value) for field in value}


def _key(column: str) -> str:
    return re.sub(r"\W+|_", " ", column).strip().lower()


def _read_map(name: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    path = FORMATS.get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"unknown format {name!r}: choose {', '.join(FORMATS)}, or name a TOML file with a column map")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    skip = content.pop("skip", {})
    columns = {key: [value] if isinstance(value, str) else value for key, value in content.items()}
    lists = [*columns.values(), *(skip.values() if isinstance(skip, dict) else [None])]
    valid = all(isinstance(values, list) and all(isinstance(value, str) for value in values) for values in lists)
    if not valid or set(_NEEDED) - columns.keys():
        raise ValueError(f"{path} must name columns for {', '.join(_NEEDED)}, as texts or lists of texts")
    found = {key: [_key(value) for value in values] for key, values in columns.items()}
    return found, {_key(column): values for column, values in skip.items()}


def _items(rows: Iterable[Row], columns: Mapping[str, list[str]], ids: Set[str]) -> Iterator[dict[str, object]]:
    """Yields the items of rows, one per image; `ids` are those of the rows, which further images do not get."""
    images: dict[str, set[str]] = collections.defaultdict(set)  # of the items so far
    first: dict[str, dict[str, str]] = collections.defaultdict(dict)  # what rows up to the first image say of an item
    numbers: dict[str, Iterator[int]] = collections.defaultdict(partial(itertools.count, 2))
    for row in rows:
        values, names = _values(row, columns), _image_names(row, columns["images"])
        item = values["item"]
        if not images[item]:
            first[item] |= {key: value for key, value in values.items() if value and key not in first[item]}
        for name in names:
            if name in images[item]:
                continue
            if images[item]:
                own = {"text": "", "item": next(new for n in numbers[item] if (new := f"{item}-{n}") not in ids)}
            else:
                own = first.pop(item)
            images[item].add(name)
            yield {**values, **own, "images": [name]}


def _image_names(row: Row, columns: list[str]) -> list[str]:
    """Returns the names of a row's images, each of them once."""
    cells = [cell for column in columns for cell in row.get(column, ())]
    names = (name.strip().lstrip("/") for cell in cells for name in cell.split(","))
    return list(dict.fromkeys(filter(None, names)))


def _values(row: Row, columns: Mapping[str, list[str]]) -> dict[str, str]:
    """Returns the values of a row for the columns of a table other than images."""
    given = {key: [value for name in names for value in row.get(name, ())] for key, names in columns.items()}
    values = {key: next(filter(None, cells), "") for key, cells in given.items() if key != "images"}
    values |= {key: html.unescape(values[key]) for key in ("text", "title") if key in values}  # "&trade;"
    return values | {"price": _PRICE.sub(r"\1", values.get("price", ""))}
