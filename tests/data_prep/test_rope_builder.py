"""The records against the release they were built from, and what kills, changes and faults do to a build."""

import dataclasses
import fcntl
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
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import images, shards
from data_prep.build import build, format_summary
from data_prep.inputs import BuildError, Inputs, release_inputs
from data_prep.release import DOMAINS, Frame, Item, ReleaseError
from data_prep.rope.rope_dataset_builder import Builder

ROOT = Path(__file__).parents[2]
FILES = {
    "page": ("product_pages_pair", "page_titles", "page_images"),
    "video": ("product_videos_pair", "video_asrs", "video_frames"),
    "live": ("product_lives_pair", "live_asrs", "live_clips"),
}


@dataclasses.dataclass
class Wanted:
    """An item as it goes into a test release; bytes None stands for an image that is not on disk."""

    item_id: int
    products: list[int]
    text: str | None
    frames: list[tuple[int, bytes | None]]


def encode(seed: int, kind: str = "JPEG", side: int = 9) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 2, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_split(folder: Path, prefix: str, domains: dict[str, list[Wanted]]) -> None:
    """Writes the nine files, rows last to first, and the images."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for domain, items in domains.items():
        pairs, texts, frames = [], [], []
        for item in items:
            pairs += [f"{product}, {item.item_id}\n" for product in item.products]
            texts += [] if item.text is None else [f"{item.item_id}, {item.text}\n"]
            for index, (moment, data) in enumerate(item.frames):
                name = f"{prefix}{domain}{item.item_id}_{index}.img"
                if data is not None:
                    (folder / "images" / name).write_bytes(data)
                clock = "" if domain == "page" else f"{moment}, "
                frames.append(f"{item.item_id}, {clock}{name} \n")
        for name, rows in zip(FILES[domain], (pairs, texts, frames), strict=True):
            (folder / f"{prefix}{name}.txt").write_text("".join(reversed(rows)), encoding="utf-8")


def make_train() -> dict[str, list[Wanted]]:
    # Product 10·(i mod 6): many videos of 4 to 6 frames, for several shards.
    videos = [
        Wanted(i, [10 * (i % 6)], f"第{i}个,好", [(7 * t, encode(100 * i + t)) for t in range(4 + i % 3)])
        for i in range(60)
    ]
    videos[7].frames[2] = (14, encode(1)[:40])  # broken
    videos[7].frames[0] = (0, None)  # not on disk
    videos[8].frames = [(0, b"<html>"), (9, None)]  # nothing left
    videos[9].frames = []
    videos[59] = Wanted(59, [900], "x", [(3, b"")])  # the only item of its product
    videos[11].text = "空"
    pages = [
        Wanted(7, [40, 20], "页,面", [(0, encode(2, "PNG"))]),
        Wanted(3, [20], None, [(0, encode(3))]),
        Wanted(1, [10, 77], "a", [(0, encode(4, "WEBP"))]),
    ]
    lives = [
        Wanted(7, [20], "空", [(1668122889829, encode(5)), (1668122880000, encode(6)), (5, encode(7))]),
        Wanted(2, [20, 10], "直播", [(1, encode(8))]),
    ]
    return {"page": pages, "video": videos, "live": lives}


def make_test() -> dict[str, list[Wanted]]:
    clip = [(4, encode(9)), (2, encode(10))]
    frames = {"page": [(0, encode(12))], "video": clip, "live": clip}
    return {domain: [Wanted(5, [501], domain, frames[domain])] for domain in DOMAINS}


SPLITS = {"train": make_train(), "test": make_test()}


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    write_split(folder, "training_", SPLITS["train"])
    write_split(folder, "test_", SPLITS["test"])
    return folder


def quiet_build(release: Path, data_dir: Path, processes: int = 1) -> tuple[dict, list[str]]:
    lines: list[str] = []
    return build(release_inputs(release, data_dir), data_dir, processes=processes, report=lines.append), lines


@pytest.fixture(scope="module")
def built(release, tmp_path_factory) -> Path:
    data_dir = tmp_path_factory.mktemp("data")
    quiet_build(release, data_dir)
    return data_dir


@pytest.fixture
def own_copy(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "data")


def decodes(data: bytes | None) -> bool:
    try:
        Image.open(io.BytesIO(data or b"")).load()
    except OSError:
        return False
    return True


def expected_items(split: str, domain: str) -> list[dict]:
    """What the records have to hold, from the test's own account of the release."""
    records = []
    for item in sorted(SPLITS[split][domain], key=lambda item: (min(item.products), item.item_id)):
        frames = [(moment, data) for moment, data in sorted(item.frames, key=lambda f: f[0]) if decodes(data)]
        if frames:
            records.append(
                {
                    "item_id": item.item_id,
                    "text": "" if item.text in (None, "空") else item.text,
                    "product_ids": sorted(item.products),
                    "frames": [data for _, data in frames],
                    "frame_times": [moment for moment, _ in frames],
                }
            )
    return records


def read_all(data_dir: Path, config: str, split: str) -> list[dict]:
    builder = tfds.builder_from_directory(data_dir / "rope" / config / "1.0.0")
    return [plain(record) for record in builder.as_data_source(split)]


def plain(record: dict) -> dict:
    fields = {key: value if key == "frames" else np.asarray(value).tolist() for key, value in record.items()}
    return fields | ({"text": record["text"].decode()} if "text" in record else {})


def contents(data_dir: Path) -> dict[str, bytes]:
    folder = data_dir / "rope"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_records_are_the_items_of_the_release(built, split, domain):
    assert read_all(built, domain, split) == expected_items(split, domain)


@pytest.mark.parametrize("split", ["train", "test"])
def test_product_records_point_back(built, split):
    records = read_all(built, "product", split)
    ids = [record["product_id"] for record in records]
    assert ids == {"train": [0, 10, 20, 30, 40, 50, 77], "test": [501]}[split]  # 900 has no image left
    for domain in DOMAINS:
        rows = {product: [] for product in ids}
        for row, item in enumerate(expected_items(split, domain)):
            for product in item["product_ids"]:
                rows[product].append(row)
        assert {record["product_id"]: record[f"{domain}_rows"] for record in records} == rows


def test_several_shards_are_one_split(built):
    info = tfds.builder_from_directory(built / "rope" / "video" / "1.0.0").info.splits["train"]
    assert info.num_shards == 5  # 297 frames at 64 a shard, cut between items
    assert info.num_examples == 57
    assert info.num_bytes == sum(Path(path).stat().st_size for path in info.filepaths)


def test_dropped_are_counted_by_reason(built):
    summary = json.loads((built / "rope" / "build_summary.json").read_text())
    video = summary["train"]["video"]
    frames = sum(len(item.frames) for item in SPLITS["train"]["video"])
    assert video["items"] == {"in": 60, "kept": 57, "dropped": {"no frames left": 2, "no frames listed": 1}}
    assert video["frames"] == {
        "in": frames,
        "kept": frames - 5,
        "dropped": {"does not decode": 1, "missing file": 2, "not an image": 2},
    }
    assert summary["train"]["product"]["products"] == {"in": 8, "kept": 7}
    assert summary["test"]["live"]["frames"] == {"in": 2, "kept": 2, "dropped": {}}
    assert "2 items: no frames left, 1 items: no frames listed, 1 frames: does not" in format_summary(summary)


def test_two_processes_write_the_same_bytes(release, built, tmp_path):
    quiet_build(release, tmp_path, processes=2)
    assert contents(tmp_path) == contents(built)


def test_second_run_does_nothing(release, own_copy, monkeypatch):
    def never(*_):
        raise AssertionError("an image was read")

    monkeypatch.setattr(images, "read_image", never)
    before = {path: path.stat().st_mtime_ns for path in own_copy.rglob("*")}
    summary, lines = quiet_build(release, own_copy)
    assert lines == [f"{own_copy / 'rope'} is already built from {release}: nothing to do"]
    assert summary == json.loads((own_copy / "rope" / "build_summary.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in own_copy.rglob("*")} == before


@pytest.mark.parametrize("change", ["text", "image removed", "image changed"])
def test_changed_inputs_are_noticed(release, own_copy, tmp_path, change):
    changed = shutil.copytree(release, tmp_path / "release")
    assert quiet_build(changed, own_copy)[1] == [
        f"{own_copy / 'rope'} is already built from {changed}: nothing to do"  # a copy is the same release
    ]
    image = changed / "images" / "training_page3_0.img"
    if change == "text":
        with (changed / "training_page_titles.txt").open("a") as file:
            file.write("3, new\n")
    elif change == "image removed":
        image.unlink()
    else:
        image.write_bytes(encode(11, side=12))
    before = contents(own_copy)
    with pytest.raises(BuildError, match=r"page/1\.0\.0 was built from other inputs .* remove .*rope or take"):
        quiet_build(changed, own_copy)
    download_config = tfds.download.DownloadConfig(manual_dir=changed)
    with pytest.raises(BuildError, match="was built from other inputs"):
        Builder(config="live", data_dir=own_copy).download_and_prepare(download_config=download_config)
    assert contents(own_copy) == before


def test_shards_of_other_inputs_are_not_used(release, built, tmp_path):
    stale = tmp_path / "rope" / "page" / "unfinished-0123456789abcdef"
    shutil.copytree(built / "rope" / "page" / "1.0.0", stale)
    _, lines = quiet_build(release, tmp_path)
    assert f"{stale} has shards of other inputs; they are not used, the folder may be removed" in lines
    shutil.rmtree(stale)
    assert contents(tmp_path) == contents(built)


def test_a_kill_between_the_two_renames_loses_no_shard(release, built, own_copy, monkeypatch):
    page = own_copy / "rope" / "page"
    (page / "1.0.0").rename(page / "incomplete.ABCDEF_1.0.0")
    (page / "incomplete.GHIJKL_1.0.0").mkdir()
    monkeypatch.setattr(shards, "write_shard", None)
    _, lines = quiet_build(release, own_copy)
    assert lines[0].startswith("train page: 3/3 items, 3 of them by an earlier run")
    assert contents(own_copy) == contents(built)
    assert [path.name for path in page.iterdir()] == ["1.0.0"]


def test_a_report_without_its_whole_shard_does_not_count(release, built, tmp_path):
    items = (Item(3, "a", (20,), (Frame(0, "training_page3_0.img"),)),)
    shard = shards.Shard(tmp_path / "x", items, release / "images")
    assert shards.finished(shard) is None
    report = shards.write_shard(shard)
    assert shards.finished(shard) == report
    assert shards.finished(dataclasses.replace(shard, items=(*items, Item(4, "", (20,), ())))) is None
    assert shards.finished(dataclasses.replace(shard, items=(Item(4, "", (20,), ()),))) is None
    shard.path.write_bytes(shard.path.read_bytes()[:-1])
    assert shards.finished(shard) is None


def test_shards_are_cut_between_items():
    items = [Item(i, "", (1,), tuple(Frame(t, "a") for t in range(n))) for i, n in enumerate((2, 2, 1, 5, 0, 0))]
    wanted = [range(0, 2), range(2, 3), range(3, 4), range(4, 6)]
    assert shards.plan_shards(items, max_frames=4) == wanted
    assert shards.plan_shards(items) == [range(0, 6)]
    assert shards.plan_shards([]) == []


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", *map(str, arguments)]


def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path):
    slow = io.BytesIO()  # 30 ms to decode, so that the kill comes before the end
    Image.new("RGB", (3000, 3000)).save(slow, "JPEG")
    domains = make_train()
    for item in domains["video"][5::6]:  # product 50, in the last shards
        item.frames = [(t, slow.getvalue()) for t in range(6)]
    release = tmp_path / "release"
    write_split(release, "training_", domains)
    arguments = ["data_prep.build", f"--release={release}", "--splits=train", "--processes=2"]
    process = subprocess.Popen(
        command(*arguments, f"--data_dir={tmp_path / 'killed'}"), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    unfinished = tmp_path / "killed" / "rope" / "video"
    wait_until(lambda: list(unfinished.glob("unfinished-*/reports/*.json")))
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    wait_until(lambda: not any(is_running(pid) for pid in workers))
    assert not (unfinished / "1.0.0").exists()
    finished = {p: p.stat().st_mtime_ns for p in unfinished.glob("unfinished-*/reports/*.json")}
    again = subprocess.run(
        command(*arguments, f"--data_dir={tmp_path / 'killed'}"), cwd=ROOT, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert "of them by an earlier run" in again.stdout
    for path, moment in finished.items():
        assert (unfinished / "1.0.0" / "reports" / path.name).stat().st_mtime_ns == moment
    build(Inputs(release, splits=("train",)), tmp_path / "whole", processes=1, report=str)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def wait_until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def is_running(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_tfds_opens_the_data_by_name(built):
    source = tfds.data_source("rope/page", data_dir=built, split="train")
    assert plain(source[1]) == expected_items("train", "page")[1]
    splits = tfds.builder("rope/product", data_dir=built).info.splits
    assert {name: split.num_examples for name, split in splits.items()} == {"train": 7, "test": 1}


def test_tfds_build_makes_the_same_records_without_tensorflow(release, built, tmp_path):
    code = (
        "import sys, runpy\n"
        "try: runpy.run_module('data_prep.tfds_build', run_name='__main__', alter_sys=True)\n"
        "finally: print('imported', sorted({'tensorflow', 'jax', 'torch'} & set(sys.modules)))\n"
    )
    flags = ["data_prep/rope", "--config=page", f"--data_dir={tmp_path}", f"--manual_dir={release}"]
    run = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "imported []" in run.stdout
    records = "page/1.0.0/rope-train.array_record-00000-of-00001"
    assert contents(tmp_path)[records] == contents(built)[records]


def test_a_faulty_command_ends_in_one_sentence(release, tmp_path):
    folder = shutil.copytree(release, tmp_path / "release")
    (folder / "test_page_titles.txt").write_text("5, a\nfive, b\n")
    run = subprocess.run(
        command("data_prep.build", f"--release={folder}", f"--data_dir={tmp_path / 'data'}"),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    place = f"{folder}/test_page_titles.txt:2"
    assert not (tmp_path / "data").exists()
    assert run.stderr == f"error: {place}: page id 'five' is not a whole number from 0 to {2**63 - 1}\n"


def test_faults_name_the_remedy(release, tmp_path):
    with pytest.raises(ReleaseError, match=rf"images folder {tmp_path}/none not found"):
        build(Inputs(release, images=tmp_path / "none"), tmp_path, processes=1)
    with pytest.raises(BuildError, match=r"wanted at least one"):
        Inputs(release, splits=())
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match=r"no page item with an image that decodes in .*'missing file': 3"):
        build(Inputs(release, images=tmp_path / "empty"), tmp_path, processes=1, report=str)
    config = tfds.download.DownloadConfig(manual_dir=release)
    with pytest.raises(BuildError, match="rope/product needs the rows of rope/page: build that one first"):
        Builder(config="product", data_dir=tmp_path).download_and_prepare(download_config=config)
    with pytest.raises(BuildError, match="file format tfrecord not supported: only array_record"):
        Builder(config="page", data_dir=tmp_path, file_format="tfrecord").download_and_prepare(download_config=config)
    config = tfds.download.DownloadConfig(manual_dir=release, max_examples_per_split=1)
    with pytest.raises(BuildError, match="max_examples_per_split is not supported"):
        Builder(config="page", data_dir=tmp_path).download_and_prepare(download_config=config)


def test_prefixes_and_images_folder_can_be_given(release, tmp_path):
    (tmp_path / "release").mkdir()
    for path in release.glob("training_*.txt"):
        shutil.copy(path, tmp_path / "release" / path.name.replace("training_", "dev_"))
    inputs = Inputs(tmp_path / "release", release / "images", splits=("train",), prefixes={"train": "dev_"})
    summary = build(inputs, tmp_path, processes=1, report=str)
    assert summary["train"]["page"]["items"]["kept"] == 3
    assert read_all(tmp_path, "page", "train") == expected_items("train", "page")


def test_two_builds_at_once_are_refused(release, tmp_path):
    (tmp_path / "rope" / "page").mkdir(parents=True)
    lock = os.open(tmp_path / "rope" / "page", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(BuildError, match=r"another build writes to .*page: wait for it or stop it"):
        quiet_build(release, tmp_path)
    os.close(lock)


def test_a_domain_without_items_is_an_error(release, tmp_path):
    folder = shutil.copytree(release, tmp_path / "release")
    (folder / "test_product_lives_pair.txt").write_text("")
    with pytest.raises(BuildError, match=r"split 'test' of .* has no live items"):
        quiet_build(folder, tmp_path)
