"""The records of the data set: their features, and a file of them written whole or not at all."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from data_prep.release import DOMAINS


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


def write_records(path: Path, features: tfds.features.FeaturesDict, examples: Iterable[Mapping[str, Any]]) -> int:
    """Writes an ArrayRecord file of `examples` in their order and returns its size in bytes.

    The file appears under `path` only when it is complete. Same examples, same bytes.
    """
    unfinished = temporary(path)
    # One record a group: a random read touches one record and not its neighbours. Uncompressed: encoded
    # images do not shrink, and a read takes half the time.
    writer = ArrayRecordWriter(os.fspath(unfinished), "group_size:1,uncompressed")
    serializer = ExampleSerializer(features.get_serialized_info())
    for example in examples:
        proto = serializer.get_tf_example(features.encode_example(example))
        # `features.serialize_example` would write the features in an order that each process draws anew.
        writer.write(proto.SerializeToString(deterministic=True))
    writer.close()
    unfinished.rename(path)
    return path.stat().st_size


def write_text(path: Path, text: str) -> None:
    """Writes a text file that appears under `path` only when it is complete."""
    unfinished = temporary(path)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)


def temporary(path: Path) -> Path:
    """Returns the name under which this process writes `path`; `*.tmp` finds what killed processes left."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")
