"""The records of the data sets: their features, and how they are serialized, parsed and written."""

import contextlib
import dataclasses
import errno
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from google.protobuf.message import DecodeError
from tensorflow_datasets.core.constants import DATASET_INFO_FILENAME
from tensorflow_datasets.proto import tf_example_pb2

from data_prep.common.domains import find_data_set, read_domains
from data_prep.common.files import read_json, temporary_path

_READ_RECORDS = 16  # records read at once; a record may have many MB
_Example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  (protobuf makes it at import)


def item_features(*, payload: bool = False) -> tfds.features.FeaturesDict:
    """Returns the features of an item's record; `frames` holds encoded images byte for byte, `payload` is JSON.

    `Sequence(Image())` cannot be read back without TensorFlow; `Text` gives the raw bytes.
    """
    return tfds.features.FeaturesDict(
        {
            "item_id": np.int64,
            "text": tfds.features.Text(),
            "product_ids": tfds.features.Sequence(np.int64),
            "frames": tfds.features.Sequence(tfds.features.Text()),
            "frame_times": tfds.features.Sequence(np.int64),
            **({"payload": tfds.features.Text()} if payload else {}),
        }
    )


def product_features(domains: Iterable[str]) -> tfds.features.FeaturesDict:
    """Returns the features of a product record: its id and its ascending rows in the records of each domain."""
    rows = {f"{domain}_rows": tfds.features.Sequence(np.int64) for domain in domains}
    return tfds.features.FeaturesDict({"product_id": np.int64, **rows})


def serialize(example: Mapping[str, Any]) -> bytes:
    """Returns a tf.train.Example of integers, texts, and sequences of integers or bytes.

    The bytes equal those of TFDS's serializer, which takes as long as writing them does.
    """
    proto = _Example()
    for name, value in example.items():
        feature = proto.features.feature[name]
        if isinstance(value, str):
            feature.bytes_list.value.append(value.encode())
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        elif value and isinstance(value[0], bytes):
            feature.bytes_list.value.extend(value)
        else:
            feature.int64_list.value.extend(value)
            feature.int64_list.SetInParent()  # keeps the feature if the sequence is empty
    # Deterministic, because the order of map entries otherwise differs between processes.
    return proto.SerializeToString(deterministic=True)


@dataclasses.dataclass(frozen=True)
class Example:
    """A parsed tf.train.Example; a feature that it lacks reads as empty."""

    features: Mapping[str, Any]

    def integers(self, name: str) -> list[int]:
        """Returns the values of an integer feature."""
        return list(self.features[name].int64_list.value)

    def byte_strings(self, name: str) -> list[bytes]:
        """Returns the values of a feature of text or encoded images."""
        return list(self.features[name].bytes_list.value)


def parse_example(record: bytes) -> Example:
    """Parses a record in about 0.01 ms, which takes TFDS 0.1 to 0.2 ms; raises ValueError if it is invalid."""
    try:
        return Example(_Example.FromString(record).features.feature)
    except DecodeError as error:
        raise ValueError(f"not a tf.train.Example: {error}") from error


@dataclasses.dataclass
class Tally:
    """Number of records and the checksum of their bytes in order."""

    count: int = 0
    crc32: int = 0

    def add(self, record: bytes) -> None:
        """Counts a record."""
        self.count += 1
        self.crc32 = zlib.crc32(record, self.crc32)


def write_records(path: Path, examples: Iterable[Mapping[str, Any]]) -> Tally:
    """Writes an ArrayRecord file atomically; its bytes depend on the examples alone."""
    tally = Tally()
    unfinished = temporary_path(path)
    # One record per group, so that a random read touches no neighbors. Uncompressed, because encoded images do not
    # shrink, and reads take half the time.
    writer = ArrayRecordWriter(os.fspath(unfinished), "group_size:1,uncompressed")
    for example in examples:
        record = serialize(example)
        tally.add(record)
        with _disk_errors(path):
            writer.write(record)
    with _disk_errors(path):
        writer.close()
    if hasattr(os, "posix_fadvise"):  # not on macOS
        # Starts writing to disk, so that the fsync at the end of a build waits less (row "build" of the benchmarks).
        with unfinished.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    unfinished.rename(path)
    return tally


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turns array_record's errors into OSError."""
    try:
        yield
    except RuntimeError as error:
        is_full = os.strerror(errno.ENOSPC) in str(error)
        raise OSError(errno.ENOSPC if is_full else errno.EIO, str(error).partition(";")[0], str(path)) from error


def tally_records(path: Path) -> Tally:
    """Reads a whole ArrayRecord file; raises RuntimeError if it is missing or invalid."""
    tally = Tally()
    reader = ArrayRecordReader(os.fspath(path))
    for start in range(0, reader.num_records(), _READ_RECORDS):
        for record in reader.read(start, min(start + _READ_RECORDS, reader.num_records())):
            tally.add(record)
    reader.close()
    return tally


@dataclasses.dataclass
class _Instruction:
    """The records [skip, skip + take) of a file, as `ArrayRecordDataSource` wants them."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def open_files(files: Mapping[Path, int]) -> ArrayRecordDataSource:
    """Opens record files, given with their numbers of records, for random access; files open when they are needed."""
    return ArrayRecordDataSource([_Instruction(str(path), 0, count, count) for path, count in files.items()])


def find_record_files(data_dir: Path) -> dict[str, dict[str, dict[Path, int]]]:
    """Returns each domain and product → split → its files and their numbers of records, of the newest versions.

    Raises:
        FileNotFoundError: Some are not built. The message lists them and the command that builds them.
        ValueError: A file that describes them is invalid.
    """
    data_set = find_data_set(data_dir)
    versions = {
        name: [tfds.core.Version(path.parent.name) for path in (data_set / name).glob(f"*.*.*/{DATASET_INFO_FILENAME}")]
        for name in (*read_domains(data_set), "product")
    }
    if missing := [str(data_set / name) for name, found in versions.items() if not found]:
        raise FileNotFoundError(
            f"no array records in {', '.join(missing)}; build them with "
            f"`./run.sh build --release=RELEASE --data_dir={data_dir}`, or set data_dir to the folder that has them"
        )
    return {name: read_splits(data_set / name / str(max(found))) for name, found in versions.items()}


def read_splits(folder: Path) -> dict[str, dict[Path, int]]:
    """Returns the record files of each split of a finished data set, in order, with their numbers of records.

    This reads TFDS's dataset_info.json itself, because TFDS takes the name of a folder for a pattern of names.

    Raises:
        ValueError: The file is missing or invalid.
    """
    path = folder / DATASET_INFO_FILENAME
    remedy = f"remove {folder} and build it again"
    if not path.exists():
        raise ValueError(f"no {path}: {remedy}")
    info = read_json(path, keys=("name", "fileFormat", "splits"), remedy=remedy)
    try:
        splits = {split["name"]: [int(length) for length in split.get("shardLengths", ())] for split in info["splits"]}
        prefix = {name: f"{info['name']}-{name}.{info['fileFormat']}" for name in splits}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has invalid splits ({error!r}): {remedy}") from error
    return {
        name: {folder / f"{prefix[name]}-{i:05d}-of-{len(lengths):05d}": length for i, length in enumerate(lengths)}
        for name, lengths in splits.items()
    }
