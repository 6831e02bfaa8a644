"""Fixtures: a small catalog with images of all kinds, valid and invalid, and the records expected from it."""

import dataclasses
import hashlib
import io
import json
import tarfile
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from benchmarks.catalog_writer import write_catalog
from data_prep.build import build
from data_prep.catalog.files import Catalog, Frame, Item
from data_prep.common.domains import DOMAINS
from data_prep.images.decoding import RULES
from data_prep.records.inputs import Inputs


@dataclasses.dataclass
class Wanted:
    """An item of a test catalog; its frames are (time, bytes), where None stands for a missing image."""

    item_id: int
    products: list[int]
    text: str
    frames: list[tuple[int, bytes | None]]


class Small:
    """The small catalog; `splits` maps split → domain → items, which a test may change before writing them."""

    Wanted = Wanted

    def __init__(self):
        self.splits = {"train": _make_train(), "test": _make_test()}

    @staticmethod
    def encode(seed: int, kind: str = "JPEG", side: int = 9) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 2, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()

    def names(self) -> dict[str, bytes]:
        """Returns the bytes of all existing images by name, in row order."""
        return {
            _name(split, domain, item, number): data
            for split in self.splits
            for domain in DOMAINS
            for item in self.rows(split, domain)
            for number, (_, data) in _ordered(item)
            if data is not None
        }

    def rows(self, split: str, domain: str) -> list[Wanted]:
        return sorted(self.splits[split][domain], key=lambda item: (min(item.products), item.item_id))

    def write(self, folder: Path) -> Inputs:
        """Writes the catalog and a flat folder of images."""
        images = folder / "images"
        images.mkdir(parents=True)
        for name, data in self.names().items():
            (images / name).write_bytes(data)
        return Inputs(self.write_catalog(folder / "catalog"), (images,), tuple(self.splits))

    def write_catalog(self, folder: Path) -> Path:
        items = {
            split: {
                domain: [
                    Item(
                        item.item_id,
                        item.text,
                        tuple(sorted(item.products)),
                        tuple(Frame(moment, _name(split, domain, item, n)) for n, (moment, _) in _ordered(item)),
                    )
                    for item in domains[domain]
                ]
                for domain in DOMAINS
            }
            for split, domains in self.splits.items()
        }
        return write_catalog(folder, items).folder

    def expected(self, split: str, domain: str) -> list[dict]:
        """Returns the contents expected in the records."""
        records = []
        for item in self.rows(split, domain):
            frames = [frame for _, frame in _ordered(item) if _decodes(frame[1])]
            if frames:
                records.append(
                    {
                        "item_id": item.item_id,
                        "text": item.text,
                        "product_ids": sorted(item.products),
                        "frames": [data for _, data in frames],
                        "frame_times": [moment for moment, _ in frames],
                    }
                )
        return records

    @staticmethod
    def build(inputs: Inputs, data_dir: Path, **options) -> tuple[dict, list[str]]:
        """Builds in this process by default; returns the summary and the reported lines."""
        lines: list[str] = []
        return build(inputs, data_dir, **({"processes": 1, "max_missing": 1.0} | options), report=lines.append), lines

    @staticmethod
    def read(data_dir: Path, config: str, split: str) -> list[dict]:
        builder = tfds.builder_from_directory(data_dir / "rope" / config / "1.0.0")
        return [Small.plain(record) for record in builder.as_data_source(split)]

    @staticmethod
    def plain(record: dict) -> dict:
        fields = {key: value if key == "frames" else np.asarray(value).tolist() for key, value in record.items()}
        return fields | ({"text": record["text"].decode()} if "text" in record else {})

    @staticmethod
    def contents(data_dir: Path) -> dict[str, bytes]:
        """Returns the bytes of all files of the data sets, and the summary without its duration."""
        folder = data_dir / "rope"
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        summary = json.loads(files.pop("build_summary.json").read_text())
        del summary["seconds"]
        return {name: path.read_bytes() for name, path in files.items()} | {"summary": json.dumps(summary).encode()}


def _make_train() -> dict[str, list[Wanted]]:
    encode = Small.encode
    # Product 10·(i mod 6): many videos of 4 to 6 frames, for several shards.
    videos = [
        Wanted(i, [10 * (i % 6)], f"第{i}个,好", [(7 * t, encode(100 * i + t)) for t in range(4 + i % 3)])
        for i in range(60)
    ]
    videos[7].frames[2] = (14, encode(1)[:40])  # truncated
    videos[7].frames[0] = (0, None)  # missing
    videos[8].frames = [(0, b"<html>"), (9, None)]  # none left
    videos[9].frames = []
    videos[59] = Wanted(59, [900], "x", [(3, b"")])  # the only item of its product
    videos[11].text = ""
    pages = [
        Wanted(7, [40, 20], "页,面", [(0, encode(2, "PNG"))]),
        Wanted(3, [20], "", [(0, encode(3))]),
        Wanted(1, [10, 77], "a", [(0, encode(4, "WEBP"))]),
    ]
    lives = [
        Wanted(7, [20], "", [(1668122889829, encode(5)), (1668122880000, encode(6)), (5, encode(7))]),
        Wanted(2, [20, 10], "直播", [(1, encode(8))]),
    ]
    return {"page": pages, "video": videos, "live": lives}


def _make_test() -> dict[str, list[Wanted]]:
    clip = [(4, Small.encode(9)), (2, Small.encode(10))]
    frames = {"page": [(0, Small.encode(12))], "video": clip, "live": clip}
    return {domain: [Wanted(5, [501], domain, frames[domain])] for domain in DOMAINS}


def _name(split: str, domain: str, item: Wanted, number: int) -> str:
    return f"{split}_{domain}{item.item_id}_{number}.img"


def _ordered(item: Wanted) -> list[tuple[int, tuple[int, bytes | None]]]:
    """Returns (number, (time, bytes)) of the frames in time order."""
    return sorted(enumerate(item.frames), key=lambda numbered: numbered[1][0])


def _decodes(data: bytes | None) -> bool:
    try:
        Image.open(io.BytesIO(data or b"")).load()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def small() -> Small:
    """The small catalog, shared by all tests, which must not change it."""
    return Small()


@pytest.fixture
def own_small() -> Small:
    """A small catalog that the test may change."""
    return Small()


@pytest.fixture(scope="session")
def inputs(small, tmp_path_factory) -> Inputs:
    """The small catalog and its images in a flat folder."""
    return small.write(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def built(small, inputs, tmp_path_factory) -> Path:
    """The data folder with the data sets built from the small catalog."""
    data_dir = tmp_path_factory.mktemp("built")
    small.build(inputs, data_dir)
    return data_dir


@pytest.fixture(scope="session")
def write_download():
    """A function that writes images (name → bytes) as the shards of a download with `a_shard` images each.

    The ledgers of `checked` shards name the rules that their images passed, as those of our downloader do.
    """

    def write(folder: Path, images: dict[str, bytes], *, a_shard: int = 40, checked: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        names = list(images)
        for number, start in enumerate(range(0, len(names), a_shard)):
            chosen = {f"{number:05}{i:04}": name for i, name in enumerate(names[start : start + a_shard])}
            with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
                for key, name in chosen.items():
                    for suffix, data in (("jpg", images[name]), ("json", b'{"key": "x"}')):
                        member = tarfile.TarInfo(f"{key}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
            rows = {
                "url": [f"https://host/a/{quote(name)}?w=1" for name in chosen.values()],
                "key": list(chosen),
                "status": ["success"] * len(chosen),
                "sha256": [hashlib.sha256(images[name]).hexdigest() for name in chosen.values()],
            }
            rows |= {"name": list(chosen.values())} if checked else {}
            rules = {b"image_rules": RULES.encode()} if checked else {}
            table = pa.table({name: pa.array(values, pa.string()) for name, values in rows.items()})
            pq.write_table(table.replace_schema_metadata(rules), folder / f"{number:05}.parquet")

    return write


@pytest.fixture(scope="session")
def release(small, inputs, tmp_path_factory) -> Path:
    """The items of the small catalog as a release, with its rows in reverse order."""
    folder = tmp_path_factory.mktemp("release")
    (folder / "images").symlink_to(inputs.images[0])
    catalog = Catalog(inputs.catalog)
    names = {
        "page": ("product_pages_pair", "page_titles", "page_images"),
        "video": ("product_videos_pair", "video_asrs", "video_frames"),
        "live": ("product_lives_pair", "live_asrs", "live_clips"),
    }
    for split, prefix in (("train", "training_"), ("test", "test_")):
        for domain in DOMAINS:
            items = list(catalog.items(split, domain))
            pairs = [f"{product}, {item.item_id}\n" for item in items for product in item.product_ids]
            texts = [f"{item.item_id}, {item.text or '空'}\n" for item in items]
            clocks = "{}, {}, {} \n" if domain != "page" else "{0}, {2} \n"
            frames = [clocks.format(item.item_id, frame.time, frame.name) for item in items for frame in item.frames]
            for name, rows in zip(names[domain], (pairs, texts, frames), strict=True):
                (folder / f"{prefix}{name}.txt").write_text("".join(reversed(rows)), encoding="utf-8")
    return folder
