"""Tests that the records match the catalog they were built from."""

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from data_prep.common.domains import DOMAINS
from data_prep.rope import rope_dataset_builder
from data_prep.rope.rope_dataset_builder import Builder

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_records_are_the_items_of_the_catalog(small, built, split, domain):
    assert small.read(built, domain, split) == small.expected(split, domain)


@pytest.mark.parametrize("split", ["train", "test"])
def test_product_records_list_the_rows_of_their_items(small, built, split):
    records = small.read(built, "product", split)
    ids = [record["product_id"] for record in records]
    assert ids == {"train": [0, 10, 20, 30, 40, 50, 77], "test": [501]}[split]  # 900 has no image left
    for domain in DOMAINS:
        rows = {product: [] for product in ids}
        for row, item in enumerate(small.expected(split, domain)):
            for product in item["product_ids"]:
                rows[product].append(row)
        assert {record["product_id"]: record[f"{domain}_rows"] for record in records} == rows


def test_products_fill_several_shards(small, inputs, built, tmp_path, monkeypatch):
    monkeypatch.setattr(rope_dataset_builder, "PRODUCTS_PER_SHARD", 3)
    small.build(inputs, tmp_path)
    info = tfds.builder_from_directory(tmp_path / "rope" / "product" / "1.0.0").info.splits["train"]
    assert info.shard_lengths == [3, 3, 1]
    assert small.read(tmp_path, "product", "train") == small.read(built, "product", "train")


def test_several_shards_are_one_split(built):
    info = tfds.builder_from_directory(built / "rope" / "video" / "1.0.0").info.splits["train"]
    assert info.num_shards == 5  # 297 frames, at most 64 per shard, divided between items
    assert info.num_examples == 57
    assert info.num_bytes == sum(Path(path).stat().st_size for path in info.filepaths)


def test_only_the_data_sets_remain(built):
    assert {path.name for path in (built / "rope").iterdir()} - {".config"} == {
        *DOMAINS,
        "product",
        "build_summary.json",
        "domains.json",
        "dropped.jsonl",
    }


def test_tfds_opens_the_data_by_name(small, built):
    source = tfds.data_source("rope/page", data_dir=built, split="train")
    assert small.plain(source[1]) == small.expected("train", "page")[1]
    splits = tfds.builder("rope/product", data_dir=built).info.splits
    assert {name: split.num_examples for name, split in splits.items()} == {"train": 7, "test": 1}


def test_tfds_build_makes_the_same_records_from_the_release_without_tensorflow(release, built, tmp_path):
    code = (
        "import sys, runpy\n"
        "try: runpy.run_module('data_prep.tfds_build', run_name='__main__', alter_sys=True)\n"
        "finally: print('imported', sorted({'tensorflow', 'jax', 'torch'} & set(sys.modules)))\n"
    )
    flags = ["data_prep/rope", "--config=page", f"--data_dir={tmp_path}", f"--manual_dir={release}"]
    run = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "imported []" in run.stdout
    assert f"writing {tmp_path}/rope/page/1.0.0" in run.stderr
    assert "Downloading" not in run.stdout + run.stderr
    name = "rope/page/1.0.0/rope-train.array_record-00000-of-00001"
    assert (tmp_path / name).read_bytes() == (built / name).read_bytes()


def test_the_limit_of_missing_images_holds_for_tfds(release, tmp_path):
    for file in release.glob("*.txt"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "other.jpg").touch()
    builder = Builder(config="page", data_dir=tmp_path / "data")
    with pytest.raises(ValueError, match=r"train page images, .* are missing in .* call build with --max_missing=1.0"):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path))
    assert not list((tmp_path / "data").rglob("*array_record*"))


def test_errors_name_the_remedy(inputs, release, tmp_path):
    def prepare(config: str, manual_dir: Path, **options):
        download_config = tfds.download.DownloadConfig(manual_dir=manual_dir, **options)
        Builder(config=config, data_dir=tmp_path).download_and_prepare(download_config=download_config)

    with pytest.raises(ValueError, match="rope/product needs the rows of rope/page; build that one first"):
        prepare("product", release)
    with pytest.raises(ValueError, match="max_examples_per_split is not supported"):
        prepare("page", release, max_examples_per_split=1)
    with pytest.raises(ValueError, match="file format tfrecord is not supported; use array_record"):
        Builder(config="page", data_dir=tmp_path, file_format="tfrecord", inputs=inputs).download_and_prepare()
