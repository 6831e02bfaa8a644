"""Reads the rows of tables in Parquet, CSV or JSON Lines, the last two also compressed with gzip, in bounded memory.

Upper and lower case in names of columns are the same. Columns other than `COLUMNS` are read if they have text or
numbers. A row may have `MAX_LINE_BYTES`, like a line of a release.
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.catalog.rejected_lines import Reason
from data_prep.catalog.release_parser import MAX_LINE_BYTES, START_BYTES

REQUIRED_COLUMNS = ("product", "item")
COLUMNS = (*REQUIRED_COLUMNS, "domain", "split", "text", "images", "image", "time")
DELIMITERS = ",;\t"  # of CSV; spreadsheets write the others in some countries and as "Unicode text"

_CLIP_COLUMNS = ("video", "start", "end")
_EXACT_FLOATS = {pa.float16(): 2**11, pa.float32(): 2**24}  # type → largest number up to which it counts
_PARQUET_ROWS = 1024  # rows read at once, fewer if they are long
_PARQUET_BATCH_BYTES = 64 << 20
_MAX_GROUP_BYTES = 1 << 30  # of the columns read in a row group, decoded

Values = Mapping[str, object]


def read_rows(path: Path) -> Iterator[tuple[int, str | Values, Values | Reason]]:
    """Yields (line, values or the start of the line, values or the reason why the row is invalid).

    Parquet rows count as lines, from 1. The lines of a folder's files are numbered consecutively.

    Raises:
        ValueError: A file cannot be read as a table, or columns are missing or given twice.
    """
    first = 0
    for file in table_files(path):
        line = 0
        with _reading(file):
            for line, start, values in _READERS[_format(file)](file):
                yield first + line, start, values
        first += line


def table_files(path: Path) -> list[Path]:
    """Returns the file of a table, or the part files of a folder in the order of their names."""
    if not path.exists():
        raise ValueError(f"table {path.absolute()} not found")
    files = [path]
    if path.is_dir():  # without files such as _SUCCESS and .part-0.parquet.crc
        files = sorted(part for part in path.iterdir() if not part.name.startswith((".", "_")))
    formats = ", ".join(f"*{suffix}" for suffix in (*_READERS, ".csv.gz", ".jsonl.gz"))
    if not files:
        raise ValueError(f"table {path.absolute()} is an empty folder: it needs part files ({formats})")
    for file in files:
        if file.is_dir() or _format(file) not in _READERS:
            raise ValueError(f"unknown format of table {file}: choose from {formats}")
        with _reading(file):
            _check_content(file)
    return files


def _format(path: Path) -> str:
    """Returns the suffix of a table, without that of its compression."""
    suffix, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    return inner if suffix == ".gz" and inner != ".parquet" else suffix


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"cannot unpack {path}; it may be cut off or damaged: {error}") from error


def _check_content(path: Path) -> None:
    """Raises ValueError for a file that is something else than its suffix says."""
    with _open(path) as file:
        head = file.read(START_BYTES)
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is only the Git LFS pointer of the table: run `git lfs pull` to get the table")
    if path.suffix.lower() == ".parquet":
        return
    if head.startswith((b"PK\x03\x04", b"\x1f\x8b", b"\xd0\xcf\x11\xe0", b"PAR1")):
        raise ValueError(f"{path} is a workbook, Parquet or a compressed file: unpack it, export it or fix its suffix")
    if b"\0" in head[:4] and _encoding(path) != "utf-16":
        raise ValueError(f"{path} begins with NUL bytes, as UTF-16 or UTF-32 text does: save it as UTF-8")


def _encoding(path: Path) -> str:
    with _open(path) as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _column_name(name: object) -> str:
    return str(name).strip('\ufeff \t\r\n"').lower()


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    problems = [f"no column {column}" for column in REQUIRED_COLUMNS if column not in columns]
    problems += [f"column {name} is given twice" for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
    if {"images", "image"} <= {*columns} or not {"images", "image", "video"} & {*columns}:
        problems.append("needs either a column images (one row per item) or image (one row per image), or a video")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}; its columns are {', '.join(columns)}")


def _read_parquet(path: Path) -> Iterator[tuple[int, str | Values, Values | Reason]]:
    try:
        with path.open("rb") as source, pq.ParquetFile(source) as file:
            _check_columns(path, [_column_name(name) for name in file.schema_arrow.names])
            fields = [
                field
                for field in file.schema_arrow
                if _column_name(field.name) in (*COLUMNS, *_CLIP_COLUMNS)
                or (_is_readable(field.type) and not _is_list(field.type))
            ]
            rows = _plan_batches(path, file, fields)
        # As dictionaries, a text of many rows is in memory once.
        leaves = [file.schema.column(i) for i in range(len(file.schema))]
        texts = [leaf.path for leaf in leaves if leaf.converted_type == "UTF8"]
        with path.open("rb") as source, pq.ParquetFile(source, read_dictionary=texts) as file:
            line = 0
            for batch in file.iter_batches(rows, columns=[field.name for field in fields]):
                columns = {_column_name(name): _widen(batch.column(name)) for name in batch.schema.names}
                sizes = np.sum([_row_bytes(column) for column in columns.values()], axis=0)
                for values in _decode_rows(columns, sizes):
                    line += 1
                    yield line, "" if isinstance(values, Reason) else values, values
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot read {path} as Parquet; it may be cut off or damaged: {error}") from error


def _decode_rows(columns: Mapping[str, pa.Array], sizes: np.ndarray) -> Iterator[Values | Reason]:
    """Yields the values of each row, or why it is invalid; in parts if they are large or if some are not UTF-8."""
    rows, decoded = len(sizes), None
    if sizes.sum() <= max(MAX_LINE_BYTES, _PARQUET_BATCH_BYTES if rows > 1 else 0):
        with contextlib.suppress(UnicodeDecodeError):
            decoded = [_without_dictionary(column).to_pylist() for column in columns.values()]
    if decoded is not None:
        for size, *values in zip(sizes.tolist(), *decoded, strict=True):
            yield Reason.LONG_LINE if size > MAX_LINE_BYTES else dict(zip(columns, values, strict=True))
    elif rows == 1:
        yield Reason.LONG_LINE if sizes[0] > MAX_LINE_BYTES else _decode_row(columns)
    else:
        for part in (slice(0, rows // 2), slice(rows // 2, rows)):
            yield from _decode_rows({name: column[part] for name, column in columns.items()}, sizes[part])


def _decode_row(columns: Mapping[str, pa.Array]) -> Values | Reason:
    """Decodes a single row; a text that is not UTF-8 makes it invalid only in one of COLUMNS."""
    values = {}
    for name, column in columns.items():
        try:
            (values[name],) = _without_dictionary(column).to_pylist()
        except UnicodeDecodeError:
            if name in COLUMNS:
                return Reason.NOT_UTF8
            values[name] = None
    return values


def _without_dictionary(column: pa.Array) -> pa.Array:
    """Returns a column with plain values, which pyarrow converts to Python much faster."""
    if isinstance(column, pa.DictionaryArray):
        return column.dictionary_decode()
    if isinstance(column, (pa.ListArray, pa.LargeListArray)) and pa.types.is_dictionary(column.type.value_type):
        make = pa.list_ if isinstance(column, pa.ListArray) else pa.large_list
        return column.cast(make(column.type.value_type.value_type))
    return column


def _plan_batches(path: Path, file: pq.ParquetFile, fields: Sequence[pa.Field]) -> int:
    """Returns the number of rows to read at once; raises ValueError for columns that are no table's."""
    for field in fields:
        if not _is_readable(field.type):
            raise ValueError(f"{path}: column {field.name} has type {field.type}, but must have text or numbers")
    names = {field.name for field in fields}
    rows = _PARQUET_ROWS
    for i in range(file.num_row_groups):
        group = file.metadata.row_group(i)
        chunks = [group.column(j) for j in range(group.num_columns)]
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in names)
        if size > min(max(group.num_rows * MAX_LINE_BYTES, _PARQUET_BATCH_BYTES), _MAX_GROUP_BYTES):
            raise ValueError(
                f"{path}: row group {i} has {size:,} bytes in {group.num_rows:,} rows, but a row may have "
                f"{MAX_LINE_BYTES:,} and a group {_MAX_GROUP_BYTES:,}: shorten the texts or write smaller row groups"
            )
        rows = min(rows, max(1, _PARQUET_BATCH_BYTES * group.num_rows // max(size, 1)))
    return max(rows, 1)


def _is_readable(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind) or _is_list(kind):
        return _is_readable(kind.value_type)
    checks = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_decimal)
    return types.is_boolean(kind) or types.is_null(kind) or any(check(kind) for check in checks)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _widen(column: pa.Array) -> pa.Array:
    """Returns short floats as float64; those that may have lost digits become infinite."""
    if column.type not in _EXACT_FLOATS:
        return column
    wide = column.cast(pa.float64())
    return pc.if_else(pc.greater(pc.abs(wide), float(_EXACT_FLOATS[column.type])), math.inf, wide)


def _row_bytes(column: pa.Array) -> np.ndarray:
    """Returns the size of each row's text, int64 [rows]."""
    if isinstance(column, (pa.ListArray, pa.LargeListArray)):
        sizes = np.cumsum(_row_bytes(column.flatten()) + 1)
        ends = np.cumsum(column.value_lengths().fill_null(0).to_numpy())
        return np.diff(np.concatenate(([0], sizes))[np.concatenate(([0], ends))])
    if isinstance(column, pa.DictionaryArray):
        sizes = pa.array(_row_bytes(column.dictionary))
        return sizes.take(column.indices).fill_null(0).to_numpy()
    if isinstance(column, (pa.StringArray, pa.LargeStringArray)):
        return pc.binary_length(column).fill_null(0).cast(pa.int64()).to_numpy()
    return np.zeros(len(column), np.int64)


class _CsvLines:
    """Lines of a text file for `csv.reader`; a row that is too long is an error before it is in memory."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.number = file, 0
        self.start_row()

    def start_row(self) -> None:
        """Forgets the lines of the last row."""
        self.first, self.start, self.size = self.number + 1, "", 0

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        limit = MAX_LINE_BYTES + 1
        line = rest = self.file.readline(limit)
        if not line:
            raise StopIteration
        self.number += 1
        self.start = (self.start + line)[:START_BYTES]
        self.size += len(line)
        while len(rest) == limit and not rest.endswith("\n"):
            at_end = rest.endswith("\r")
            rest = self.file.readline(limit)
            self.number += at_end and rest != "\n"  # the line had ended, and the next one is lost as well
        if self.size > MAX_LINE_BYTES:
            raise csv.Error(f"a row is longer than the limit of {MAX_LINE_BYTES} characters")
        return line


def _read_csv(path: Path) -> Iterator[tuple[int, str | Values, Values | Reason]]:
    rows = read_fields(path, _find_delimiter)
    _, _, header = next(rows)
    columns = [_column_name(column) for column in header]
    _check_columns(path, columns)
    for lines, start, fields in rows:
        if isinstance(fields, Reason):
            # An unmatched quote takes all lines up to the next quote into its field: each of them is lost.
            yield from ((lost, start, fields) for lost in lines)
        else:
            values = dict(zip(columns, fields, strict=True))
            yield lines[0], values, values


def read_fields(path: Path, find_delimiter: Callable[[str], str]) -> Iterator[tuple[range, str, list[str] | Reason]]:
    """Yields (lines, start of the row, its fields or the reason why it is invalid) of a CSV file, first of its header.

    Args:
        path: File in UTF-8, or in UTF-16 with a byte order mark. Bytes that are not UTF-8 become surrogates.
        find_delimiter: Returns the delimiter of a header line.

    Raises:
        ValueError: The header cannot be read, or the file is not UTF-16 although it begins like it.
    """
    limit = csv.field_size_limit(MAX_LINE_BYTES)  # a setting of the process, restored below
    try:
        encoding = _encoding(path)
        with _open(path) as source, io.TextIOWrapper(source, encoding, "surrogateescape", newline="") as file:
            delimiter = find_delimiter(file.readline(MAX_LINE_BYTES))
            file.seek(0)
            lines = _CsvLines(file)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            try:
                header = next(reader, [])
            except csv.Error as error:
                raise ValueError(f"{path}: cannot read the header: {error}") from error
            yield range(1, lines.number + 1), lines.start, header
            lines.start_row()
            while (fields := _next_fields(reader)) is not None:
                if isinstance(fields, list) and fields and len(fields) != len(header):
                    fields = Reason.FIELDS
                if fields:
                    yield range(lines.first, lines.number + 1), lines.start, fields
                lines.start_row()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} begins like UTF-16 but is not: save it as CSV UTF-8 ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _find_delimiter(header: str) -> str:
    """Returns the delimiter that separates the required columns in a header, "," if there is none."""
    for delimiter in DELIMITERS:
        if {*REQUIRED_COLUMNS} <= {_column_name(column.replace('"', "")) for column in header.split(delimiter)}:
            return delimiter
    return ","


def _next_fields(reader: Iterator[list[str]]) -> list[str] | Reason | None:
    """Returns the fields of the next row, the reason why it is invalid, or None at the end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        return Reason.LONG_LINE if "limit" in str(error) else Reason.QUOTES


def _read_jsonl(path: Path) -> Iterator[tuple[int, str | Values, Values | Reason]]:
    if _encoding(path) == "utf-16":
        raise ValueError(f"{path} is UTF-16: save it as UTF-8")
    columns: dict[str, None] = {}  # of all rows, because writers leave out missing values
    number, limit = 0, MAX_LINE_BYTES + 2
    with _open(path) as file:
        while line := file.readline(limit):
            number += 1
            rest = line
            while len(rest) == limit and not rest.endswith(b"\n"):
                rest = file.readline(limit)
            if not line.strip():
                continue
            if not columns and line.lstrip(codecs.BOM_UTF8 + b" \t").startswith(b"["):
                raise ValueError(
                    f"{path}, line {number}: a JSON array; write one object per line: jq -c '.[]' ARRAY > items.jsonl"
                )
            values = Reason.LONG_LINE if len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES else _parse_json(line)
            if isinstance(values, Reason):
                yield number, line[:START_BYTES].decode(errors="replace").rstrip("\r\n"), values
            else:
                columns |= dict.fromkeys(values)
                yield number, values, values
    if columns:
        _check_columns(path, list(columns))


def _parse_json(line: bytes) -> dict[str, object] | Reason:
    """Returns the columns of a JSON object, or the reason why the line is invalid."""
    repeated = False

    def read_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal repeated
        values: dict[str, object] = {}
        for name, value in pairs:
            column = _column_name(name)
            repeated |= column in values
            values[column] = value
        return values

    try:
        values = json.loads(line.decode().lstrip("\ufeff"), object_pairs_hook=read_object)
    except UnicodeDecodeError:
        return Reason.NOT_UTF8
    except (ValueError, RecursionError):  # also raised for numbers of thousands of digits and deep nesting
        return Reason.NOT_JSON
    if not isinstance(values, dict):
        return Reason.NOT_JSON
    return Reason.REPEATED if repeated else values


_READERS = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
}
