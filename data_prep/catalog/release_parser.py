"""The text files of a release, and a parser for them, which may have a hundred million lines each.

A split has nine files: of pairs, of texts and of frames for each domain. A line is a row of comma-separated fields, in
any order. Ids are unique within a domain only: page 7 and video 7 are different items.

Arrow's kernels parse the regular lines of a block at once. Lines that they may misjudge go through `parse_line` one by
one, so that the result is always that of `parse_line`. Only "\\n" ends a line, because texts contain U+2028 and the
like. Whitespace around fields and blank lines are ignored.
"""

import codecs
import collections
import dataclasses
import functools
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.catalog.rejected_lines import MAX_PRODUCT_ID, Reason

NO_TEXT = "空"  # how a missing text is written
PREFIXES = {"train": "training_", "test": "test_"}
# Domain → names of its files of pairs, texts and frames, between the prefix and ".txt".
FILES = {
    "page": ("product_pages_pair", "page_titles", "page_images"),
    "video": ("product_videos_pair", "video_asrs", "video_frames"),
    "live": ("product_lives_pair", "live_asrs", "live_clips"),
}

BLOCK_BYTES = 8 << 20
START_BYTES = 200  # kept of a rejected line
THREADS = 2  # Arrow's kernels release the GIL; DuckDB's sort takes the other cores
MAX_LINE_BYTES = 1 << 20  # hours of speech; a longer line means a file without line ends
MAX_NAME_BYTES = 255  # longest file name on common file systems
MAX_PATH_BYTES = 4095  # longest path on common systems
INT64_MAX = 2**63 - 1
_WHOLE_NUMBER = re.compile(r"[0-9]{1,19}")  # int() also accepts signs, underscores and digits of other scripts


class DomainFiles(NamedTuple):
    """The three files of a domain in one split."""

    pairs: Path
    texts: Path
    frames: Path


def release_files(directory: Path | str, split: str, *, prefix: str | None = None) -> dict[str, DomainFiles]:
    """Returns domain → paths of its three files; raises ValueError listing those that are missing.

    `prefix` starts the file names, by default that of the split in `PREFIXES`.
    """
    directory = Path(directory)
    if prefix is None:
        if split not in PREFIXES:
            raise ValueError(f"unknown split {split!r}: choose from {', '.join(PREFIXES)}, or give a file prefix")
        prefix = PREFIXES[split]
    files = {
        domain: DomainFiles(*(directory / f"{prefix}{name}.txt" for name in names)) for domain, names in FILES.items()
    }
    if missing := [path.name for group in files.values() for path in group if not path.is_file()]:
        raise ValueError(
            f"split {split!r}: {', '.join(missing)} not found in {directory.absolute()}; "
            f"a split has nine files that start with {prefix!r}"
        )
    return files


@dataclasses.dataclass(frozen=True)
class Layout:
    """Fields of the lines of a file."""

    numbers: tuple[str, ...]  # names of the whole numbers, which come first
    last: Literal["text", "name"] | None = None  # name and kind of the field after them; a text may contain commas

    @property
    def fields(self) -> int:
        """Number of fields."""
        return len(self.numbers) + (self.last is not None)

    @property
    def maxima(self) -> tuple[int, ...]:
        """Largest value of each of `numbers`."""
        return tuple(MAX_PRODUCT_ID if name == "product_id" else INT64_MAX for name in self.numbers)

    @property
    def max_splits(self) -> int:
        """Number of commas that separate fields, -1 for all."""
        return 1 if self.last == "text" else -1


PAIRS = Layout(("product_id", "item_id"))
TEXTS = Layout(("item_id",), "text")
PAGE_FRAMES = Layout(("item_id",), "name")
CLIP_FRAMES = Layout(("item_id", "time"), "name")
LAYOUTS = {  # of a domain's files of pairs, texts and frames
    "page": (PAIRS, TEXTS, PAGE_FRAMES),
    "video": (PAIRS, TEXTS, CLIP_FRAMES),
    "live": (PAIRS, TEXTS, CLIP_FRAMES),
}


def parse_line(layout: Layout, line: bytes) -> tuple[int | str, ...] | Reason | None:
    """Returns the fields of a line, the reason why it is invalid, or None if it is blank.

    `parse_line(CLIP_FRAMES, b"7, 240, a.jpg \\r\\n")` returns `(7, 240, "a.jpg")`; for `b"7, a.jpg\\n"` it returns
    `Reason.FIELDS`. A missing text is "".
    """
    if len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
        return Reason.LONG_LINE
    try:
        row = line.decode()
    except UnicodeDecodeError:
        return Reason.NOT_UTF8
    if "\0" in row:
        return Reason.NUL
    if not row.strip():
        return None
    fields = [field.strip() for field in row.split(",", maxsplit=layout.max_splits)]
    if len(fields) != layout.fields:
        return Reason.FIELDS
    numbers, rest = fields[: len(layout.numbers)], fields[len(layout.numbers) :]
    if any(_WHOLE_NUMBER.fullmatch(number) is None or int(number) > INT64_MAX for number in numbers):
        return Reason.NUMBER
    if any(int(number) > largest for number, largest in zip(numbers, layout.maxima, strict=True)):
        return Reason.LARGE_PRODUCT
    if layout.last == "name" and (reason := Reason.PATH if "/" in rest[0] else check_path(rest[0])):
        return reason
    if layout.last == "text" and rest[0] == NO_TEXT:
        rest = [""]
    return *map(int, numbers), *rest


def check_path(path: str) -> Reason | None:
    """Returns the reason why `path` is not a path inside a folder, with "/" between its parts, or None if it is."""
    if not path:
        return Reason.EMPTY_NAME
    parts = path.split("/")
    if "\\" in path or any(part in ("", ".", "..") for part in parts):
        return Reason.PATH
    if len(path.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        return Reason.LONG_NAME
    return None


@dataclasses.dataclass(frozen=True)
class Block:
    """Whole lines of a file."""

    first: int  # number of the first line, from 1
    data: bytes  # with line ends
    end: int  # bytes of the file read so far


@dataclasses.dataclass(frozen=True)
class ParsedBlock:
    """Content of a block."""

    rows: pa.RecordBatch  # parsed lines with their numbers; see `line_schema`
    rejected: dict[Reason, list[int]]  # numbers of the invalid lines
    lines: int  # number of lines; of these, `blank` are blank and `crlf` end with "\r\n"
    blank: int
    crlf: int
    end: int  # bytes of the file read so far


def line_schema(layout: Layout) -> pa.Schema:
    """Returns the columns of parsed lines: their fields and their numbers (`line`)."""
    last = [(layout.last, pa.string())] if layout.last else []
    return pa.schema([*((name, pa.int64()) for name in layout.numbers), *last, ("line", pa.int64())])


def parse_file(path: Path, layout: Layout) -> Iterator[ParsedBlock]:
    """Yields the parsed blocks of a file in order. Threads parse the next ones ahead."""
    with ThreadPoolExecutor(THREADS) as pool:
        ahead: collections.deque[Future[ParsedBlock]] = collections.deque()
        for block in read_blocks(path):
            ahead.append(pool.submit(parse_block, layout, block))
            if len(ahead) > THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def read_blocks(path: Path) -> Iterator[Block]:
    """Yields the lines of a file in order, without the byte order mark. Lines that are too long are cut."""
    first, end, rest = 1, 0, b""
    with path.open("rb") as file:
        while chunk := file.read(BLOCK_BYTES):
            data = rest + chunk if end else chunk.removeprefix(codecs.BOM_UTF8)
            end += len(chunk)
            cut = data.rfind(b"\n") + 1
            rest = data[cut : cut + MAX_LINE_BYTES + 2]  # still too long if cut; bounds the memory without line ends
            if cut:
                yield Block(first, data[:cut], end)
                first += data.count(b"\n", 0, cut)
    if rest:
        yield Block(first, rest + b"\n", end)


def read_lines(path: Path, numbers: np.ndarray) -> dict[int, str]:
    """Returns the beginnings of the lines with the given numbers."""
    numbers, starts = np.sort(numbers), {}
    for block in read_blocks(path):
        if not len(numbers):
            break
        wanted = numbers[: np.searchsorted(numbers, block.first + block.data.count(b"\n"))]
        if len(wanted):
            ends = _line_ends(block.data)
            for number in wanted.tolist():
                start = _line(block.data, ends, number - block.first)[:START_BYTES]
                starts[number] = start.decode(errors="replace").rstrip("\r\n")
        numbers = numbers[len(wanted) :]
    return starts


def parse_block(layout: Layout, block: Block) -> ParsedBlock:
    """Parses the lines of a block."""
    ends = _line_ends(block.data)
    columns, regular = _parse_regular(layout, block.data, ends)
    rows = [pa.record_batch([*columns, pa.array(np.flatnonzero(regular) + block.first)], schema=line_schema(layout))]
    irregular, rejected, blank = [], collections.defaultdict(list), 0
    for index in np.flatnonzero(~regular).tolist():
        parsed = parse_line(layout, _line(block.data, ends, index))
        if parsed is None:
            blank += 1
        elif isinstance(parsed, Reason):
            rejected[parsed].append(block.first + index)
        else:
            irregular.append((*parsed, block.first + index))
    if irregular:
        columns = [list(column) for column in zip(*irregular, strict=True)]
        rows.append(pa.record_batch(columns, schema=line_schema(layout)))
    crlf = block.data.count(b"\r\n")
    return ParsedBlock(pa.concat_batches(rows), rejected, lines=len(ends), blank=blank, crlf=crlf, end=block.end)


def _line_ends(data: bytes) -> np.ndarray:
    return np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1


def _line(data: bytes, ends: np.ndarray, index: int) -> bytes:
    return data[ends[index - 1] if index else 0 : ends[index]]


def _parse_regular(layout: Layout, data: bytes, ends: np.ndarray) -> tuple[list[pa.Array], np.ndarray]:
    """Returns the columns of the regular lines and a mask of them, bool [lines]."""
    offsets = np.concatenate(([0], ends)).astype(np.int32)
    lines = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(data))
    regular = _decodable(data, offsets)
    split = pc.split_pattern(lines.filter(pa.array(regular)), ",", max_splits=layout.max_splits)
    (split,) = _select(pc.equal(pc.list_value_length(split), layout.fields), regular, split)
    fields = [pc.utf8_trim_whitespace(pc.list_element(split, i)) for i in range(layout.fields)]
    digits = [len(str(largest)) - 1 for largest in layout.maxima]  # numbers of this length are never too large
    valid = [pc.ascii_is_decimal(number) for number in fields[: len(digits)]]
    valid += [pc.less_equal(pc.binary_length(number), most) for number, most in zip(fields, digits, strict=False)]
    if layout.last == "name":
        valid += [
            pc.match_substring_regex(fields[-1], r"^[^./\\][^/\\]*$"),
            pc.less_equal(pc.binary_length(fields[-1]), MAX_NAME_BYTES),
        ]
    selected = _select(functools.reduce(pc.and_, valid), regular, *fields)
    if layout.last == "text":
        selected[-1] = pc.if_else(pc.equal(selected[-1], NO_TEXT), "", selected[-1])
    return [*(pc.cast(number, pa.int64()) for number in selected[: len(digits)]), *selected[len(digits) :]], regular


def _decodable(data: bytes, offsets: np.ndarray) -> np.ndarray:
    """Returns a mask of the lines that are not too long and certainly UTF-8 without NUL bytes."""
    decodable = np.diff(offsets) <= MAX_LINE_BYTES
    suspect = np.zeros(256, bool)
    suspect[0] = b"\0" in data
    try:
        data.decode()
    except UnicodeDecodeError:
        suspect[128:] = True  # some line is invalid: check all lines that are not ASCII
    if suspect.any():
        decodable &= ~np.logical_or.reduceat(suspect[np.frombuffer(data, np.uint8)], offsets[:-1])
    return decodable


def _select(valid: pa.BooleanArray, regular: np.ndarray, *columns: pa.Array) -> list[pa.Array]:
    """Returns the valid values of columns and clears the other lines in the mask `regular`."""
    if pc.all(valid, min_count=0).as_py():
        return list(columns)
    regular[np.flatnonzero(regular)] = valid.to_numpy(zero_copy_only=False)
    return [column.filter(valid) for column in columns]
