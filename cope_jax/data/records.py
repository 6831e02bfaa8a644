"""Random access to the array records of a split, or of several: items of each domain by row, products by number."""

import hashlib
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from cope_jax.data.bad_items import BadItem
from cope_jax.domains import DOMAINS

# Of array_record (a hash that does not match), protobuf, a field without value, text that is no UTF-8.
BROKEN = (RuntimeError, DecodeError, IndexError, UnicodeDecodeError)
SAMPLE = 1 << 16  # bytes at both ends of a file that its fingerprint is made from
OTHER_FILES = 500  # that a process has open: libraries, logs, checkpoints, sockets


@dataclass(frozen=True)
class Item:
    """One page, video or live clip.

    text is "" where the item has none; product_ids are sorted; frames are encoded images (JPEG, PNG, …)
    in time order and frame_times i64[n] their frame numbers or milliseconds.
    """

    item_id: int
    text: str
    product_ids: tuple[int, ...]
    frames: tuple[bytes, ...]
    frame_times: np.ndarray


@dataclass(frozen=True)
class Product:
    """A product and the rows of its items, i64[n] per domain (empty where it lacks the domain)."""

    product_id: int
    rows: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ItemRecords:
    """The items of one domain; `records[row]` reads one, nothing is held in memory.

    files: path → number of records, in row order.
    """

    domain: str
    source: Sequence
    files: Mapping[Path, int]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Item:
        """Reads an item.

        Raises:
          BadItem: the record is broken; names its file.
        """
        try:
            features = _features(self.source[row])
            return Item(
                item_id=features["item_id"].int64_list.value[0],
                text=features["text"].bytes_list.value[0].decode("utf-8"),
                product_ids=tuple(sorted(features["product_ids"].int64_list.value)),
                frames=tuple(features["frames"].bytes_list.value),
                frame_times=np.array(features["frame_times"].int64_list.value, np.int64),
            )
        except BROKEN as error:
            raise BadItem(f"{self.place(row)} is broken: {error}") from error

    def place(self, row: int) -> str:
        """Where a row lies: "record 3 of /data/rope/page/1.0.0/rope-train.array_record-00001-of-00016"."""
        return _place(self.files, row)


@dataclass(frozen=True)
class ProductRecords:
    """The products of the splits; `records[p]` reads one. files as of `ItemRecords`.

    starts: of each split how many products and items of each domain come before it; its rows count from there.
    """

    source: Sequence
    files: Mapping[Path, int]
    starts: Sequence[Mapping[str, int]]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Product:
        """Reads a product.

        Raises:
          BadItem: the record is broken; names its file.
        """
        start = [start for start in self.starts if start["product"] <= index][-1]
        try:
            features = _features(self.source[index])
            rows = {
                domain: start[domain] + np.array(features[f"{domain}_rows"].int64_list.value, np.int64)
                for domain in DOMAINS
            }
            return Product(product_id=features["product_id"].int64_list.value[0], rows=rows)
        except BROKEN as error:
            raise BadItem(f"{_place(self.files, index)} is broken: {error}") from error

    def ids(self, *, chunk: int = 4096) -> np.ndarray:
        """The ids of all products, i64[P], in the order of the records.

        Read `chunk` records at once: 187,431 take two seconds, one by one they would take a minute.

        Raises:
          BadItem: a record is broken; names its file.
        """
        ids = np.zeros(len(self), np.int64)
        for start in range(0, len(self), chunk):
            indices = range(start, min(start + chunk, len(self)))
            try:
                records = self.source.__getitems__(indices)
                ids[indices] = [_features(record)["product_id"].int64_list.value[0] for record in records]
            except BROKEN:
                ids[indices] = [self[index].product_id for index in indices]  # says which one
        return ids


@dataclass(frozen=True)
class Records:
    """The four data sets of one split, or of several, one after the other."""

    items: Mapping[str, ItemRecords]
    products: ProductRecords


def open_records(data_dir: str | Path, split: str) -> Records:
    """Opens rope/page, rope/video, rope/live and rope/product under `data_dir`, newest version of each.

    Args:
      data_dir: TFDS's data folder.
      split: its name, or several as TFDS writes them: "train+test".

    Raises:
      FileNotFoundError: data sets that are not there, all of them, with the command that makes them.
      ValueError: data sets that lack a split, all of them, with the splits they have; more files than this process
        may open.
    """
    builders = _builders(data_dir, split)
    _allow_open_files(sum(len(_files(builder, split)) for builder in builders.values()), data_dir)
    sources = {
        config: builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        for config, builder in builders.items()
    }
    starts = [dict.fromkeys(builders, 0)]
    for name in split.split("+")[:-1]:
        sizes = {config: builder.info.splits[name].num_examples for config, builder in builders.items()}
        starts.append({config: starts[-1][config] + size for config, size in sizes.items()})
    return Records(
        items={domain: ItemRecords(domain, sources[domain], _files(builders[domain], split)) for domain in DOMAINS},
        products=ProductRecords(sources["product"], _files(builders["product"], split), starts),
    )


def fingerprint(data_dir: str | Path, split: str) -> str:
    """Tells the records of a split from others, wherever they lie: hex digits.

    Made from the name, size, beginning and end of each file: reading all would take hours where data sets are large.

    Raises:
      FileNotFoundError, ValueError: as `open_records`.
    """
    digest = hashlib.sha256()
    for config, builder in _builders(data_dir, split).items():
        for path in _files(builder, split):
            add_file(digest, path, config)
    return digest.hexdigest()[:16]


def add_file(digest: "hashlib._Hash", path: Path, kind: str) -> None:
    """Adds a file's kind, name, size, beginning and end to a fingerprint."""
    size = path.stat().st_size
    digest.update(f"{kind} {path.name} {size}\n".encode())
    with path.open("rb") as file:
        digest.update(file.read(SAMPLE))
        file.seek(max(size - SAMPLE, 0))
        digest.update(file.read(SAMPLE))


def _builders(data_dir: str | Path, split: str) -> dict[str, tfds.core.DatasetBuilder]:
    """Of page, video, live and product the data set; errors as of `open_records`."""
    configs = (*DOMAINS, "product")
    folders = {config: _newest_version(Path(data_dir) / "rope" / config) for config in configs}
    absent = [str(Path(data_dir) / "rope" / config) for config, folder in folders.items() if folder is None]
    if absent:
        raise FileNotFoundError(
            f"no array records in {', '.join(absent)}; make them with "
            f"`./run.sh build --release=RELEASE --data_dir={data_dir}` or set data_dir to where they are"
        )
    builders = {config: tfds.builder_from_directory(folder) for config, folder in folders.items()}
    lacking = [
        f"{folders[config]} (has {', '.join(sorted(builder.info.splits)) or 'none'})"
        for config, builder in builders.items()
        if set(split.split("+")) - set(builder.info.splits)
    ]
    if lacking:
        raise ValueError(
            f"no split {split!r} in {', '.join(lacking)}; name another, or several as in train+test, or build all "
            "that are wanted into another data_dir with `./run.sh build … --splits=train,test`"
        )
    return builders


def _files(builder: tfds.core.DatasetBuilder, split: str) -> dict[Path, int]:
    """Path → number of records of each file of the splits."""
    infos = [builder.info.splits[name] for name in split.split("+")]
    return {Path(path): count for info in infos for path, count in zip(info.filepaths, info.shard_lengths, strict=True)}


def _place(files: Mapping[Path, int], row: int) -> str:
    """The number of a row within its file, and that; files as of `ItemRecords`."""
    for path, count in files.items():
        if row < count:
            return f"record {row} of {path}"
        row -= count
    raise IndexError(f"row {row} is behind the last record")


def _allow_open_files(count: int, data_dir: str | Path) -> None:
    """Lets this process open so many record files, which stay open, twice if the machine allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= 2 * count + OTHER_FILES:
        return
    allowed = 2 * count + OTHER_FILES if hard == resource.RLIM_INFINITY else min(hard, 2 * count + OTHER_FILES)
    if allowed < count + OTHER_FILES:
        raise ValueError(
            f"{data_dir} has {count} files, which stay open, and this process may open no more than {hard}: allow it "
            f"{2 * count + OTHER_FILES} (`ulimit -Hn`, or LimitNOFILE in systemd)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))


def sample_texts(records: Records, *, limit: int) -> list[str]:
    """At most `limit` texts per domain, from rows spread evenly over it; missing texts are left out.

    The same records give the same texts in the same order: 10 rows and limit 4 read rows 0, 2, 5, 7.
    """
    texts = []
    for domain in DOMAINS:
        items = records.items[domain]
        taken = min(limit, len(items))
        texts += [items[i * len(items) // taken].text for i in range(taken)]
    return [text for text in texts if text]


def _features(record: bytes) -> Mapping[str, Any]:
    """The features of a serialised tf.train.Example; one without values reads as empty.

    TFDS decodes the same values in 0.1 to 0.2 ms a record, this in 0.01: at 64 px a sixth of the time
    of a training batch.
    """
    return tf_example_pb2.Example.FromString(record).features.feature


def _newest_version(folder: Path) -> Path | None:
    """The folder of the highest version that holds a finished data set, None where there is none."""
    versions = [
        (tuple(int(part) for part in child.parent.name.split(".")), child.parent)
        for child in folder.glob("*.*.*/dataset_info.json")
        if all(part.isdigit() for part in child.parent.name.split("."))
    ]
    return max(versions)[1] if versions else None
