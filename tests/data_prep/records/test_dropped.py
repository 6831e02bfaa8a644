"""Tests the limit on images that a build drops, and their list."""

import json
from collections import Counter

import pytest

from data_prep.records.inputs import Inputs


def read_list(data_dir) -> list[dict]:
    return [json.loads(line) for line in (data_dir / "rope" / "dropped.jsonl").read_text().splitlines()]


def complete(small) -> None:
    """Removes all images that are missing or invalid."""
    for domains in small.splits.values():
        domains["video"] = [item for item in domains["video"] if item.item_id not in (7, 8, 9, 59)]


def test_each_dropped_image_is_listed_with_its_reason(small, built):
    listed = read_list(built)
    summary = json.loads((built / "rope" / "build_summary.json").read_text())["splits"]
    for split, domains in summary.items():
        for domain in ("page", "video", "live"):
            reasons = Counter(line["reason"] for line in listed if (line["split"], line["domain"]) == (split, domain))
            assert reasons == domains[domain]["frames"]["dropped"]
    assert [(line["item_id"], line["image"], line["reason"]) for line in listed] == [
        (7, "train_video7_0.img", "missing file"),
        (7, "train_video7_2.img", "does not decode"),
        (8, "train_video8_0.img", "not an image"),
        (8, "train_video8_1.img", "missing file"),
        (59, "train_video59_0.img", "not an image"),
    ]


def test_missing_images_are_an_error_with_examples_and_hints_before_any_is_read(own_small, tmp_path):
    complete(own_small)
    images = tmp_path / "images"
    images.mkdir()
    names = own_small.names()
    for name, data in names.items():
        (images / (name.upper() if "video" in name else name)).write_bytes(data)
    inputs = Inputs(own_small.write_catalog(tmp_path / "catalog"), (images,))
    with pytest.raises(ValueError, match="images are missing in") as error:
        own_small.build(inputs, tmp_path / "data", max_missing=0.01)
    path = tmp_path / "data" / "rope" / "dropped.jsonl"
    assert str(error.value) == (
        f"279 of 279 train video images, 2 of 2 test video images are missing in {images}: 281 of 281 differ only in "
        f"lower and upper case, such as 'train_video0_0.img' ('TRAIN_VIDEO0_0.IMG' exists). {path} lists all of them; "
        "to build without them, call build with --max_missing=1.0 or more"
    )
    listed = read_list(tmp_path / "data")
    assert {line["image"] for line in listed} == {name for name in names if "video" in name}
    assert {line["reason"] for line in listed} == {"missing file"}
    assert not list((tmp_path / "data").rglob("*array_record*"))


def test_one_image_may_be_missing_in_small_data(own_small, tmp_path):
    complete(own_small)
    inputs = own_small.write(tmp_path)
    images = sorted(inputs.images[0].glob("train_live*"))
    images[0].unlink()
    own_small.build(inputs, tmp_path / "one", max_missing=0.01)
    assert [line["image"] for line in read_list(tmp_path / "one")] == [images[0].name]
    with pytest.raises(ValueError, match=r"^1 of 4 train live images are missing"):
        own_small.build(Inputs(inputs.catalog, inputs.images), tmp_path / "none", max_missing=0.0)
    images[1].unlink()
    again = Inputs(inputs.catalog, inputs.images)
    with pytest.raises(ValueError, match=r"^2 of 4 train live images .*: nothing like 'train_live.*--max_missing=0.5 "):
        own_small.build(again, tmp_path / "two", max_missing=0.01)
    summary, _ = own_small.build(again, tmp_path / "two", max_missing=0.5)
    assert summary["splits"]["train"]["live"]["frames"]["dropped"] == {"missing file": 2}


def test_invalid_images_count_as_well_and_a_build_resumes_with_a_higher_limit(small, inputs, built, tmp_path):
    message = r"^5 of 287 train video images cannot be used: 1 does not decode, 2 missing file, 2 not an image\. "
    with pytest.raises(ValueError, match=message + r".* lists them; .* --max_missing=0\.02 or more"):
        small.build(inputs, tmp_path, max_missing=0.01)
    assert read_list(tmp_path) == read_list(built)
    _, lines = small.build(inputs, tmp_path, max_missing=0.02)
    assert "train video: 60 of 60 items were written by an earlier run" in lines
    assert f"dropped images are listed in {tmp_path}/rope/dropped.jsonl" in lines
    assert small.contents(tmp_path) == small.contents(built)
