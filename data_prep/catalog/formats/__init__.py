"""Exports of shops (Shopify, WooCommerce, Magento, Google Merchant) as tables.

A column map is a TOML file. Its keys are columns of the table, its values the columns of the export that they come
from: one, or several, of which the first that is not empty counts (of images: all). `skip` lists values of rows to
leave out. Each image becomes an item of its own, "MH01", "MH01-2", …; only the first has the text.

Parquet tables with embedded images in the layout of Hugging Face are unpacked into a table and a folder.
"""

import collections
import csv
import hashlib
import html
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from data_prep.catalog.table_reader import REQUIRED_COLUMNS, table_files
from data_prep.common.files import atomic_write
from data_prep.common.parquet import open_parquet

FORMATS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}
_NEEDED = (*REQUIRED_COLUMNS, "images")
_IMAGE_ROWS = 64  # rows with embedded images in memory at once
_PRICE = re.compile(r"(?:[A-Z]{3} )?(\d+(?:\.\d+)?)(?: [A-Z]{3})?")  # "52.00 USD"


def convert_export(source: Path, name: str, target: Path) -> int:
    """Writes the items of an export as a table of JSON lines.

    Args:
        source: CSV file, or tab-separated text.
        name: One of FORMATS, or the path of a column map.
        target: File to write.

    Returns:
        The number of items.

    Raises:
        ValueError: The map is invalid, or the export lacks its columns.
    """
    columns, skip = _read_map(name)
    with source.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter="\t" if "\t" in header else ",")
        given = {_key(column): column for column in reader.fieldnames or ()}
        if missing := [key for key in _NEEDED if not any(column in given for column in columns[key])]:
            wanted = "; ".join(f"{key} from {' or '.join(columns[key])}" for key in missing)
            raise ValueError(f"{source} is not an export of {name}: it lacks {wanted}; it has {', '.join(given)}")
        rows = ({_key(column): (value or "").strip() for column, value in row.items() if column} for row in reader)
        kept = (row for row in rows if not any(row.get(column) in values for column, values in skip.items()))
        items = [json.dumps(item, ensure_ascii=False) for item in _items(kept, columns)]
    with atomic_write(target, "w") as out:
        out.writelines(f"{item}\n" for item in items)
    return len(items)


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
                    for image in value if isinstance(value, list) else filter(None, [value]):
                        suffix = Path(image["path"] or "").suffix or ".jpg"
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


def _items(rows: Iterator[Mapping[str, str]], columns: Mapping[str, list[str]]) -> Iterator[dict[str, object]]:
    """Yields the items of rows, one per image."""
    images: dict[str, set[str]] = collections.defaultdict(set)  # of the items so far
    for row in rows:
        values = {key: next(filter(None, (row.get(name) for name in names)), "") for key, names in columns.items()}
        names = [name.strip().lstrip("/") for column in columns["images"] for name in row.get(column, "").split(",")]
        values |= {key: html.unescape(values[key]) for key in ("text", "title") if key in values}  # "&trade;"
        item, text = values.pop("item"), values.pop("text", "")
        values["price"] = _PRICE.sub(r"\1", values.get("price", ""))
        for name in dict.fromkeys(names):
            if not name or name in images[item]:
                continue
            images[item].add(name)
            number = len(images[item])
            own = {"item": item if number == 1 else f"{item}-{number}", "text": text if number == 1 else ""}
            yield {**values, **own, "images": [name]}
