"""The records' bytes against those of TFDS's own serialiser."""

from tensorflow_datasets.core.example_serializer import ExampleSerializer

from data_prep.records.schema import item_features, product_features, serialize


def test_bytes_are_those_of_tfds():
    item = {"item_id": 2**63 - 1, "text": "页,面\n", "product_ids": (3, 70000), "frame_times": [0, 5]}
    product = {"product_id": 0, "page_rows": (1, 2, 300), "video_rows": (), "live_rows": (0,)}
    for features, example in [
        (item_features(), item | {"frames": [b"\0\xff", b""]}),
        (item_features(), item | {"text": "", "frames": [b"one"]}),
        (product_features(), product),
    ]:
        serializer = ExampleSerializer(features.get_serialized_info())
        proto = serializer.get_tf_example(features.encode_example(example))
        assert serialize(example) == proto.SerializeToString(deterministic=True)
        decoded = features.deserialize_example_np(serialize(example))
        assert decoded.keys() == example.keys()
