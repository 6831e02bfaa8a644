"""Tests builds: their summary, and how they handle kills, changed inputs and errors."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cope_jax.data.records import open_records
from data_prep.build import format_summary
from data_prep.catalog.files import Catalog
from data_prep.common.files import lock_file
from data_prep.images import decoding as images
from data_prep.records import shards
from data_prep.records.inputs import Inputs, inputs_from_release

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own_copy(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "data")


def test_dropped_items_and_frames_are_counted_by_reason(small, built):
    summary = json.loads((built / "rope" / "build_summary.json").read_text())
    counts = summary["splits"]["train"]
    frames = sum(len(item.frames) for item in small.splits["train"]["video"])
    assert counts["video"]["items"] == {"in": 60, "kept": 57, "dropped": {"no frames left": 2, "no frames listed": 1}}
    assert counts["video"]["frames"] == {
        "in": frames,
        "kept": frames - 5,
        "dropped": {"does not decode": 1, "missing file": 2, "not an image": 2},
    }
    assert counts["product"]["products"] == {"in": 8, "kept": 7}
    assert summary["splits"]["test"]["live"]["frames"] == {"in": 2, "kept": 2, "dropped": {}}
    assert summary["seconds"] > 0
    assert summary["fingerprint"]["splits"] == "train, test"
    files = (built / "rope" / "video" / "1.0.0").glob("*train.array_record*")
    assert counts["video"]["bytes"] == sum(path.stat().st_size for path in files)
    assert "2 items: no frames left, 1 items: no frames listed, 1 frames: does not" in format_summary(summary)


def test_two_processes_write_the_same_bytes(small, inputs, built, tmp_path, capsys):
    _, lines = small.build(inputs, tmp_path, processes=2)
    assert small.contents(tmp_path) == small.contents(built)
    names = ("page", "video", "live", "product")
    assert lines[:4] == [f"writing {tmp_path}/rope/{name}/1.0.0" for name in names]
    assert not capsys.readouterr().out  # TFDS would print that it downloads the data set


@pytest.mark.parametrize("kind", ["shards", "checked shards", "deep folder", "mixture"])
def test_images_may_be_stored_anywhere(small, inputs, built, tmp_path, write_download, kind):
    names = small.names()
    half = dict(list(names.items())[::2])
    if kind == "deep folder":
        for number, (name, data) in enumerate(names.items()):
            folder = tmp_path / "images" / str(number % 3) / str(number % 5)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    elif kind == "mixture":
        write_download(tmp_path / "images", half)
    else:
        # Our downloader stores only images that decode.
        good = {name: data for name, data in names.items() if images.find_problem(data) is None}
        write_download(tmp_path / "images", good if kind == "checked shards" else names, checked=kind != "shards")
    sources = (tmp_path / "images", inputs.images[0]) if kind == "mixture" else (tmp_path / "images",)
    summary, _ = small.build(Inputs(inputs.catalog, sources), tmp_path / "data")
    for split in small.splits:
        for config in ("page", "video", "live", "product"):
            wanted = small.read(built, config, split)
            assert small.read(tmp_path / "data", config, split) == wanted
    if kind != "checked shards":
        assert summary["splits"] == json.loads((built / "rope" / "build_summary.json").read_text())["splits"]


def test_a_release_is_built_from_its_catalog(small, release, built, tmp_path):
    lines: list[str] = []
    inputs = inputs_from_release(release, tmp_path / "data", report=lines.append)
    small.build(inputs, tmp_path / "data")
    for config in ("page", "video", "live", "product"):
        assert small.read(tmp_path / "data", config, "train") == small.read(built, config, "train")
    again = inputs_from_release(shutil.copytree(release, tmp_path / "copy"), tmp_path / "data", report=lines.append)
    assert lines[-1].endswith("catalog is already complete: nothing to do")
    assert small.build(again, tmp_path / "data")[1][-1].endswith("nothing to do")
    with (tmp_path / "copy" / "training_page_titles.txt").open("a") as file:
        file.write("3, new\n")
    with pytest.raises(ValueError, match=r"catalog of another source \(train page texts differ\)"):
        inputs_from_release(tmp_path / "copy", tmp_path / "data")


def test_prefixes_and_folders_of_images_can_be_given(small, release, inputs, tmp_path):
    (tmp_path / "release").mkdir()
    for path in release.glob("training_*.txt"):
        shutil.copy(path, tmp_path / "release" / path.name.replace("training_", "dev_"))
    own = inputs_from_release(
        tmp_path / "release", tmp_path, images=inputs.images, splits=("train",), prefixes={"train": "dev_"}, report=str
    )
    assert small.build(own, tmp_path)[0]["splits"]["train"]["page"]["items"]["kept"] == 3


def test_a_second_run_does_nothing(small, inputs, own_copy, monkeypatch):
    def never(*_):
        raise AssertionError("an image was read")

    monkeypatch.setattr(images, "read_image", never)
    before = {path: path.stat().st_mtime_ns for path in own_copy.rglob("*")}
    summary, lines = small.build(inputs, own_copy)
    assert lines == [f"{own_copy / 'rope'} is already built from {inputs.catalog}: nothing to do"]
    assert summary == json.loads((own_copy / "rope" / "build_summary.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in own_copy.rglob("*")} == before


@pytest.mark.parametrize("change", ["text", "image removed", "image changed", "splits"])
def test_changed_inputs_are_detected_and_named(small, own_small, inputs, own_copy, tmp_path, change):
    catalog = shutil.copytree(inputs.catalog, tmp_path / "catalog")
    folder = shutil.copytree(inputs.images[0], tmp_path / "images")
    changed = Inputs(catalog, (folder,))
    assert small.build(changed, own_copy)[1] == [  # a copy is the same
        f"{own_copy / 'rope'} is already built from {catalog}: nothing to do"
    ]
    image = folder / "train_page3_0.img"
    changed, named = Inputs(catalog, (folder,)), "names or sizes of images"
    if change == "text":
        own_small.splits["train"]["page"][0].text = "new"
        changed, named = Inputs(own_small.write_catalog(tmp_path / "new"), (folder,)), "text files"
    elif change == "splits":
        changed, named = Inputs(catalog, (folder,), ("train",)), "splits 'train, test' then, 'train' now"
    elif change == "image removed":
        image.unlink()
    else:
        image.write_bytes(small.encode(11, side=12))
    before = small.contents(own_copy)
    with pytest.raises(ValueError, match=rf"page/1\.0\.0 was built from other inputs \({named}\): remove .*rope or"):
        small.build(changed, own_copy)
    assert small.contents(own_copy) == before


def test_large_images_are_shrunk_and_others_keep_their_bytes(own_small, tmp_path):
    large, small_enough = own_small.encode(50, "PNG", side=38), own_small.encode(51, side=8)  # 40 × 38, 10 × 8
    own_small.splits["test"]["live"][0].frames = [(1, large), (2, small_enough)]
    inputs = dataclasses.replace(own_small.write(tmp_path / "small"), splits=("test",), max_side=10)
    summary, _ = own_small.build(inputs, tmp_path / "data")
    assert summary["fingerprint"]["max_side"] == "10"
    ((shrunk, kept),) = (record["frames"] for record in own_small.read(tmp_path / "data", "live", "test"))
    assert kept == small_enough
    with Image.open(io.BytesIO(shrunk)) as image, Image.open(io.BytesIO(large)) as original:
        assert (image.format, image.size) == ("JPEG", (10, 10))  # 9.5 rounds to the even number
        means = [np.asarray(picture.convert("RGB")).mean(axis=(0, 1)) for picture in (image, original)]
    np.testing.assert_allclose(*means, atol=4)
    for other, named in ((12, "'10' then, '12' now"), (None, "'10' then, None now")):
        with pytest.raises(ValueError, match=rf"built from other inputs \(max_side {named}\): remove"):
            own_small.build(dataclasses.replace(inputs, max_side=other), tmp_path / "data")


def test_an_image_that_cannot_be_shrunk_is_dropped(own_small, tmp_path, monkeypatch):
    def fail(data: bytes, scale: float):
        raise images.InvalidImageError(images.ImageProblem.CORRUPT, "Pillow does not decode it")

    monkeypatch.setattr("data_prep.images.index.shrink", fail)
    own_small.splits["test"]["live"][0].frames[1] = (2, own_small.encode(51, side=5))
    inputs = dataclasses.replace(own_small.write(tmp_path / "small"), splits=("test",), max_side=8)
    with pytest.raises(ValueError, match=r"has no page item .*\{'does not decode': 1\}"):
        own_small.build(inputs, tmp_path / "data")


def test_shards_of_other_inputs_are_not_used(small, inputs, built, tmp_path):
    stale = tmp_path / "rope" / "page" / "unfinished-0123456789abcdef"
    shutil.copytree(built / "rope" / "page" / "1.0.0", stale)
    _, lines = small.build(inputs, tmp_path)
    assert f"{stale} contains shards of other inputs, which are not used; you may remove it" in lines
    shutil.rmtree(stale)
    assert small.contents(tmp_path) == small.contents(built)


def test_a_build_killed_between_its_two_renames_loses_no_shard(small, inputs, built, own_copy, monkeypatch):
    page = own_copy / "rope" / "page"
    (page / "1.0.0").rename(page / "incomplete.ABCDEF_1.0.0")
    (page / "incomplete.GHIJKL_1.0.0").mkdir()
    monkeypatch.setattr(shards, "write_shard", None)
    _, lines = small.build(inputs, own_copy)
    assert lines[1] == "train page: 3 of 3 items were written by an earlier run"
    assert small.contents(own_copy) == small.contents(built)
    assert [path.name for path in page.iterdir()] == ["1.0.0"]


def test_invalid_shards_of_an_earlier_run_are_written_again(small, inputs, built, own_copy):
    video = own_copy / "rope" / "video"
    (video / "1.0.0").rename(video / "incomplete.ABCDEF_1.0.0")
    files = sorted((video / "incomplete.ABCDEF_1.0.0").glob("*train*-of-*"))
    data = bytearray(files[1].read_bytes())
    data[40000] ^= 1  # of the same size
    files[1].write_bytes(data)
    (files[3].parent / "reports" / f"{files[3].name}.json").write_text("")
    _, lines = small.build(inputs, own_copy)
    of_two = sum(span.stop - span.start for span in (spans(inputs)[i] for i in (1, 3)))
    assert lines[1] == f"train video: {60 - of_two} of 60 items were written by an earlier run"
    assert small.contents(own_copy) == small.contents(built)


def spans(inputs) -> list[shards.Span]:
    counts = (len(item.frames) for item in Catalog(inputs.catalog).items("train", "video"))
    return shards.plan_shards(counts, max_frames=shards.MIN_FRAMES)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", *map(str, arguments)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_a_killed_build_resumes_and_gives_the_same_bytes(own_small, tmp_path):
    slow = io.BytesIO()  # tens of ms to decode, so that the kill comes before the end
    Image.new("RGB", (3000, 3000)).save(slow, "PNG")
    for item in own_small.splits["train"]["video"][5::6]:  # product 50, in the last shards
        item.frames = [(t, slow.getvalue()) for t in range(6)]
    inputs = own_small.write(tmp_path)
    arguments = [
        "data_prep.build",
        f"--catalog={inputs.catalog}",
        f"--images={inputs.images[0]}",
        f"--data_dir={tmp_path / 'killed'}",
        "--processes=2",
        "--max_missing=0.02",
    ]
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    unfinished = tmp_path / "killed" / "rope" / "video"
    wait_until(lambda: list(unfinished.glob("unfinished-*/reports/*.json")))
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    wait_until(lambda: not any(is_running(pid) for pid in workers))
    assert not (unfinished / "1.0.0").exists()
    finished = {p: p.stat().st_mtime_ns for p in unfinished.glob("unfinished-*/reports/*.json")}
    again = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "items were written by an earlier run" in again.stdout
    for path, moment in finished.items():
        assert (unfinished / "1.0.0" / "reports" / path.name).stat().st_mtime_ns == moment
    own_small.build(inputs, tmp_path / "whole")
    assert own_small.contents(tmp_path / "killed") == own_small.contents(tmp_path / "whole")


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "condition not met in time"
        time.sleep(0.005)


def is_running(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_command_with_an_error_ends_with_one_line(inputs, tmp_path):
    run = subprocess.run(
        command("data_prep.build", f"--catalog={inputs.catalog}", f"--data_dir={tmp_path}", "--images=nowhere"),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stderr == f"build: images folder {ROOT}/nowhere not found\n"
    assert not (tmp_path / "rope").exists()


def test_errors_name_the_remedy(small, inputs, tmp_path):
    with pytest.raises(ValueError, match=rf"images folder {tmp_path}/none not found"):
        small.build(Inputs(inputs.catalog, (tmp_path / "none",)), tmp_path)
    with pytest.raises(ValueError, match=rf"no summary.json in {tmp_path}/none"):
        small.build(Inputs(tmp_path / "none", inputs.images), tmp_path)
    with pytest.raises(ValueError, match=r"splits are \[\]; name at least one"):
        Inputs(inputs.catalog, inputs.images, splits=())
    with pytest.raises(ValueError, match=r"no source of images; name at least one with --images"):
        Inputs(inputs.catalog, ())
    with pytest.raises(ValueError, match=r"has no split 'dev': it has train, test"):
        small.build(Inputs(inputs.catalog, inputs.images, ("dev",)), tmp_path / "dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no page item with an image that decodes in .*'missing file': 3"):
        small.build(Inputs(inputs.catalog, (tmp_path / "empty",)), tmp_path)


def test_a_missing_apache_beam_is_named(small, inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"needs Apache Beam: pip install -r requirements-beam.txt"):
        small.build(inputs, tmp_path, beam_options=[])


def test_two_builds_at_once_are_an_error(small, inputs, tmp_path):
    for folder in (tmp_path / "rope", tmp_path / "rope" / "page"):
        folder.mkdir(parents=True, exist_ok=True)
        message = rf"process {os.getpid()} on .* is building {folder}; wait for it or stop it"
        with lock_file(folder / ".lock", ""), pytest.raises(ValueError, match=message):
            small.build(inputs, tmp_path)


def test_a_split_may_lack_a_domain_but_a_domain_without_items_is_an_error(own_small, inputs, tmp_path):
    own_small.splits["test"].update({"live": []})
    own_small.build(Inputs(own_small.write_catalog(tmp_path / "first"), inputs.images), tmp_path / "data")
    records = open_records(tmp_path / "data", "test")
    assert len(records.items["live"]) == 0 < len(records.items["page"])
    assert all(not len(records.products[number].rows["live"]) for number in range(len(records.products)))
    own_small.splits["train"].update({"live": []})
    catalog = own_small.write_catalog(tmp_path / "catalog")
    with pytest.raises(ValueError, match=r"has no items in domain live: build other .* a larger --test_fraction"):
        own_small.build(Inputs(catalog, inputs.images), tmp_path)
