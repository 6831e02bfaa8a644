"""Reads text files of a hundred million lines: a block at a time, the ordinary lines of it all at once.

Ordinary lines are parsed by Arrow's kernels; those it cannot be sure of go one by one through `lines.parse_line`,
whose word is the last one. Both say the same of every line.
"""

import codecs
import collections
import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.catalog.lines import MAX_LINE_BYTES, MAX_NAME_BYTES, Last, Layout, Reason, parse_line
from data_prep.catalog.release import NO_TEXT

BLOCK_BYTES = 8 << 20
START_BYTES = 200  # of a rejected line are shown
THREADS = 2  # Arrow's kernels leave the interpreter's lock; the sort behind them takes the other cores


@dataclasses.dataclass(frozen=True)
class Block:
    """Whole lines of a file, each with its line end: the first has the number `first`, `end` bytes are read."""

    first: int
    data: bytes
    end: int


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A block's rows with their line numbers, its other lines as (number, reason, start), and its line counts."""

    rows: pa.RecordBatch
    rejects: list[tuple[int, Reason, str]]
    lines: int
    blank: int
    crlf: int
    end: int


def schema(layout: Layout) -> pa.Schema:
    """Returns the columns of a layout's rows: its fields, and the line's number."""
    last = {Last.NUMBER: [], Last.TEXT: [("text", pa.string())], Last.NAME: [("name", pa.string())]}[layout.last]
    return pa.schema([*((name, pa.int64()) for name in layout.numbers), *last, ("line", pa.int64())])


def read_rows(path: Path, layout: Layout) -> Iterator[Parsed]:
    """Yields a file's blocks, parsed, in order; the next ones are parsed in threads meanwhile."""
    with ThreadPoolExecutor(THREADS) as pool:
        ahead: collections.deque[Future[Parsed]] = collections.deque()
        for block in read_blocks(path):
            ahead.append(pool.submit(parse_block, layout, block))
            if len(ahead) > THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def read_blocks(path: Path) -> Iterator[Block]:
    """Yields a file's lines, in order, without the byte order mark; of endless lines the beginning."""
    first, end, rest = 1, 0, b""
    with path.open("rb") as file:
        while chunk := file.read(BLOCK_BYTES):
            data = rest + chunk if end else chunk.removeprefix(codecs.BOM_UTF8)
            end += len(chunk)
            cut = data.rfind(b"\n") + 1
            rest = data[cut:]
            if len(rest) > MAX_LINE_BYTES + 2:
                # Too long already, whatever follows: memory stays bounded without a line end in sight.
                rest = rest[: MAX_LINE_BYTES + 2]
            if cut:
                yield Block(first, data[:cut], end)
                first += data.count(b"\n", 0, cut)
    if rest:
        yield Block(first, rest + b"\n", end)


def read_lines(path: Path, numbers: np.ndarray) -> dict[int, str]:
    """Returns the starts of some of a file's lines, by number."""
    numbers, starts = np.sort(numbers), {}
    for block in read_blocks(path):
        if not len(numbers):
            break
        wanted = numbers[: np.searchsorted(numbers, block.first + block.data.count(b"\n"))]
        if len(wanted):
            ends = _line_ends(block.data)
            starts |= {int(n): _start(_line(block.data, ends, n - block.first)) for n in wanted}
        numbers = numbers[len(wanted) :]
    return starts


def parse_block(layout: Layout, block: Block) -> Parsed:
    """Sorts a block's lines into rows, rejects and blank ones."""
    ends = _line_ends(block.data)
    columns, ordinary = _parse_ordinary(layout, block.data, ends)
    rows = [pa.record_batch([*columns, pa.array(np.flatnonzero(ordinary) + block.first)], schema=schema(layout))]
    odd, rejects, blank = [], [], 0
    for index in np.flatnonzero(~ordinary).tolist():
        line = _line(block.data, ends, index)
        found = parse_line(layout, line)
        if found is None:
            blank += 1
        elif isinstance(found, Reason):
            rejects.append((block.first + index, found, _start(line)))
        else:
            odd.append((*found, block.first + index))
    if odd:
        rows.append(pa.record_batch([list(column) for column in zip(*odd, strict=True)], schema=schema(layout)))
    return Parsed(
        rows=pa.concat_batches(rows),
        rejects=rejects,
        lines=len(ends),
        blank=blank,
        crlf=block.data.count(b"\r\n"),
        end=block.end,
    )


def _line_ends(data: bytes) -> np.ndarray:
    return np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1


def _line(data: bytes, ends: np.ndarray, index: int) -> bytes:
    return data[ends[index - 1] if index else 0 : ends[index]]


def _start(line: bytes) -> str:
    return line[:START_BYTES].decode(errors="replace").rstrip("\r\n")


def _parse_ordinary(layout: Layout, data: bytes, ends: np.ndarray) -> tuple[list[pa.Array], np.ndarray]:
    """Returns the columns of the ordinary lines, and which those are, bool [lines].

    Whatever is found ordinary here, `parse_line` would take for a row with just these fields.
    """
    offsets = np.concatenate(([0], ends)).astype(np.int32)
    lines = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(data))
    ordinary = _readable(data, offsets)
    split = pc.split_pattern(lines.filter(pa.array(ordinary)), ",", max_splits=layout.max_splits)
    (split,) = _keep(pc.equal(pc.list_value_length(split), layout.fields), ordinary, split)
    fields = [pc.utf8_trim_whitespace(pc.list_element(split, i)) for i in range(layout.fields)]
    digits = [len(str(largest)) - 1 for largest in layout.largest]  # numbers of so many are never too large
    sound = _all(
        *(pc.ascii_is_decimal(number) for number in fields[: len(digits)]),
        *(pc.less_equal(pc.binary_length(number), most) for number, most in zip(fields, digits, strict=False)),
        *([_is_plain_name(fields[-1])] if layout.last is Last.NAME else []),
    )
    kept = _keep(sound, ordinary, *fields)
    if layout.last is Last.TEXT:
        kept[-1] = pc.if_else(pc.equal(kept[-1], NO_TEXT), "", kept[-1])
    return [*(pc.cast(number, pa.int64()) for number in kept[: len(digits)]), *kept[len(digits) :]], ordinary


def _readable(data: bytes, offsets: np.ndarray) -> np.ndarray:
    """Which lines are not too long and surely are UTF-8 without NUL bytes."""
    readable = np.diff(offsets) <= MAX_LINE_BYTES
    doubtful = np.zeros(256, bool)
    doubtful[0] = b"\0" in data
    try:
        data.decode()
    except UnicodeDecodeError:
        doubtful[128:] = True  # one line is broken: every line that is not ASCII is looked at
    if doubtful.any():
        readable &= ~np.logical_or.reduceat(doubtful[np.frombuffer(data, np.uint8)], offsets[:-1])
    return readable


def _is_plain_name(names: pa.StringArray) -> pa.BooleanArray:
    return _all(
        pc.match_substring_regex(names, r"^[^./\\][^/\\]*$"),
        pc.less_equal(pc.binary_length(names), MAX_NAME_BYTES),
    )


def _all(first: pa.BooleanArray, *others: pa.BooleanArray) -> pa.BooleanArray:
    for other in others:
        first = pc.and_(first, other)
    return first


def _keep(sound: pa.BooleanArray, ordinary: np.ndarray, *columns: pa.Array) -> list[pa.Array]:
    """Returns the sound values of columns, and takes the others' lines out of the `ordinary` ones."""
    if pc.all(sound, min_count=0).as_py():
        return list(columns)
    ordinary[np.flatnonzero(ordinary)] = sound.to_numpy(zero_copy_only=False)
    return [column.filter(sound) for column in columns]
