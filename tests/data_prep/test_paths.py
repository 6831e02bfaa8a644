"""Tests that every command of data_prep works below a folder of any name, and that neighbors are not touched."""

import re
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cope_jax.data.records import fingerprint, open_records
from data_prep.build import build
from data_prep.inspect.page import inspect, render
from data_prep.inspect.split_overlap import check_split
from data_prep.records.inputs import inputs_from_release
from data_prep.rope.rope_dataset_builder import Builder
from data_prep.synthetic.release import write_release
from data_prep.table import build_table_catalog
from data_prep.verify import verify

SPECIAL = "?*[]{}()!^=,:;@%#~$&|<>`'\"\\ \n\t-+.ée\u0301\u200b\U0001f600ax1"
NAMES = st.text(st.sampled_from(SPECIAL), min_size=1, max_size=12).filter(lambda name: name not in (".", ".."))


def make_data(folder: Path, seed: int) -> Path:
    sizes = {"train_products": 8, "test_products": 8, "image_side": 32}
    release = write_release(folder / "release", **sizes, seed=seed, processes=1)
    inputs = inputs_from_release(release, folder / "data", report=str)
    build(inputs, folder / "data", processes=1, report=str)
    return folder / "data"


def contents(data_dir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(data_dir)): path.read_bytes()
        for path in data_dir.rglob("*")
        if path.is_file() and path.name not in ("build_summary.json", "summary.json")
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("plain"), seed=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """Other data, for a folder whose name the tested name matches as a pattern."""
    return make_data(tmp_path_factory.mktemp("other"), seed=2)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(name=NAMES)
@example("what?")
@example("data*")
@example("size=224")
@example("?a=1")
@example("**")
@example("[!a]")
def test_all_commands_work_in_folders_of_random_names(plain, other, name):
    check_folder(plain, other, name)


@pytest.mark.parametrize(
    "name", ["~", "s3:", "source=1", "data [v2]*{a,b}?c=1", "a\\b, \"c' %20#\n\u00e9e\u0301 \U0001f600"]
)
def test_all_commands_work_in_a_folder_of_any_name(plain, other, name):
    check_folder(plain, other, name)


def check_folder(plain: Path, other: Path, name: str) -> None:
    """Runs the commands in a folder of this name, next to one that the name matches if it is read as a pattern."""
    with tempfile.TemporaryDirectory() as root:
        matched = Path(root, re.sub(r"\[.*?\]|[?*[\]{}!]", "x", name) + "x")
        before = contents(shutil.copytree(other.parent, matched))
        data_dir = make_data(Path(root, name), seed=1)
        assert contents(data_dir) == contents(plain)
        problems: list[str] = []
        assert verify(data_dir, processes=1, report=problems.append) == 0, problems
        assert "product" in render(data_dir, inspect(data_dir, items=0, products=2, processes=1))
        assert (check_split(data_dir, processes=1).products, contents(data_dir)) == (0, contents(plain))
        records, expected = open_records(data_dir, "train+test"), open_records(plain, "train+test")
        assert records.items["video"][0] == expected.items["video"][0]
        assert records.products.ids().tolist() == expected.products.ids().tolist()
        assert fingerprint(data_dir, "test") == fingerprint(plain, "test")
        table, release = Path(root, name, "items.csv"), Path(root, name, "release")
        image = min((release / "images").iterdir()).name
        table.write_text(f"product,domain,item,images,split\n1,page,2,images/{image},train\n", encoding="utf-8")
        catalog = build_table_catalog(table, release, Path(root, name, "catalog"), report=problems.append)
        assert [item.item_id for item in catalog.items("train", "page")] == [2]
        assert not any("warning" in line for line in problems), problems
        assert contents(matched) == before


@pytest.mark.slow
def test_a_relative_folder_is_not_a_home_folder_or_a_url(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("~root", "file:"):
        assert contents(make_data(Path(name), seed=1)) == contents(plain)
        assert verify(Path(name) / "data", processes=1, report=str) == 0
        assert check_split(Path(name) / "data", processes=1).images == 0


@pytest.mark.slow
def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    data_dir = make_data(tmp_path, seed=1)
    assert verify(data_dir, processes=1, report=str) == 0
    inspect(data_dir, items=0, products=1, processes=1)
    check_split(data_dir, processes=1)
    open_records(data_dir, "train")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_folder_that_tfds_takes_for_a_url_is_an_error():
    with pytest.raises(ValueError, match="TFDS reads the data folder /s3/shop as s3://shop; use a link to it"):
        Builder(config="page", data_dir="/s3/shop")
