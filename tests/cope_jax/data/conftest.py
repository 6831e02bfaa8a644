"""Tiny array records, written without the builder, whose pixels identify item and frame."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from cope_jax.data.tokenizer import train_wordpiece

INT64 = np.int64
ITEM_FEATURES = tfds.features.FeaturesDict(
    {
        "item_id": INT64,
        "text": tfds.features.Text(),
        "product_ids": tfds.features.Sequence(INT64),
        "frames": tfds.features.Sequence(tfds.features.Text()),
        "frame_times": tfds.features.Sequence(INT64),
    }
)
PRODUCT_FEATURES = tfds.features.FeaturesDict(
    {
        "product_id": INT64,
        **{f"{domain}_rows": tfds.features.Sequence(INT64) for domain in ("page", "video", "live")},
    }
)
GREEN = {"page": 40, "video": 120, "live": 200}


@dataclass(frozen=True)
class Plan:
    """Content of the records: (text, product ids, number of frames) of each item, and the rows of each product."""

    items: Mapping[str, list[tuple[str, tuple[int, ...], int]]]
    products: Mapping[int, Mapping[str, list[int]]]


def color(domain: str, row: int, frame: int) -> tuple[int, int, int]:
    """Returns the color of a frame: red is 10 × row, green the domain, blue 20 × frame."""
    return (10 * row, GREEN[domain], 20 * frame)


def item_id(domain: str, row: int) -> int:
    """Returns ids that repeat across domains and are not in row order."""
    return 100 + 7 * row % 23


def jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels, np.uint8), quality, "RGB", "444")


def plain_frame(domain: str, row: int, frame: int) -> bytes:
    """Returns an image of one color."""
    return jpeg(np.broadcast_to(np.array(color(domain, row, frame)), (24, 32, 3)))


def plan() -> Plan:
    """Returns 13 products 1000, 1003, … 1036 with two pages, one video and one live of 1 to 6 frames each.

    Exceptions: 1000 has no page, 1003 no live, 1009 only shares the video of 1006, 1012 has no page texts.
    """
    ids = [1000 + 3 * i for i in range(13)]
    items: dict[str, list] = {"page": [], "video": [], "live": []}
    products: dict[int, dict[str, list[int]]] = {p: {domain: [] for domain in items} for p in ids}

    def add(domain: str, text: str, owners: tuple[int, ...], frames: int) -> None:
        for owner in owners:
            products[owner][domain].append(len(items[domain]))
        items[domain].append((text, owners, frames))

    for i, product in enumerate(ids):
        if i != 0:
            for copy in range(2):
                add("page", "" if i == 4 else f"红色连衣裙 {i} 款 {copy}", (product,), 1)
        if i != 3:
            add("video", f"这个裙子,真好看 {i}", (product, ids[3]) if i == 2 else (product,), 1 + i % 6)
        if i != 1:
            add("live", f"直播间 {i} 号链接", (product,), 1 + (i + 3) % 6)
    return Plan(items, products)


def _write(folder: Path, features: tfds.features.FeaturesDict, splits: Mapping[str, list[dict]]) -> None:
    """Writes a TFDS data set with two shards per split, so that rows are in different shards."""
    folder.mkdir(parents=True)
    infos = []
    for split, records in splits.items():
        template = tfds.core.ShardedFileTemplate(
            dataset_name="rope", data_dir=folder, split=split, filetype_suffix="array_record"
        )
        parts = [records[: len(records) // 2], records[len(records) // 2 :]]
        for shard, part in enumerate(parts):
            path = template.sharded_filepath(shard_index=shard, num_shards=len(parts))
            writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
            for record in part:
                writer.write(features.serialize_example(features.encode_example(record)))
            writer.close()
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[len(p) for p in parts], num_bytes=1, filename_template=template
            )
        )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="rope",
        version=tfds.core.Version("1.0.0"),
        data_dir=folder,
        module_name="rope",
        config_name=folder.parent.name,
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(folder)


def write_records(data_dir: Path, content: Plan, frame=None, splits=("train",)) -> Path:
    """Writes rope/{page,video,live,product}, the same in each split; frame(domain, row, i) returns encoded bytes."""
    frame = frame or plain_frame
    for domain, items in content.items.items():
        records = [
            {
                "item_id": item_id(domain, row),
                "text": text,
                "product_ids": list(owners),
                "frames": [frame(domain, row, i) for i in range(count)],
                "frame_times": [40 * i for i in range(count)],
            }
            for row, (text, owners, count) in enumerate(items)
        ]
        _write(data_dir / "rope" / domain / "1.0.0", ITEM_FEATURES, dict.fromkeys(splits, records))
    products = [
        {"product_id": product, **{f"{domain}_rows": rows[domain] for domain in rows}}
        for product, rows in content.products.items()
    ]
    _write(data_dir / "rope" / "product" / "1.0.0", PRODUCT_FEATURES, dict.fromkeys(splits, products))
    return data_dir


@pytest.fixture(scope="session")
def content() -> Plan:
    return plan()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory, content: Plan) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), content)


@pytest.fixture(scope="session")
def two_splits_dir(tmp_path_factory: pytest.TempPathFactory, content: Plan) -> Path:
    """The same records as splits "train" and "test"."""
    return write_records(tmp_path_factory.mktemp("two_splits"), content, splits=("train", "test"))


@pytest.fixture(scope="session")
def album_dir(tmp_path_factory: pytest.TempPathFactory, content: Plan) -> Path:
    """The same records, but pages have 2 to 4 pictures."""
    pages = [(text, owners, 2 + row % 3) for row, (text, owners, _) in enumerate(content.items["page"])]
    album = replace(content, items={**content.items, "page": pages})
    return write_records(tmp_path_factory.mktemp("albums"), album)


@pytest.fixture(scope="session")
def write_broken(content: Plan):
    """Returns a function that writes the same records with invalid frames for some items (domain, row)."""

    def write(folder: Path, broken: set[tuple[str, int]]) -> Path:
        def frame(domain: str, row: int, number: int) -> bytes:
            return b"no image" if (domain, row) in broken else plain_frame(domain, row, number)

        return write_records(folder, content, frame)

    return write


@pytest.fixture(scope="session")
def tokenizer(content: Plan):
    return train_wordpiece([text for items in content.items.values() for text, _, _ in items], 64)


@pytest.fixture(scope="session")
def green() -> Mapping[str, int]:
    return GREEN


@pytest.fixture(scope="session")
def image():
    """Returns a function that encodes pixels u8[H, W, 3] as JPEG."""
    return jpeg
