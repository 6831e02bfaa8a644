"""Parses the rows of tables of products."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.catalog.rejected_lines import Reason
from data_prep.catalog.release_parser import INT64_MAX, check_path
from data_prep.catalog.table_reader import COLUMNS, Values, read_rows
from data_prep.common.domains import is_domain_name
from data_prep.videos.clip_names import ClipName

SPLITS = ("train", "val", "test")
DEFAULT_DOMAIN = "page"  # of all rows of a table without a column `domain`
SEPARATOR = "|"  # between the names in a string of images

_NO_ID = frozenset({"", "nan", "none", "null", "<na>", "nat", "#n/a"})  # how programs write a missing value
_MAX_EXACT_FLOAT = 2**53  # larger whole numbers have no float of their own
_SCIENTIFIC = re.compile(r"[+-]?\d+([.,]\d+e[+-]?|e[+-])\d+", re.IGNORECASE)  # 6.97E+12, but not the code 12E3
_URL = re.compile(r"https?://[^\s\\]{1,4000}")
_SECONDS = re.compile(r"\d{1,9}(\.\d*)?")
_FLOAT = re.compile(r"[+-]?(\d+)\.0*")


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a table: ids as written there, "" for missing values, and (name, time or None) of each image or clip.

    `payload` is a JSON object of the other columns, all as text, under names like "variant_price"; "" without any.
    """

    split: str
    domain: str
    product: str
    item: str
    text: str
    images: tuple[tuple[str, int | None], ...]
    payload: str = ""


def read_table(path: Path) -> Iterator[tuple[int, str | Values, TableRow | Reason]]:
    """Yields (line, values or the start of the line, row or the reason why it is invalid), as `read_rows` does."""
    for line, start, values in read_rows(path):
        yield line, start, values if isinstance(values, Reason) else parse_row(values)


def parse_row(values: Values) -> TableRow | Reason:
    """Returns the content of a row, or the reason why it is invalid.

    `{"product": "A-1", "domain": "page", "item": 7, "images": "a.jpg|b/c.jpg"}` gives
    `TableRow("", "page", "A-1", "7", "", (("a.jpg", None), ("b/c.jpg", None)))`.
    """
    fields = [values.get(name) for name in ("split", "domain", "product", "item", "text", "time")]
    images = _images(values)
    is_clip = images == [] and not _is_missing(values.get("video"))
    if is_clip:
        images = [values["video"]]
    if images is None or any(isinstance(value, (list, dict, bytes)) for value in (*fields, *images)):
        return Reason.TYPE
    split, domain, product, item, text, time = map(_string, fields)
    names = [_string(image).replace("\\", "/") for image in images]  # as Windows writes paths
    payload = _payload(values)
    characters = "".join((split, domain, product, item, text, *names, *payload.values()))
    if "\0" in characters:
        return Reason.NUL
    if any("\ud800" <= character <= "\udfff" for character in characters):
        return Reason.NOT_UTF8
    if {product.lower(), item.lower()} & _NO_ID:
        return Reason.EMPTY_ID
    if any(_has_lost_digits(values.get(name)) for name in ("product", "item", "time")):
        return Reason.LOST_DIGITS
    if "domain" not in values:
        domain = DEFAULT_DOMAIN
    if not is_domain_name(domain):
        return Reason.DOMAIN
    if split not in (*SPLITS, ""):
        return Reason.SPLIT
    if time and not (time.isascii() and time.isdigit() and len(time) <= 19 and int(time) <= INT64_MAX):
        return Reason.NUMBER
    if reason := next(filter(None, map(_check_name, names)), None):
        return reason
    if is_clip:
        if not (span := _clip_span(values)):
            return Reason.TIMES
        names = [str(ClipName(names[0], *span))]
    frames = tuple((name, int(time) if time else None) for name in names)
    return TableRow(split, domain, product, item, text, frames, json.dumps(payload, ensure_ascii=False) * bool(payload))


def _payload(values: Values) -> dict[str, str]:
    """Returns the columns that have no meaning of their own and are not empty."""
    fields = {re.sub(r"\W+", "_", name).strip("_"): value for name, value in values.items() if name not in COLUMNS}
    texts = {name: _string(value) for name, value in fields.items() if not isinstance(value, (list, dict, bytes))}
    return {name: text for name, text in texts.items() if name and name not in COLUMNS and text}


def _clip_span(values: Values) -> tuple[float, float | None] | None:
    """Returns start and end of a clip in seconds, or None if they are not valid; a missing end is that of the video."""
    start, end = _string(values.get("start")) or "0", _string(values.get("end"))
    if not all(_SECONDS.fullmatch(time) for time in (start, end or "0")):
        return None
    span = float(start), float(end) if end else None
    return span if span[1] is None or span[0] < span[1] else None


def _check_name(name: str) -> Reason | None:
    """Returns the reason why an image has no valid name: a path, or the URL of an image of img2dataset, or None."""
    reason = check_path(name)
    return None if reason == Reason.PATH and _URL.fullmatch(name) else reason


def _images(values: Values) -> list[object] | None:
    """Returns the names of a row's images as given, or None if they are neither a list nor a string."""
    if "image" in values:
        return [] if _is_missing(values["image"]) else [values["image"]]
    images = values.get("images")
    if _is_missing(images):
        return []
    if isinstance(images, str):
        return list(names.split(SEPARATOR)) if (names := images.strip(f"{SEPARATOR} \t\r\n")) else []
    return images if isinstance(images, list) else None


def _has_lost_digits(value: object) -> bool:
    """Returns whether a number went through a float or a spreadsheet that may have changed its digits."""
    if isinstance(value, float):
        return abs(value) > _MAX_EXACT_FLOAT
    text = _string(value)
    whole = _FLOAT.fullmatch(text)
    return bool(_SCIENTIFIC.fullmatch(text)) or (whole is not None and int(whole[1][:20]) > _MAX_EXACT_FLOAT)


def _is_missing(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())  # NaN is a gap, too


def _string(value: object) -> str:
    """Returns a value as text: "" if missing, and "7" for 7.0, because columns of numbers with gaps hold floats."""
    if _is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
