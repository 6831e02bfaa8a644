"""Parsing of release files: the same rows and rejected lines as one by one, in bounded memory."""

import random
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.catalog import release_parser
from data_prep.catalog.rejected_lines import Reason
from tests.data_prep.catalog import reference_catalog
from tests.data_prep.catalog.sample_releases import INVALID_LINES, LASTS, LAYOUTS, mangled


@pytest.mark.parametrize(("name", "content", "reason"), INVALID_LINES)
def test_an_invalid_line_is_rejected_with_its_reason(tmp_path, name, content, reason):
    data = content if isinstance(content, bytes) else content.encode()
    layout = LAYOUTS[LASTS[name]]
    parsed = release_parser.parse_block(layout, release_parser.Block(5, data, len(data)))
    assert parsed.rejected == {reason: [5]}
    assert parsed.rows.num_rows == 0
    path = tmp_path / "file.txt"
    path.write_bytes(b"\n" * 4 + data)
    start = data[:200].decode(errors="replace").strip("\n")
    assert release_parser.read_lines(path, np.array([5])) == {5: start}


@settings(max_examples=40, deadline=None)
@given(last=st.sampled_from(["", "text", "name", "clip"]), seed=st.integers(0, 2**32), block=st.integers(4, 400))
def test_blocks_are_parsed_like_single_lines(last, seed, block):
    content = mangled(random.Random(seed), last)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "file.txt"
        path.write_bytes(content)
        patch.setattr(release_parser, "BLOCK_BYTES", block)
        parsed = list(release_parser.parse_file(path, LAYOUTS[last]))
    numbers, kind = (2, last.replace("clip", "name")) if last in ("", "clip") else (1, last)
    rows, wanted = reference_catalog.read_content(content, numbers, kind)
    found = [tuple(row.values()) for part in parsed for row in part.rows.to_pylist()]
    assert sorted(found, key=lambda row: row[-1]) == [(*row, number) for number, row in rows]
    rejected = [(number, reason) for part in parsed for reason, lines in part.rejected.items() for number in lines]
    assert sorted(rejected) == wanted
    if not content.endswith(b"\n") and content not in (b"", b"\xef\xbb\xbf"):
        content += b"\n"
    counted = sum(part.lines for part in parsed)
    assert counted == content.count(b"\n")
    assert counted == len(rows) + len(wanted) + sum(part.blank for part in parsed)
    assert sum(part.crlf for part in parsed) == content.count(b"\r\n")


def test_regular_lines_are_not_parsed_one_by_one(monkeypatch):
    monkeypatch.setattr(release_parser, "parse_line", None)
    for layout, data in (
        (release_parser.PAIRS, "99721, 7\n\t1,2 \r\n"),
        (release_parser.TEXTS, "7, 不买亏大了,碧根果才1元\n8,  空 \n9,\n"),
        (release_parser.PAGE_FRAMES, "728, eae32f52-2a9a-11ee-a32e-507c6f3c3e56.jpg \n7,图.png\n"),
        (release_parser.CLIP_FRAMES, "1718832, 1668122889829, 08318640-2c84-11ee-87b6-043f72c2ce50.jpg \n"),
    ):
        parsed = release_parser.parse_block(layout, release_parser.Block(1, data.encode(), len(data)))
        assert parsed.rows.num_rows == parsed.lines == data.count("\n")


def test_arrow_and_python_agree_on_whitespace():
    """Arrow strips the fields of regular lines, Python those of irregular ones."""
    characters = [chr(code) for code in (*range(1, 0x3100), *range(0xFE00, 0x10000))]
    trimmed = pc.utf8_trim_whitespace(pa.array(characters)).to_pylist()
    assert trimmed == [character.strip() for character in characters]


def test_a_line_without_end_is_rejected_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(release_parser, "BLOCK_BYTES", 1 << 18)
    path = tmp_path / "endless.txt"
    path.write_bytes(b"7, a\n" + b"7, " * (1 << 20) + b"\n8, b\n")
    parts = list(release_parser.parse_file(path, release_parser.TEXTS))
    assert [row for part in parts for row in part.rows.to_pylist()] == [
        {"item_id": 7, "text": "a", "line": 1},
        {"item_id": 8, "text": "b", "line": 3},
    ]
    assert [part.rejected for part in parts if part.rejected] == [{Reason.LONG_LINE: [2]}]
    assert release_parser.read_lines(path, np.array([2])) == {2: ("7, " * 100)[:200]}
    assert max(len(block.data) for block in release_parser.read_blocks(path)) < 2 * (1 << 20)
