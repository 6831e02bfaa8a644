"""Planted damage of every kind is found, in its place, and whole data are passed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from data_prep.records import shards
from data_prep.records.checks import unmatched
from data_prep.records.schema import tally_records
from data_prep.verify import verify

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own_copy(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "data")


def damages(data_dir: Path, **options) -> list[str]:
    lines: list[str] = []
    count = verify(data_dir, **({"processes": 1} | options), report=lines.append)
    found = [line for line in lines if ": read " not in line]
    assert bool(count) == bool(found)
    return [line.removeprefix(f"{data_dir}/rope/") for line in found]


def change(path: Path, number: int, edit, *, reported: bool = True) -> None:
    """Changes a record's example; with `reported` the report says that it was written so."""
    reader = ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    example = tf_example_pb2.Example.FromString(records[number])
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


def test_whole_data_pass_in_any_number_of_processes(built):
    assert damages(built) == []
    assert damages(built, processes=2) == []


def test_a_damaged_file_is_named_with_its_record(own_copy):
    path = own_copy / "rope/video/1.0.0/rope-train.array_record-00001-of-00005"
    reader = ArrayRecordReader(str(path))
    frame = tf_example_pb2.Example.FromString(reader.read([3])[0]).features.feature["frames"].bytes_list.value[1]
    reader.close()
    data = bytearray(path.read_bytes())
    data[data.index(frame) + 100] ^= 255
    path.write_bytes(data)
    lines = damages(own_copy)
    name = f"video/1.0.0/{path.name}"
    assert lines[0].startswith(f"{name}: record 3: cannot be read: Corrupted")
    assert lines[1].startswith(f"{name}: 10 records with 5")


def test_lost_and_cut_files(own_copy):
    folder = own_copy / "rope/live/1.0.0"
    (folder / "rope-test.array_record-00000-of-00001").unlink()
    train = folder / "rope-train.array_record-00000-of-00001"
    train.write_bytes(train.read_bytes()[:-70_000])
    lines = damages(own_copy)
    assert "live/1.0.0/rope-test.array_record-00000-of-00001: not found" in lines
    assert f"live/1.0.0/{train.name}: cannot be read: ArrayRecord file should be at least 64KB big" in lines
    assert f"live/1.0.0/{train.name}: 0 records with 0 frames, wanted 2 with 4" in lines
    assert "live/1.0.0: split 'test' has 0 items, wanted 1" in lines
    assert "product/1.0.0: product 501 points at live row 0 of 0" in lines


@pytest.mark.parametrize(
    ("edit", "damage"),
    [
        (lambda f: f["frames"].bytes_list.value.__setitem__(1, b"<html>"), "record 2: frame 1: not an image"),
        (lambda f: f["frame_times"].int64_list.value.__setitem__(1, -1), "record 2: 4 frames at times"),
        (lambda f: f["frames"].bytes_list.value.pop(), "record 2: 3 frames at times"),
        (lambda f: f["text"].bytes_list.value.__setitem__(0, b"\xff"), "record 2: text is not UTF-8"),
        (lambda f: f["item_id"].int64_list.value.pop(), "record 2: no item id"),
        (lambda f: f["product_ids"].int64_list.value.pop(), "record 2: product ids [], wanted at least one"),
    ],
)
def test_records_that_were_written_wrong(own_copy, edit, damage):
    path = own_copy / "rope/video/1.0.0/rope-train.array_record-00000-of-00005"
    change(path, 2, edit)
    lines = damages(own_copy)
    assert lines[0].startswith(f"video/1.0.0/{path.name}: {damage}"), lines


def test_a_record_that_was_changed_afterwards(own_copy):
    path = own_copy / "rope/page/1.0.0/rope-train.array_record-00000-of-00001"
    change(path, 0, lambda f: f["item_id"].int64_list.value.__setitem__(0, 99), reported=False)
    assert damages(own_copy) == [f"page/1.0.0/{path.name}: other records than were written: the checksum differs"]


def test_records_that_do_not_parse(own_copy):
    path = own_copy / "rope/page/1.0.0/rope-test.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    writer.write(b"\xff\xff")
    writer.close()
    assert any("record 0: does not parse" in line for line in damages(own_copy))


def test_products_that_point_elsewhere(own_copy):
    path = own_copy / "rope/product/1.0.0/rope-train.array_record-00000-of-00001"
    change(path, 1, lambda f: f["video_rows"].int64_list.value.__setitem__(0, 40))
    items = "video/1.0.0/rope-train.array_record-0000"
    assert damages(own_copy) == [
        f"{items}0-of-00005: record 10: no product record 10 points at it",
        f"{items}3-of-00005: record 2: is none of product 10, which points at it",
    ]
    change(path, 1, lambda f: f["product_id"].int64_list.value.__setitem__(0, 0))
    assert f"product/1.0.0/{path.name}: record 1: product id [0], wanted one above 0" in damages(own_copy)


def test_many_damages_are_cut_short(own_copy, monkeypatch):
    monkeypatch.setattr("data_prep.verify.MOST_LINES", 2)
    (own_copy / "rope/product/1.0.0/rope-train.array_record-00000-of-00001").unlink()
    assert any("video/1.0.0/rope-train.array_record-00000-of-00005: and " in line for line in damages(own_copy))


def test_reports_and_summaries_that_lack_or_tell_otherwise(own_copy):
    report = own_copy / "rope/page/1.0.0/reports/rope-train.array_record-00000-of-00001.json"
    report.write_text("")
    (own_copy / "rope/live/1.0.0/fingerprint").write_text("{}")
    lines = damages(own_copy)
    assert f"live/1.0.0: built from other inputs than {own_copy}/rope/build_summary.json says" in lines
    assert any(
        line.startswith(f"page/1.0.0/{report.stem}: its report cannot be read: {report} is no") for line in lines
    )
    (own_copy / "rope/live/1.0.0/dataset_info.json").unlink()
    assert damages(own_copy)[-1] == "live/1.0.0: no finished data set"
    (own_copy / "rope/build_summary.json").unlink()
    assert damages(own_copy) == ["build_summary.json: not found: no build was finished here"]


@pytest.mark.parametrize(
    ("name", "content", "damage"),
    [
        ("build_summary.json", "", "build_summary.json: cannot be read: JSONDecodeError"),
        ("build_summary.json", "{}", "build_summary.json: cannot be read: KeyError('fingerprint')"),
        ("build_summary.json", "[]", "build_summary.json: cannot be read: TypeError"),
        ("page/1.0.0/dataset_info.json", "\0\0", "page/1.0.0: its descriptions, *.json and fingerprint, cannot be"),
        ("page/1.0.0/features.json", "{", "page/1.0.0: its descriptions, *.json and fingerprint, cannot be read: JSON"),
        ("live/1.0.0/fingerprint", "", "live/1.0.0: its descriptions, *.json and fingerprint, cannot be read: JSON"),
    ],
)
def test_descriptions_that_cannot_be_read_are_damage(own_copy, name, content, damage):
    (own_copy / "rope" / name).write_text(content)
    (line,) = damages(own_copy)
    assert line.startswith(damage)


def test_the_command_exits_with_1_where_there_is_damage(own_copy):
    def run():
        command = [sys.executable, "-m", "data_prep.verify", f"--data_dir={own_copy}", "--processes=1"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = run()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "no damage"), done.stderr
    (own_copy / "rope/build_summary.json").unlink()
    done = run()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "1 damages"), done.stderr


def test_unmatched_is_the_difference_of_sets():
    rng = np.random.default_rng(0)
    for _ in range(30):
        first, second = ({tuple(pair) for pair in rng.integers(0, 5, (n, 2)).tolist()} for n in rng.integers(0, 20, 2))
        arrays = [np.array(sorted(pairs), np.int64).reshape(-1, 2) for pairs in (first, second)]
        left, right = ({tuple(pair) for pair in rows.tolist()} for rows in unmatched(*arrays))
        assert (left, right) == (first - second, second - first)
