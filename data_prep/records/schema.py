"""The records of the data set: their features, and a file of them written whole or not at all."""

import dataclasses
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from data_prep.common.domains import DOMAINS

_READ_RECORDS = 16  # at once: a record may have many MB


def item_features() -> tfds.features.FeaturesDict:
    """Features of a page, video or live record. `frames` holds the encoded images, byte for byte.

    `Sequence(Image())` cannot be read back without TensorFlow; `Text` gives the raw bytes.
    """
    return tfds.features.FeaturesDict(
        {
            "item_id": np.int64,
            "text": tfds.features.Text(),
            "product_ids": tfds.features.Sequence(np.int64),
            "frames": tfds.features.Sequence(tfds.features.Text()),
            "frame_times": tfds.features.Sequence(np.int64),
        }
    )


def product_features() -> tfds.features.FeaturesDict:
    """Features of a product record: its id and its rows in the records of each domain, ascending."""
    rows = {f"{domain}_rows": tfds.features.Sequence(np.int64) for domain in DOMAINS}
    return tfds.features.FeaturesDict({"product_id": np.int64, **rows})


@dataclasses.dataclass
class Tally:
    """How many records went by, and a checksum of their bytes in order."""

    count: int = 0
    crc32: int = 0

    def add(self, record: bytes) -> None:
        self.count += 1
        self.crc32 = zlib.crc32(record, self.crc32)


def write_records(path: Path, examples: Iterable[Mapping[str, Any]]) -> Tally:
    """Writes an ArrayRecord file of `examples` in their order.

    The file appears under `path` only when it is complete. Same examples, same bytes.
    """
    tally = Tally()
    unfinished = temporary(path)
    # One record a group: a random read touches one record and not its neighbours. Uncompressed: encoded
    # images do not shrink, and a read takes half the time.
    writer = ArrayRecordWriter(os.fspath(unfinished), "group_size:1,uncompressed")
    for example in examples:
        record = serialize(example)
        tally.add(record)
        writer.write(record)
    writer.close()
    _start_writing_out(unfinished)
    unfinished.rename(path)
    return tally


def _start_writing_out(path: Path) -> None:
    """Has the system begin to bring a file to the disk, where it can, so that who waits for that later waits less."""
    if hasattr(os, "posix_fadvise"):  # not on macOS
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def tally_records(path: Path) -> Tally:
    """Reads an ArrayRecord file whole. RuntimeError where it is damaged or not there."""
    tally = Tally()
    reader = ArrayRecordReader(os.fspath(path))
    for start in range(0, reader.num_records(), _READ_RECORDS):
        for record in reader.read(start, min(start + _READ_RECORDS, reader.num_records())):
            tally.add(record)
    reader.close()
    return tally


def serialize(example: Mapping[str, Any]) -> bytes:
    """Returns the tf.train.Example of values that are integers, text or sequences of integers or bytes.

    The bytes are those of TFDS's serialiser, which takes as long as writing them does.
    """
    proto = tf_example_pb2.Example()
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
            feature.int64_list.SetInParent()  # an empty sequence is there, too
    # The order of a map's entries is one that each process draws anew.
    return proto.SerializeToString(deterministic=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file that appears under `path` only when it is complete."""
    unfinished = temporary(path)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)


def temporary(path: Path) -> Path:
    """Returns the name under which this process writes `path`; `*.tmp` finds what killed processes left."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")
