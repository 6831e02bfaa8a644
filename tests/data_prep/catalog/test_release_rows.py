"""Catalogs of releases: the joined content, what is tolerated, what is left out and said, and mangled files."""

import collections
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.catalog import files as catalog_files
from data_prep.catalog import lines, rejects
from data_prep.catalog import make as making
from data_prep.catalog import text_blocks as blocks
from data_prep.catalog.files import Catalog, CatalogError, Frame, Item, Product
from data_prep.catalog.release import ReleaseError
from data_prep.catalog.release_rows import make_catalog
from data_prep.catalog.summary import ROPE, compare_with_rope, format_summary
from tests.data_prep.catalog import reference_catalog

ROOT = Path(__file__).parents[3]
FILES = {
    "product_pages_pair": "99, 7\n26, 8\n99, 8\n",
    "product_videos_pair": "26, 7\n",
    "product_lives_pair": "99, 5\n",
    "page_titles": "7, 外套\n",
    "video_asrs": "7, 不买亏大了,碧根果才1元,限时\n",
    "live_asrs": "5, 空\n",
    "page_images": "7, p7.jpg \n8, p8.jpg\n",
    "video_frames": "7, 240, b.jpg \n7, 16, a.jpg\n",
    "live_clips": "5, 1668122889829, l.jpg\n",
}


LASTS = {name: "" if "pair" in name else "text" for name in FILES} | {
    "page_images": "name",
    "video_frames": "clip",
    "live_clips": "clip",
}
LAYOUTS = {"": lines.PAIRS, "text": lines.TEXTS, "name": lines.PAGE_FRAMES, "clip": lines.CLIP_FRAMES}
BAD_LINES = [
    ("product_pages_pair", "99\n", "wrong number of fields"),
    ("product_pages_pair", "99, 7, 8\n", "wrong number of fields"),
    ("product_pages_pair", "99, -7\n", "no whole number"),
    ("product_pages_pair", ", 7\n", "no whole number"),
    ("product_pages_pair", "1_0, 7\n", "no whole number"),
    ("product_pages_pair", "９９, 7\n", "no whole number"),
    ("product_pages_pair", "1.0, 7\n", "no whole number"),
    ("product_pages_pair", f"{2**63}, 7\n", "no whole number"),
    ("product_pages_pair", f"{'0' * 20}1, 7\n", "no whole number"),
    ("product_pages_pair", f"{2**31}, 7\n", "product id above 2147483647"),
    ("product_pages_pair", "6901234567892, 7\n", "product id above 2147483647"),
    ("page_titles", "外套\n", "wrong number of fields"),
    ("page_titles", "七, a\n", "no whole number"),
    ("page_titles", b"7, \xff\xfe\n", "not UTF-8"),
    ("page_titles", b"7, \xed\xa0\x80\n", "not UTF-8"),
    ("page_titles", "7, a\0b\n", "NUL byte"),
    ("page_titles", f"7, {'a' * (1 << 20)}\n", "line too long"),
    ("page_images", "7,\n", "empty image name"),
    ("page_images", "7, 0, a.jpg\n", "wrong number of fields"),
    ("page_images", "7, ../a.jpg\n", "image name leads out of its folder"),
    ("page_images", "7, ..\n", "image name leads out of its folder"),
    ("page_images", "7, /etc/passwd\n", "image name leads out of its folder"),
    ("page_images", "7, a\\b.jpg\n", "image name leads out of its folder"),
    ("page_images", "70, a/b.jpg\n", "image name leads out of its folder"),
    ("page_images", f"7, {'图' * 90}.jpg\n", "image name too long"),
    ("video_frames", "7, a.jpg\n", "wrong number of fields"),
    ("video_frames", "7, -1, a.jpg\n", "no whole number"),
    ("live_clips", "5, 1e3, a.jpg\n", "no whole number"),
]


def write_release(folder: Path, prefix: str = "training_", **changed: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (FILES | changed).items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / f"{prefix}{name}.txt").write_bytes(data)
    return folder


def make(folder: Path, *, max_rejected: float = 1.0, **changed: str | bytes) -> Catalog:
    release = write_release(folder / "release", **changed)
    return make_catalog(
        release, folder / "catalog", splits=("train",), max_rejected=max_rejected, report=lambda line: None
    )


def rejected(catalog: Catalog) -> list[dict]:
    with (catalog.folder / "rejected.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def assert_is_reference(catalog: Catalog, release: Path, prefix: str = "training_", split: str = "train") -> None:
    items, noted = reference_catalog.read_release(release, prefix)
    for domain, wanted in items.items():
        assert list(catalog.items(split, domain)) == wanted
    products = collections.defaultdict(lambda: collections.defaultdict(list))
    for domain, wanted in items.items():
        for row, item in enumerate(wanted):
            for product in item.product_ids:
                products[product][domain].append(row)
    assert list(catalog.products(split)) == [
        Product(product, {domain: tuple(products[product][domain]) for domain in items}) for product in sorted(products)
    ]
    said = collections.defaultdict(set)
    for entry in rejected(catalog):
        if entry["split"] == split:
            said[entry["file"]].add((entry["line"], entry["reason"]))
    for file, wanted in noted.items():
        assert said[file] == wanted
        summary = catalog.summary["splits"][split]["files"][file]
        assert summary["reasons"] == collections.Counter(reason for _, reason in wanted)
        assert summary["broken"] == sum(reason not in reference_catalog.HARMLESS for _, reason in wanted)


def test_a_split_is_joined_and_in_row_order(tmp_path):
    catalog = make(tmp_path, max_rejected=0)
    # Page 8 belongs to products 26 and 99: the smaller one puts it before page 7. Video 7 is not page 7.
    assert list(catalog.items("train", "page")) == [
        Item(8, "", (26, 99), (Frame(0, "p8.jpg"),)),
        Item(7, "外套", (99,), (Frame(0, "p7.jpg"),)),
    ]
    assert list(catalog.items("train", "video")) == [
        Item(7, "不买亏大了,碧根果才1元,限时", (26,), (Frame(16, "a.jpg"), Frame(240, "b.jpg")))
    ]
    assert list(catalog.items("train", "live")) == [Item(5, "", (99,), (Frame(1668122889829, "l.jpg"),))]
    assert list(catalog.products("train")) == [
        Product(26, {"page": (0,), "video": (0,), "live": ()}),
        Product(99, {"page": (0, 1), "video": (), "live": (0,)}),
    ]
    assert rejected(catalog) == []
    assert catalog.summary["splits"]["train"]["domains"] == {
        "page": {"items": 2, "texts": 1, "frames": 2, "items_without_frames": 0, "items_of_several_products": 1},
        "video": {"items": 1, "texts": 1, "frames": 2, "items_without_frames": 0, "items_of_several_products": 0},
        "live": {"items": 1, "texts": 0, "frames": 1, "items_without_frames": 0, "items_of_several_products": 0},
        "product": {"products": 2},
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("7,外套", "外套"),
        ("  7 ,\t 外套 \u3000 \n", "外套"),
        ("7, 外套\r\n", "外套"),
        ("\ufeff7, 外套\n", "外套"),
        ("7, 外套\n\n", "外套"),
        ("7, 外套\n7,外套\n", "外套"),
        ("7, ,a,,b,\n", ",a,,b,"),
        ("7, a\u2028b\x85c\x0bd\n", "a\u2028b\x85c\x0bd"),
        ("7, 空\n", ""),
        ("7, 空气\n", "空气"),
        ("7,\n", ""),
        ("", ""),
        ("007, a\n", "a"),
        ("7, a\n7, b\n", "a"),
    ],
)
def test_odd_text_rows_are_read(tmp_path, content, text):
    catalog = make(tmp_path, page_titles=content)
    assert {item.item_id: item.text for item in catalog.items("train", "page")} == {8: "", 7: text}


@pytest.mark.parametrize(("name", "content", "reason"), BAD_LINES)
def test_a_bad_line_is_told_by_its_reason(name, content, reason):
    data = content if isinstance(content, bytes) else content.encode()
    layout = LAYOUTS[LASTS[name]]
    parsed = blocks.parse_block(layout, blocks.Block(5, data, len(data)))
    assert parsed.rejects == [(5, reason, data[:200].decode(errors="replace").strip("\n"))]
    assert parsed.rows.num_rows == 0


def test_bad_rows_of_all_kinds_are_left_out_and_said(tmp_path):
    odd = collections.defaultdict(bytes)
    for name, content, _ in BAD_LINES:
        odd[name] += content if isinstance(content, bytes) else content.encode()
    for name, content in FILES.items():  # amid good ones, some of which repeat, contradict or belong to nothing
        odd[name] += (
            content.encode() + b"70, 2\n" + odd[name] + content.encode() + b"7, 3\n70, 5, c.jpg\n7, 16, a.jpg\n"
        )
    catalog = make(tmp_path, **odd)
    assert_is_reference(catalog, tmp_path / "release")
    assert {entry["reason"] for entry in rejected(catalog)} == (
        {reason for _, _, reason in BAD_LINES} | set(reference_catalog.HARMLESS) | {"another text for the same item"}
    )


ODD_NUMBERS = ["3 ", "02", "9" * 18, "9" * 19, str(2**63 - 1), "3" * 20, "３", "-1", "+1", "1_0", "1.0", "", "x", "1 2"]
ODD_NUMBERS += [str(2**31 - 1), str(2**31), "0" * 9 + "3"]  # of products the first and the last are good
ODD_LASTS = {
    "text": ["空", " 空 ", "", "a,b", ",", "\u2028a\u2028b", "a\0b", "x" * 500],
    "name": ["", ".", "..", ".a", "...", "../a", "a/b", "/a", "a\\b", "a\0", "图.jpg", "图" * 85, "图" * 86, "a b"],
}
BLANKS = ["", " ", "\t", "\r", "\u3000", "\u2028", "\x1c", "\u200b", "\ufeff"]  # the last two are none
NOISE = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x80", b"\0", b",", b"\n", b"\r", b"/", b" ", "外".encode()]


def mangled(rng: random.Random, last: str) -> bytes:
    """A file of rows that often meet in ids and names, many of them mangled: some still are rows, some are none."""
    content = b"\xef\xbb\xbf" if rng.random() < 0.2 else b""
    lines_so_far = []
    for _ in range(rng.randrange(40)):
        line = rng.choice(lines_so_far) if lines_so_far and rng.random() < 0.2 else mangled_line(rng, last)
        lines_so_far.append(line)
        content += line + rng.choice([b"\n", b"\n", b"\n", b"\n", b"\r\n", b" \n\n"])
    return content.removesuffix(b"\n") if rng.random() < 0.3 else content


def mangled_line(rng: random.Random, last: str) -> bytes:
    kind = "name" if last == "clip" else last
    good = [str(rng.randrange(4)) for _ in range(1 if last in ("text", "name") else 2)]
    good += [rng.choice(["a", "b", "空", "c.jpg"])] if kind else []
    odd = [ODD_NUMBERS] * (len(good) - bool(kind)) + ([ODD_LASTS[kind]] if kind else [])
    fields = [rng.choice(strange) if rng.random() < 0.1 else field for field, strange in zip(good, odd, strict=True)]
    if rng.random() < 0.1:
        fields = rng.choice([fields[:-1], [*fields, "1"], ["1", *fields], [" ".join(fields)]])
    blank = BLANKS if rng.random() < 0.2 else [" "]
    line = ",".join(rng.choice(blank) + field + rng.choice(blank) for field in fields).encode()
    if rng.random() < 0.15:
        at = rng.randrange(len(line) + 1)
        line = line[:at] + rng.choice([*NOISE, rng.randbytes(2)]) + line[at + rng.randrange(2) :]
    return line


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), block=st.integers(4, 400))
def test_no_mangling_crashes_loses_a_good_row_or_keeps_a_bad_one_silently(seed, block):
    rng = random.Random(seed)
    files = {name: mangled(rng, last) for name, last in LASTS.items()}
    files["product_pages_pair"] += b"\n1, 1\n"  # a split has a product
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        patch.setattr(catalog_files, "GROUP_ROWS", 2)
        catalog = make(Path(folder), **files)
        assert_is_reference(catalog, Path(folder) / "release")


@settings(max_examples=40, deadline=None)
@given(last=st.sampled_from(["", "text", "name", "clip"]), seed=st.integers(0, 2**32), block=st.integers(4, 400))
def test_lines_are_read_all_at_once_as_one_by_one(last, seed, block):
    content = mangled(random.Random(seed), last)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "file.txt"
        path.write_bytes(content)
        patch.setattr(blocks, "BLOCK_BYTES", block)
        parsed = list(blocks.read_rows(path, LAYOUTS[last]))
    numbers, kind = (2, last.replace("clip", "name")) if last in ("", "clip") else (1, last)
    rows, wanted = reference_catalog.read_content(content, numbers, kind)
    found = [tuple(row.values()) for part in parsed for row in part.rows.to_pylist()]
    assert sorted(found, key=lambda row: row[-1]) == [(*row, number) for number, row in rows]
    assert [(number, reason) for part in parsed for number, reason, _ in part.rejects] == wanted
    if not content.endswith(b"\n") and content not in (b"", b"\xef\xbb\xbf"):
        content += b"\n"
    counted = sum(part.lines for part in parsed)
    assert counted == content.count(b"\n")
    assert counted == len(rows) + len(wanted) + sum(part.blank for part in parsed)
    assert sum(part.crlf for part in parsed) == content.count(b"\r\n")


def test_ordinary_lines_do_not_go_one_by_one(monkeypatch):
    monkeypatch.setattr(blocks, "parse_line", None)
    for layout, data in (
        (lines.PAIRS, "99721, 7\n\t1,2 \r\n"),
        (lines.TEXTS, "7, 不买亏大了,碧根果才1元\n8,  空 \n9,\n"),
        (lines.PAGE_FRAMES, "728, eae32f52-2a9a-11ee-a32e-507c6f3c3e56.jpg \n7,图.png\n"),
        (lines.CLIP_FRAMES, "1718832, 1668122889829, 08318640-2c84-11ee-87b6-043f72c2ce50.jpg \n"),
    ):
        parsed = blocks.parse_block(layout, blocks.Block(1, data.encode(), len(data)))
        assert parsed.rows.num_rows == parsed.lines == data.count("\n")


def test_blanks_are_those_of_python():
    """Arrow trims all lines' fields, Python those of odd ones: both must mean the same by a blank."""
    characters = [chr(code) for code in (*range(1, 0x3100), *range(0xFE00, 0x10000))]
    trimmed = pc.utf8_trim_whitespace(pa.array(characters)).to_pylist()
    assert trimmed == [character.strip() for character in characters]


def test_a_file_without_line_ends_is_one_broken_line_read_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 18)
    path = tmp_path / "endless.txt"
    path.write_bytes(b"7, a\n" + b"7, " * (1 << 20) + b"\n8, b\n")
    parts = list(blocks.read_rows(path, lines.TEXTS))
    assert [row for part in parts for row in part.rows.to_pylist()] == [
        {"item_id": 7, "text": "a", "line": 1},
        {"item_id": 8, "text": "b", "line": 3},
    ]
    assert [reject for part in parts for reject in part.rejects] == [(2, lines.Reason.LONG_LINE, ("7, " * 100)[:200])]
    assert max(len(block.data) for block in blocks.read_blocks(path)) < 2 * (1 << 20)


def test_too_many_broken_lines_are_an_error_with_counts_and_examples(tmp_path):
    titles = "".join(f"{i}, a\n" for i in range(7)) + "x, a\nno\nno 2\n"
    with pytest.raises(CatalogError) as error:
        make(tmp_path, page_titles=titles, max_rejected=0.29)
    writing = tmp_path / "catalog.writing"
    assert str(error.value) == (
        "training_page_titles.txt: 3 of 10 lines are broken, more than --max_rejected=0.29 allows "
        "(wrong number of fields: 2, no whole number: 1), e.g.\n"
        "  line 8, no whole number: 'x, a'\n"
        "  line 9, wrong number of fields: 'no'\n"
        "  line 10, wrong number of fields: 'no 2'\n"
        f"all of them, as far as was read: {writing / 'rejected.jsonl'}"
    )
    assert len([entry for entry in rejected(Catalog(writing)) if entry["reason"] not in lines.HARMLESS]) == 3
    assert make(tmp_path, page_titles=titles, max_rejected=0.3).count("train", "page") == 2
    assert not writing.exists()


def test_contradictions_are_broken_lines_and_repetitions_are_not(tmp_path):
    repeated = "7, a\n7, a\n70, b\n"
    assert make(tmp_path / "x", page_titles=repeated, max_rejected=0).count("train", "page") == 2
    with pytest.raises(CatalogError, match=r"titles\.txt: 1 of 4 lines .*another text for the same item: 1"):
        make(tmp_path / "y", page_titles=repeated + "7, c\n", max_rejected=0.1)


def test_the_first_of_each_reason_are_shown_and_all_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(rejects, "SHOWN", 3)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 16)
    titles = "7, a\n" + "".join(f"{'x' if i % 2 else 70}, {i}\n" for i in range(20)) + "7, a\n" * 5
    catalog = make(tmp_path, page_titles=titles)
    shown = [(entry["line"], entry["start"]) for entry in rejected(catalog)]
    assert shown == [
        *((2, "70, 0"), (3, "x, 1"), (4, "70, 2"), (5, "x, 3"), (6, "70, 4"), (7, "x, 5")),
        *((22, "7, a"), (23, "7, a"), (24, "7, a")),
    ]
    reasons = catalog.summary["splits"]["train"]["files"]["training_page_titles.txt"]["reasons"]
    assert reasons == {"item in no product pair": 10, "no whole number": 10, "row said before": 5}


def test_harmless_oddities_are_noted(tmp_path):
    catalog = make(tmp_path, max_rejected=0, page_titles="\ufeff7, a\r\n\r\n8, b\r\n", product_lives_pair="99, 6\n")
    assert [item.text for item in catalog.items("train", "page")] == ["b", "a"]
    text = format_summary(catalog.summary)
    assert "training_page_titles.txt: of 3 lines 1 blank, 3 with CRLF, a byte order mark" in text
    assert "training_product_lives_pair.txt: of 1 lines 1 item without frames, kept" in text


def test_a_domain_without_items_is_told_at_once(tmp_path):
    empty = {"product_lives_pair": "", "live_asrs": "", "live_clips": ""}
    text = format_summary(make(tmp_path, **empty).summary)
    assert text.endswith("\ntrain   has no live items: it cannot be built, nor trained or judged on")


def test_a_finished_catalog_is_kept_and_that_of_other_files_is_not_touched(tmp_path):
    first = make(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    said = []
    make_catalog(tmp_path / "release", tmp_path / "catalog", splits=("train",), report=said.append)
    assert said == [f"{tmp_path / 'catalog'} is the finished catalog of {tmp_path / 'release'}: nothing to do"]
    with pytest.raises(
        CatalogError, match=r"catalog is a catalog of another source \(train page texts differ\): remove"
    ):
        make(tmp_path, page_titles="7, b\n")
    write_release(tmp_path / "release", "test_")
    with pytest.raises(CatalogError, match=r"another source \(test live frames, test live pairs, .* differ\)"):
        make_catalog(tmp_path / "release", tmp_path / "catalog")
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before
    with pytest.raises(CatalogError, match=r"release exists and is no catalog: remove it or choose another --out"):
        make_catalog(tmp_path / "release", tmp_path / "release")


def test_killed_runs_leave_nothing_that_passes_for_a_catalog(tmp_path, monkeypatch):
    wanted = make(tmp_path / "whole").fingerprint

    class Killed(BaseException):
        pass

    def die(_):
        raise Killed

    for step in ("write_split", "write_rejects", "write_summary"):
        work = getattr(making, step)
        with monkeypatch.context() as patch:
            patch.setattr(making, step, lambda *args, work=work, **kwargs: die(work(*args, **kwargs)))
            with pytest.raises(Killed):
                make(tmp_path)
        assert not (tmp_path / "catalog").exists()
    assert make(tmp_path).fingerprint == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog", "release", "whole"]
    assert sorted(path.name for path in (tmp_path / "catalog").iterdir()) == ["rejected.jsonl", "summary.json", "train"]


def test_two_at_once_are_refused(tmp_path):
    with making._unfinished_folder(tmp_path / "catalog"), pytest.raises(CatalogError, match="another process writes"):
        make(tmp_path)


def test_what_cannot_be_made_is_said(tmp_path):
    with pytest.raises(CatalogError, match=r"split 'train': no products, empty pair files"):
        make(tmp_path, product_pages_pair="", product_videos_pair="", product_lives_pair="\n")
    release = tmp_path / "release"
    with pytest.raises(CatalogError, match=r"splits \['a', 'a'\]: wanted at least one, and each once"):
        make_catalog(release, tmp_path / "catalog", splits=("a", "a"))
    with pytest.raises(ReleaseError, match="unknown split 'a'"):
        make_catalog(release, tmp_path / "catalog", splits=("a",))
    with pytest.raises(CatalogError, match=r"--memory_limit=much: "):
        make_catalog(release, tmp_path / "catalog", splits=("train",), memory_limit="much")


def test_prefixes_follow_the_split_and_can_be_given(tmp_path):
    write_release(tmp_path / "release", "valid-")
    catalog = make_catalog(
        tmp_path / "release", tmp_path / "catalog", splits=("test",), prefixes={"test": "valid-"}, max_rejected=0
    )
    assert_is_reference(catalog, tmp_path / "release", "valid-", "test")


def test_missing_files_are_all_named_with_the_folder(tmp_path):
    release = write_release(tmp_path / "release")
    (release / "training_live_asrs.txt").unlink()
    (release / "training_page_titles.txt").unlink()
    with pytest.raises(
        ReleaseError, match=rf"training_page_titles\.txt, training_live_asrs\.txt not found in {release}"
    ):
        make_catalog(release, tmp_path / "catalog", splits=("train",))


def test_the_counts_of_rope_are_recognised():
    def domains(**changed):
        counts = ROPE["train"] | changed
        return {name: {"products" if name == "product" else "items": count} for name, count in counts.items()}

    assert compare_with_rope("train", domains()) == "the counts of ROPE's train split"
    near = "like ROPE's train split, but 187,430 products, not 187,431; 5,837,715 videos, not 5,837,716"
    assert compare_with_rope("train", domains(product=187_430, video=5_837_715)) == near
    assert compare_with_rope("train", domains(live=300)) == ""
    assert compare_with_rope("validation", domains()) == ""


def test_the_command_prints_the_table_or_the_error(tmp_path):
    write_release(tmp_path / "release")
    command = [sys.executable, "-m", "data_prep.catalog", f"--release={tmp_path / 'release'}", "--splits=train"]
    done = subprocess.run([*command, f"--out={tmp_path / 'catalog'}"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "train   page                2           1             2          0            1" in done.stdout
    done = subprocess.run([*command, f"--out={tmp_path}"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert "exists and is no catalog" in done.stderr
