"""Tests that the release is complete, reproducible, as planned, and readable as a catalog."""

import collections
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.catalog.release_catalog import build_release_catalog
from data_prep.common.domains import DOMAINS
from data_prep.synthetic import release as synthetic
from data_prep.synthetic.products import DEFAULT_RECIPE
from data_prep.synthetic.release import plan_release, text_files, write_release

ROOT = Path(__file__).parents[3]
SIZES = {"train_products": 13, "test_products": 9, "image_side": 24, "seed": 7}
ROWS = {
    "product_pages_pair": r"\d+, \d+",
    "page_titles": r"\d+, \S.*\S",
    "page_images": r"\d+, [0-9a-f-]{36}\.jpg ",
    "video_frames": r"\d+, \d+, [0-9a-f-]{36}\.jpg ",
    "live_clips": r"\d+, 16\d{11}, [0-9a-f-]{36}\.jpg ",
    "live_asrs": r"\d+, (空|\S.*\S)",
}


def digests(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("synthetic") / "release", **SIZES)


@pytest.fixture(scope="module")
def catalog(release):
    """The catalog of the release, from which no line is rejected."""
    catalog = build_release_catalog(release, release.with_name("catalog"), max_rejected=0, report=lambda line: None)
    assert (catalog.folder / "rejected.jsonl").read_bytes() == b""
    return catalog


def test_the_bytes_do_not_depend_on_the_number_of_processes(release, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "BATCH", 5)
    again = write_release(tmp_path / "two", **SIZES, processes=2)
    assert digests(again) == digests(release)


@pytest.mark.parametrize(
    ("recipe", "digest"),
    [
        (6, "754965ddb244f1bab55a1c63db73232c54ab50ec2e4e2d16adf385a127288afe"),
        (7, "e97d98bc443c0efc857f22cda42f43e39627920afea796a0774027fe6fc1dc28"),
    ],
)
def test_texts_of_a_recipe_stay_the_same_from_version_to_version(recipe, digest):
    tables = dict(text_files(plan_release(13, 9, 7, recipe), 7))
    assert hashlib.sha256(json.dumps(tables).encode()).hexdigest() == digest


def test_another_seed_gives_other_bytes(release, tmp_path):
    other = digests(write_release(tmp_path / "other", **SIZES | {"seed": 8}))
    mine = digests(release)
    assert not {v for k, v in mine.items() if k.startswith("images/")} & set(other.values())
    assert all(mine[name] != other[name] for name in mine if name.endswith(".txt"))


def test_a_release_is_eighteen_text_files_images_and_the_options(release):
    assert len(list(release.glob("*.txt"))) == 18
    assert {path.name for path in release.iterdir() if path.suffix != ".txt"} == {"images", "synthetic.json"}
    assert json.loads((release / "synthetic.json").read_text()) == {"recipe": DEFAULT_RECIPE, **SIZES}


@pytest.mark.parametrize("table", ROWS)
def test_rows_are_written_as_in_the_real_release(release, table):
    for prefix in ("training", "test"):
        rows = (release / f"{prefix}_{table}.txt").read_text(encoding="utf-8").split("\n")
        assert rows.pop() == ""
        assert all(re.fullmatch(ROWS[table], row) for row in rows)


def test_the_release_reads_back_as_planned(catalog):
    plan = plan_release(SIZES["train_products"], SIZES["test_products"], SIZES["seed"], DEFAULT_RECIPE)
    for split in ("train", "test"):
        for domain in DOMAINS:
            planned = {i.item_id: i for i in plan.items if (i.split, i.domain) == (split, domain)}
            read = list(catalog.items(split, domain))
            assert {item.item_id for item in read} == set(planned)
            for item in read:
                wanted = planned[item.item_id]
                assert item.text == ("" if wanted.text == "空" else wanted.text)
                assert item.product_ids == tuple(sorted(p.product_id for p in wanted.products))
                assert tuple((f.time, f.name) for f in item.frames) == wanted.frames
    train, test = ({p.product_id for p in catalog.products(split)} for split in ("train", "test"))
    assert len(train) + len(test) == 13 + 9
    assert not train & test


def test_every_image_exists_and_has_the_requested_size(release, catalog):
    items = [item for split in ("train", "test") for domain in DOMAINS for item in catalog.items(split, domain)]
    named = {frame.name for item in items for frame in item.frames}
    assert named == {path.name for path in (release / "images").iterdir()}
    for name in sorted(named)[:100]:
        image = Image.open(io.BytesIO((release / "images" / name).read_bytes()))
        image.load()
        assert (image.format, image.size, image.mode) == ("JPEG", (24, 24), "RGB")


def test_a_finished_release_is_kept(release, capsys):
    before = {path: path.stat().st_mtime_ns for path in release.rglob("*")}
    assert write_release(release, **SIZES) == release
    assert capsys.readouterr().out == f"{release} is already written\n"
    assert {path: path.stat().st_mtime_ns for path in release.rglob("*")} == before


def test_other_options_are_an_error_that_names_both(release):
    with pytest.raises(ValueError, match=r"other options \(image_side: 24 there, 32 given\); choose another --out"):
        write_release(release, **SIZES | {"image_side": 32})


def test_a_folder_with_something_else_is_an_error(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(
        ValueError,
        match=r"exists and is not a synthetic release, because it has no synthetic\.json",
    ):
        write_release(tmp_path, **SIZES)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_an_interrupted_run_leaves_no_release_and_the_next_starts_over(release, tmp_path, monkeypatch):
    out = tmp_path / "release"
    original, left = synthetic.draw_item, list(range(20))

    def draw_twenty(*args, **options):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "draw_item", draw_twenty)
        with pytest.raises(KeyboardInterrupt):
            write_release(out, **SIZES)
    assert not out.exists()
    leftover = tmp_path / "release.writing" / "images" / "leftover.jpg"  # of a run that was killed
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    assert digests(write_release(out, **SIZES)) == digests(release)
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_killed_worker_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "BATCH", 5)
    monkeypatch.setattr(synthetic, "Batch", lambda *_: 9)
    monkeypatch.setattr(synthetic, "draw_batch", os._exit)
    with pytest.raises(ChildProcessError, match=r"a worker process was killed, .* fewer --processes"):
        write_release(tmp_path / "x", **SIZES, processes=2)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"train_products": 3}, r"--train_products=3 \(8 to 200000\)"),
        ({"test_products": 300_000}, r"--test_products=300000 \(8 to 200000\)"),
        ({"image_side": 8}, r"--image_side=8 \(16 to 4096\)"),
        ({"processes": 0}, r"--processes=0 \(1 to 1024\)"),
        ({"recipe": 5}, r"there is no recipe 5; choose from 6, 7"),
    ],
)
def test_options_out_of_range_are_an_error(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        write_release(tmp_path / "x", **SIZES | option)
    assert not (tmp_path / "x").exists()


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "data_prep.synthetic", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120)


def test_the_command_writes_the_same_release_and_ends_with_one_line_on_errors(release, tmp_path):
    flags = [f"--{name}={value}" for name, value in SIZES.items()]
    done = run(f"--out={tmp_path / 'cli'}", *flags, "--processes=2")
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "cli") == digests(release)
    failed = run(f"--out={tmp_path / 'cli'}", *flags, "--seed=1")
    assert failed.returncode == 1
    assert "contains a synthetic release with other options" in failed.stderr
    assert "Traceback" not in failed.stderr
    failed = run(f"--out={tmp_path / 'cli' / 'synthetic.json' / 'x'}", *flags)
    assert failed.returncode == 1
    assert re.match(r"synthetic: \[Errno \d+\] .*synthetic\.json", failed.stderr)


@pytest.fixture(scope="module")
def plan():
    return plan_release(1500, 220, 0, DEFAULT_RECIPE)


def of(plan, split, domain):
    return [item for item in plan.items if (item.split, item.domain) == (split, domain)]


def test_every_domain_of_the_test_split_has_at_least_400_items(plan):
    assert len(plan.products["test"]) == 220
    for domain in DOMAINS:
        assert len(of(plan, "test", domain)) >= 400


def test_a_product_has_one_to_four_items_in_a_domain(plan):
    counts = collections.Counter((item.domain, item.products[0].product_id) for item in plan.items)
    assert set(counts.values()) == {1, 2, 3, 4}


def test_some_products_lack_one_domain_but_none_lacks_two(plan):
    for split, products in plan.products.items():
        has = {d: {p.product_id for item in of(plan, split, d) for p in item.products} for d in DOMAINS}
        lacking = collections.Counter(
            sum(product.product_id not in has[domain] for domain in DOMAINS) for product in products
        )
        assert set(lacking) == {0, 1}
        assert lacking[1] / len(products) == pytest.approx(0.08, abs=0.01)
        for domain in DOMAINS:
            assert 0.02 < 1 - len(has[domain]) / len(products) < 0.035


def test_some_items_belong_to_two_products_of_their_split(plan):
    assert collections.Counter(len(set(item.products)) for item in plan.items).keys() == {1, 2}
    assert np.mean([len(item.products) == 2 for item in plan.items]) == pytest.approx(0.05, abs=0.01)
    split_of = {p.product_id: split for split, products in plan.products.items() for p in products}
    assert all(split_of[p.product_id] == item.split for item in plan.items for p in item.products)


def test_clips_have_four_to_twelve_frames_and_pages_one(plan):
    counts = {domain: {len(i.frames) for i in plan.items if i.domain == domain} for domain in DOMAINS}
    assert counts == {"page": {1}, "video": set(range(4, 13)), "live": set(range(4, 13))}
    mean = np.mean([len(item.frames) for item in plan.items if item.domain != "page"])
    assert mean == pytest.approx(6.5, abs=0.1)


def test_frames_are_in_time_order_with_the_durations_of_lives(plan):
    for item in plan.items:
        times = [time for time, _ in item.frames]
        assert times == sorted(set(times))
    spans = [item.frames[-1][0] - item.frames[0][0] for item in plan.items if item.domain == "live"]
    assert 60_000 < np.median(spans) < 20 * 60_000
    assert all(len(str(item.frames[0][0])) == 13 for item in plan.items if item.domain == "live")


def test_ids_are_unique_within_a_domain_and_repeat_across_domains(plan):
    ids = {domain: sorted(i.item_id for i in plan.items if i.domain == domain) for domain in DOMAINS}
    for domain in DOMAINS:
        assert ids[domain] == list(range(1, len(ids[domain]) + 1))


def test_image_names_look_like_the_real_ones_and_never_repeat(plan):
    names = [name for item in plan.items for _, name in item.frames]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.jpg", name) for name in names)


def test_shelves_contain_products_of_their_own_split(plan):
    for split, products in plan.products.items():
        assert len(plan.shelves[split]) == 96
        assert set(plan.shelves[split]) <= {product.attributes for product in products}
