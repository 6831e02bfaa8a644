"""Tests that serializing and parsing records agree with TFDS."""

import pytest
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from data_prep.common.domains import DOMAINS
from data_prep.records.schema import item_features, parse_example, product_features, serialize, write_records


def test_serialized_bytes_equal_those_of_tfds():
    item = {"item_id": 2**63 - 1, "text": "页,面\n", "product_ids": (3, 70000), "frame_times": [0, 5]}
    product = {"product_id": 0, "page_rows": (1, 2, 300), "video_rows": (), "live_rows": (0,)}
    for features, example in [
        (item_features(), item | {"frames": [b"\0\xff", b""]}),
        (item_features(), item | {"text": "", "frames": [b"one"]}),
        (product_features(DOMAINS), product),
    ]:
        serializer = ExampleSerializer(features.get_serialized_info())
        proto = serializer.get_tf_example(features.encode_example(example))
        assert serialize(example) == proto.SerializeToString(deterministic=True)
        decoded = features.deserialize_example_np(serialize(example))
        assert decoded.keys() == example.keys()


def test_parsed_examples_have_the_serialized_values():
    example = parse_example(serialize({"item_id": 2**63 - 1, "text": "页,面", "frames": [b"\0\xff", b""], "times": ()}))
    assert example.integers("item_id") == [2**63 - 1]
    assert example.byte_strings("text") == ["页,面".encode()]
    assert example.byte_strings("frames") == [b"\0\xff", b""]
    assert example.integers("times") == example.integers("missing") == example.byte_strings("missing") == []


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, full_disk):
    full_disk(30_000)
    with pytest.raises(OSError, match=rf"write\(\) failed: File too large: '{tmp_path}/x'"):
        write_records(tmp_path / "x", ({"frames": [bytes(50_000)]} for _ in range(20)))
    assert not (tmp_path / "x").exists()


def test_bytes_that_are_not_an_example_are_an_error():
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        parse_example(b"\xff\xff")
