"""Tests that files which were cut off or overwritten are errors that name the file."""

import shutil
from pathlib import Path

import pytest

from cope_jax.data.records import open_records
from data_prep.build import build
from data_prep.inspect.page import inspect
from data_prep.records.inputs import Inputs
from data_prep.verify import verify


@pytest.fixture
def own(inputs, built, tmp_path) -> Path:
    """Catalog and data sets of the small catalog."""
    shutil.copytree(inputs.catalog, tmp_path / "catalog")
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "cut": content[: len(content) // 2], "binary": b"\xff\0" * 50}.get(how, how.encode())
    )


@pytest.mark.parametrize("how", ["empty", "cut", "binary", "{}", "[1]"])
@pytest.mark.parametrize(
    "name",
    [
        "catalog/summary.json",
        "rope/build_summary.json",
        "rope/page/1.0.0/fingerprint",
        "rope/video/1.0.0/dataset_info.json",
    ],
)
def test_an_invalid_json_file_is_an_error_that_names_it(own, inputs, name, how):
    damage(own / name, how)
    file = name if how != "{}" or "fingerprint" not in name else "rope/page/1.0.0 was built from other inputs"
    with pytest.raises(ValueError, match=f"{own / file}.*: remove"):
        build(Inputs(own / "catalog", inputs.images), own, processes=1, report=str)


@pytest.mark.parametrize("how", ["empty", "cut", "binary", "{}", "[1]"])
def test_readers_name_an_invalid_description_of_a_data_set(own, how):
    path = own / "rope/live/1.0.0/dataset_info.json"
    damage(path, how)
    for read in (
        lambda: inspect(own, items=0, products=1, processes=1),
        lambda: open_records(own, "train"),
    ):
        with pytest.raises(ValueError, match=f"{path}.*: remove {path.parent} and build it again"):
            read()
    problems: list[str] = []
    assert verify(own, processes=1, report=problems.append) == 1
    assert str(path.parent) in problems[0]


@pytest.mark.parametrize("how", ["empty", "cut", "binary"])
def test_an_invalid_file_of_a_catalog_is_an_error_that_names_it(own, inputs, how):
    damage(own / "catalog/train/video.parquet", how)
    shutil.rmtree(own / "rope")
    with pytest.raises(ValueError, match=f"{own}/catalog/train/video.parquet is not a whole Parquet file: "):
        build(Inputs(own / "catalog", inputs.images), own, processes=1, report=str)
