"""Tests that verify finds problems of every kind and where they are, and accepts valid data."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from data_prep.records import shards
from data_prep.records.schema import _Example, parse_example, tally_records
from data_prep.verify import verify

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own_copy(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "data")


def problems(data_dir: Path, **options) -> list[str]:
    lines: list[str] = []
    count = verify(data_dir, **({"processes": 1} | options), report=lines.append)
    found = [line for line in lines if ": read " not in line]
    assert bool(count) == bool(found)
    return [line.removeprefix(f"{data_dir}/rope/") for line in found]


def change(path: Path, number: int, edit, *, reported: bool = True) -> None:
    """Changes the example of a record and, if `reported`, the checksum in the report."""
    reader = ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    example = _Example.FromString(records[number])
    edit(example.features.feature)
    records[number] = example.SerializeToString(deterministic=True)
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    if reported:
        report_path = shards.report_path(path)
        if report_path.exists():
            report = json.loads(report_path.read_text())
            report_path.write_text(json.dumps(report | {"crc32": tally_records(path).crc32}))


def test_valid_data_pass_with_any_number_of_processes(built):
    assert problems(built) == []
    assert problems(built, processes=2) == []


def test_a_corrupt_record_is_named_with_its_file(own_copy):
    path = own_copy / "rope/video/1.0.0/rope-train.array_record-00001-of-00005"
    reader = ArrayRecordReader(str(path))
    frame = parse_example(reader.read([3])[0]).byte_strings("frames")[1]
    reader.close()
    data = bytearray(path.read_bytes())
    data[data.index(frame) + 100] ^= 255
    path.write_bytes(data)
    lines = problems(own_copy)
    name = f"video/1.0.0/{path.name}"
    assert lines[0].startswith(f"{name}: record 3: cannot be read: Corrupted")
    assert lines[1].startswith(f"{name}: 10 records with 5")


def test_missing_and_truncated_files(own_copy):
    folder = own_copy / "rope/live/1.0.0"
    (folder / "rope-test.array_record-00000-of-00001").unlink()
    train = folder / "rope-train.array_record-00000-of-00001"
    train.write_bytes(train.read_bytes()[:-70_000])
    lines = problems(own_copy)
    assert "live/1.0.0/rope-test.array_record-00000-of-00001: not found" in lines
    assert f"live/1.0.0/{train.name}: cannot be read: ArrayRecord file should be at least 64KB big" in lines
    assert f"live/1.0.0/{train.name}: 0 records with 0 frames, expected 2 with 4" in lines
    assert "live/1.0.0: split 'test' has 0 items, expected 1" in lines
    assert "product/1.0.0: product 501 lists live row 0, but there are 0 rows" in lines


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda f: f["frames"].bytes_list.value.__setitem__(1, b"<html>"), "record 2: frame 1: not an image"),
        (lambda f: f["frame_times"].int64_list.value.__setitem__(1, -1), "record 2: 4 frames at times"),
        (lambda f: f["frames"].bytes_list.value.pop(), "record 2: 3 frames at times"),
        (lambda f: f["text"].bytes_list.value.__setitem__(0, b"\xff"), "record 2: text is not UTF-8"),
        (lambda f: f["item_id"].int64_list.value.pop(), "record 2: no item id"),
        (lambda f: f["product_ids"].int64_list.value.pop(), "record 2: product ids are [], expected at least one"),
    ],
)
def test_invalid_contents_of_records_are_problems(own_copy, edit, problem):
    path = own_copy / "rope/video/1.0.0/rope-train.array_record-00000-of-00005"
    change(path, 2, edit)
    lines = problems(own_copy)
    assert lines[0].startswith(f"video/1.0.0/{path.name}: {problem}"), lines


def test_a_record_changed_after_it_was_written_is_a_problem(own_copy):
    path = own_copy / "rope/page/1.0.0/rope-train.array_record-00000-of-00001"
    change(path, 0, lambda f: f["item_id"].int64_list.value.__setitem__(0, 99), reported=False)
    assert problems(own_copy) == [
        f"page/1.0.0/{path.name}: the records changed after they were written: the checksum differs"
    ]


def test_records_that_cannot_be_parsed_are_problems(own_copy):
    path = own_copy / "rope/page/1.0.0/rope-test.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    writer.write(b"\xff\xff")
    writer.close()
    assert any("record 0: not a tf.train.Example" in line for line in problems(own_copy))


def test_products_and_items_that_disagree_are_problems(own_copy):
    path = own_copy / "rope/product/1.0.0/rope-train.array_record-00000-of-00001"
    change(path, 1, lambda f: f["video_rows"].int64_list.value.__setitem__(0, 40))
    items = "video/1.0.0/rope-train.array_record-0000"
    assert problems(own_copy) == [
        f"{items}0-of-00005: record 10: the item lists product 10, but product 10 does not list the item",
        f"{items}3-of-00005: record 2: product 10 lists the item, but the item does not list product 10",
    ]
    change(path, 1, lambda f: f["product_id"].int64_list.value.__setitem__(0, 0))
    assert f"product/1.0.0/{path.name}: record 1: product id is [0], expected one above 0" in problems(own_copy)


def test_only_the_first_problems_of_a_file_are_shown(own_copy, monkeypatch):
    monkeypatch.setattr("data_prep.verify.MAX_LINES", 2)
    (own_copy / "rope/product/1.0.0/rope-train.array_record-00000-of-00001").unlink()
    assert any("video/1.0.0/rope-train.array_record-00000-of-00005: and " in line for line in problems(own_copy))


def test_missing_and_inconsistent_reports_and_summaries_are_problems(own_copy):
    report = own_copy / "rope/page/1.0.0/reports/rope-train.array_record-00000-of-00001.json"
    report.write_text("")
    (own_copy / "rope/live/1.0.0/fingerprint").write_text("{}")
    lines = problems(own_copy)
    assert f"live/1.0.0: built from other inputs than {own_copy}/rope/build_summary.json" in lines
    assert any(
        line.startswith(f"page/1.0.0/{report.stem}: its report cannot be read: {report} is not") for line in lines
    )
    (own_copy / "rope/live/1.0.0/dataset_info.json").unlink()
    assert problems(own_copy)[-1].startswith(f"live/1.0.0: no {own_copy}/rope/live/1.0.0/dataset_info.json: remove")
    (own_copy / "rope/build_summary.json").unlink()
    assert problems(own_copy) == ["build_summary.json: not found: no build was finished here"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("build_summary.json", "", "build_summary.json: {}/build_summary.json is not valid JSON"),
        ("build_summary.json", "{}", "build_summary.json: {}/build_summary.json has no fingerprint, splits"),
        ("build_summary.json", "[]", "build_summary.json: {}/build_summary.json is not a JSON object"),
        ("page/1.0.0/dataset_info.json", "\0\0", "page/1.0.0: {}/page/1.0.0/dataset_info.json is not valid JSON"),
        ("page/1.0.0/features.json", "{", "page/1.0.0: {}/page/1.0.0/features.json is not valid JSON"),
        ("live/1.0.0/fingerprint", "", "live/1.0.0: {}/live/1.0.0/fingerprint is not valid JSON"),
    ],
)
def test_descriptions_that_cannot_be_read_are_problems(own_copy, name, content, problem):
    (own_copy / "rope" / name).write_text(content)
    (line,) = problems(own_copy)
    assert line.startswith(problem.replace("{}", str(own_copy / "rope")))


def test_the_command_exits_with_1_if_there_are_problems(own_copy):
    def run():
        command = [sys.executable, "-m", "data_prep.verify", f"--data_dir={own_copy}", "--processes=1"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = run()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "No problems found."), done.stderr
    (own_copy / "rope/build_summary.json").unlink()
    done = run()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "1 problem found."), done.stderr
