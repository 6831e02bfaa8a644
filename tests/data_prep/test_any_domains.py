"""Tests that tables with one, two and four domains become data sets with these domains and a name of their own."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import build as build_command
from data_prep.build import build, format_summary
from data_prep.catalog.files import format_summary as format_catalog
from data_prep.common.domains import read_domains
from data_prep.inspect.page import format_table, inspect
from data_prep.records.inputs import Inputs
from data_prep.table import build_table_catalog
from data_prep.verify import verify

SETS = {
    "shop": {"page": "image"},
    "pair": {"page": "image", "spin": "clip"},
    "quad": {"page": "image", "live": "clip", "photo": "image", "spin": "clip"},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(12):
        Image.fromarray(np.full((8, 9, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
    return folder


def write_table(path, domains, *, column=True):
    """Writes two items per product and domain: the second clip of a product has three frames."""
    rows = []
    for product in range(6):
        for domain, kind in domains.items():
            for item in range(2):
                frames = 3 if kind == "clip" and item else 1
                names = [f"{(product + number) % 12}.png" for number in range(frames)]
                row = {"product": product, "item": f"{domain}-{product}-{item}", "images": names, "text": f"t{item}"}
                row |= {"split": "test" if product > 3 else "train"} | ({"domain": domain} if column else {})
                rows.append(row)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def build_set(tmp_path, images, name, **options):
    lines = []
    table = write_table(tmp_path / "items.jsonl", SETS[name], column=name != "shop")
    catalog = build_table_catalog(table, images, tmp_path / "catalog", report=lines.append, **options)
    inputs = Inputs(catalog.folder, (images,))
    summary = build(inputs, tmp_path / "data", name=name, processes=1, report=lambda line: None)
    return catalog, summary, lines


@pytest.mark.parametrize("name", SETS)
def test_a_table_becomes_a_data_set_with_its_domains(tmp_path, images, name):
    catalog, summary, lines = build_set(tmp_path, images, name)
    expected, data_dir = SETS[name], tmp_path / "data"
    assert list(catalog.domains.items()) == list(expected.items())
    assert f"domains: {', '.join(f'{key}:{kind}' for key, kind in expected.items())}" in lines[0]
    assert read_domains(data_dir / name) == expected
    assert list(summary["splits"]["train"]) == [*expected, "product"]
    assert {summary["splits"]["test"][domain]["items"]["kept"] for domain in expected} == {4}
    assert verify(data_dir, processes=1, report=print) == 0
    for domain, kind in expected.items():
        source = tfds.data_source(f"{name}/{domain}", data_dir=data_dir, split="train")
        assert [len(item["frames"]) for item in source] == [1, 3 if kind == "clip" else 1] * 4
        assert f"train {domain}" in " ".join(format_summary(summary).split())
        assert f"train {domain}" in " ".join(format_catalog(catalog.summary).split())
    products = tfds.data_source(f"{name}/product", data_dir=data_dir, split="test")
    assert [sorted(record) for record in products] == [sorted(["product_id", *(f"{d}_rows" for d in expected)])] * 2
    split = inspect(data_dir, items=0, products=1, processes=1)[0]
    assert [domain["name"] for domain in split.products[0]["domains"]] == list(expected)
    assert [row[0] for row in split.rows if re.match(r"\d+ items", row[1])] == list(expected)
    assert format_table(split)


def test_domains_can_be_chosen_with_their_kinds(tmp_path, images):
    catalog, _, _ = build_set(tmp_path, images, "pair", domains={"spin": "image"}, max_rejected=0.5)
    assert catalog.domains == {"spin": "image"}
    rejected = [json.loads(line) for line in (catalog.folder / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == 12
    assert {line["reason"] for line in rejected} == {"unknown domain"}
    other = build_table_catalog(
        tmp_path / "items.jsonl", images, tmp_path / "clip", domains={"spin": "clip"}, max_rejected=0.5
    )
    assert other.fingerprint != catalog.fingerprint


def test_all_splits_of_a_catalog_are_built(tmp_path, images, monkeypatch):
    rows = [{"product": split, "item": split, "images": "1.png", "split": split} for split in ("test", "val", "train")]
    (tmp_path / "items.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    catalog = build_table_catalog(tmp_path / "items.jsonl", images, tmp_path / "catalog", report=lambda line: None)
    flags = {"catalog": str(catalog.folder), "images": [str(images)], "splits": None, "max_side": None}
    flags |= {"frames_per_clip": 16, "fps": None, "scenes": False, "quality": 90}
    monkeypatch.setattr(build_command, "FLAGS", SimpleNamespace(**flags))
    inputs = build_command._inputs(tmp_path / "data", print)
    summary = build(inputs, tmp_path / "data", name="shop", processes=1, report=lambda line: None)
    assert list(summary["splits"]) == ["train", "val", "test"]
    (item,) = tfds.data_source("shop/page", data_dir=tmp_path / "data", split="val")
    assert len(item["frames"]) == 1


def test_a_name_that_tfds_does_not_allow_is_an_error(tmp_path, images):
    table = write_table(tmp_path / "items.jsonl", SETS["shop"])
    catalog = build_table_catalog(table, images, tmp_path / "catalog")
    with pytest.raises(ValueError, match="--name is 'My-Shop'; a data set's name has lower-case letters"):
        build(Inputs(catalog.folder, (images,)), tmp_path / "data", name="My-Shop", processes=1)
