"""Collating items of a domain, the ids that are kept, and the classes of products."""

import numpy as np
import pytest

from cope_jax.data.collate import (
    Collator,
    Example,
    ItemFeatures,
    class_ids,
    drop_modalities,
    kept_products,
    to_classes,
)
from cope_jax.data.images import EvalTransform
from cope_jax.data.records import Item, ProductRecords, Records, open_records
from cope_jax.data.tokenizer import TextAugment, encode


def item(blues: list[int], image, **changes) -> Item:
    """Makes an item with one plain frame per value of blue."""
    values = {"item_id": 7, "text": "红色", "product_ids": (3, 5)}
    frames = tuple(image(np.full((8, 8, 3), (0, 0, blue))) for blue in blues)
    return Item(frames=frames, **values | changes)


@pytest.fixture
def collate(tokenizer) -> Collator:
    return Collator("video", 4, EvalTransform(6), tokenizer, 5, 3, "mask")


@pytest.mark.parametrize(
    ("ids", "drawn", "limit", "kept"),
    [
        ((3, 5, 8, 9), None, 2, [3, 5]),
        ((3, 5, 8, 9), 9, 2, [3, 9]),
        ((3, 5, 8, 9), 5, 2, [3, 5]),
        ((9, 3), 9, 4, [3, 9]),
        ((3, 5, 8), 8, 1, [8]),
    ],
)
def test_kept_products(ids, drawn, limit, kept):
    assert kept_products(ids, drawn, limit) == kept


def test_ids_outside_the_range_are_reported():
    assert kept_products((2**31 - 1,), None, 1) == [2**31 - 1]
    for wrong in (-1, 2**31):
        with pytest.raises(ValueError, match=rf"product id {wrong} is outside 0 … 2147483647"):
            kept_products((wrong,), None, 2)


def test_a_short_clip_is_masked_after_its_frames(collate, image):
    arrays = collate([[Example(item([100, 200], image))], [], [Example(item([0, 50, 100, 150, 200, 250], image))]])
    np.testing.assert_array_equal(arrays["frame_mask"], [[1, 1, 0, 0], [0] * 4, [1] * 4])
    np.testing.assert_allclose(arrays["frames"][:, :, 3, 3, 2], [[100, 200, 0, 0], [0] * 4, [0, 100, 150, 250]], atol=2)
    assert not arrays["frames"][0, 2:].any()
    np.testing.assert_array_equal(arrays["present"], [True, False, True])


def test_clean_texts_are_used_if_wanted_and_put_into_the_template(tokenizer, image):
    examples = [[Example(item([0], image, payload=payload))] for payload in ("", '{"text_clean": "裙子"}')]
    for clean, texts in ((False, ("红色", "红色")), (True, ("红色", "裙子"))):
        collate = Collator("video", 1, EvalTransform(6), tokenizer, 8, template="真 {} 款", clean_texts=clean)
        expected = encode(tokenizer, [f"真 {text} 款" for text in texts], 8)
        np.testing.assert_array_equal(collate(examples)["text"], expected)


def test_frames_of_training_can_be_segment_centers(tokenizer, image):
    blues = list(range(0, 250, 10))  # 25 frames

    def chosen(choice: str) -> set[tuple[int, ...]]:
        collate = Collator("video", 4, EvalTransform(6), tokenizer, 5, frame_choice=choice)
        frames = (collate([[Example(item(blues, image), 3, np.random.default_rng(i))]])["frames"] for i in range(5))
        return {tuple(np.rint(x[0, :, 3, 3, 2] / 10).astype(int).tolist()) for x in frames}

    assert chosen("center") == {(3, 9, 15, 21)}
    assert len(chosen("random")) > 2
    with pytest.raises(ValueError, match="unknown frame choice 'first'; choose one of random, center"):
        Collator("video", 4, EvalTransform(6), tokenizer, 5, frame_choice="first")


def test_missing_inputs_are_zero_and_masked(collate, image):
    arrays = collate([[], [Example(item([], image, text=""))]])
    np.testing.assert_array_equal(arrays["present"], [False, True])
    assert not arrays["frame_mask"].any()
    assert not arrays["frames"].any()
    np.testing.assert_array_equal(arrays["text"], np.zeros((2, 5)))
    np.testing.assert_array_equal(arrays["products"], [[-1, -1, -1], [3, 5, -1]])
    assert {name: part.dtype for name, part in arrays.items()} == {
        "frames": np.uint8,
        "frame_mask": bool,
        "text": np.int32,
        "present": bool,
        "products": np.int32,
    }


def test_frames_of_a_short_clip_repeat(tokenizer, image):
    collate = Collator("live", 5, EvalTransform(6), tokenizer, 5, 3, "repeat")
    arrays = collate([[Example(item([50, 150, 250], image))]])
    np.testing.assert_allclose(arrays["frames"][0, :, 3, 3, 2], [50, 50, 150, 250, 250], atol=2)
    assert arrays["frame_mask"].all()


def test_texts_are_augmented_only_with_an_rng(tokenizer, image):
    noisy = TextAugment(probability=1.0, fraction=1.0, min_length=1)
    collate = Collator("page", 1, EvalTransform(6), tokenizer, 8, 3, "repeat", noisy)
    page = item([9], image, text="红红红红红红")
    plain = collate([[Example(page)]])["text"]
    assert (plain == collate([[Example(page)]])["text"]).all()
    assert (plain != collate([[Example(page, 3, np.random.default_rng(0))]])["text"]).any()


def test_an_invalid_image_is_reported_with_its_item(collate, image):
    invalid = Item(7, "", (3,), (image(np.zeros((8, 8, 3))), b"no image"))
    with pytest.raises(ValueError, match=r"video item 7, record 4 of x: 8 bytes that start with b'no image' are no"):
        collate([[Example(invalid, place=lambda: "record 4 of x")]])


def test_the_next_candidate_replaces_an_invalid_one(collate, image):
    frames = (*item([50, 60], image).frames, b"no image")  # the first two are decoded before the error
    invalid, valid = Item(7, "红", (3,), frames), item([100], image, item_id=8, product_ids=(4,))
    invalid_items = []
    candidates = [[Example(valid)], iter([Example(invalid), Example(invalid), Example(valid)]), [Example(invalid)]]
    arrays = collate(candidates, lambda b, error: invalid_items.append((b, str(error)[:12])))
    assert invalid_items == [(1, "video item 7"), (1, "video item 7"), (2, "video item 7")]
    np.testing.assert_array_equal(arrays["present"], [True, True, False])
    for name, part in arrays.items():
        np.testing.assert_array_equal(part[1], part[0], err_msg=name)
        assert (part[2] == (-1 if name == "products" else 0)).all(), name


class Shuffled:
    """A source of records in another order, because a release may number products in any order."""

    def __init__(self, source, order):
        self.source, self.order = source, order

    def __len__(self):
        return len(self.order)

    def __getitems__(self, rows):
        return [self.source[self.order[row]] for row in rows]


def test_class_ids_are_sorted_and_unique(data_dir, content):
    records = open_records(data_dir, "train")
    order = [7, 2, 12, 0, 5, 5, 1, 9, 3, 11, 4, 6, 8, 10, 2]
    source = Shuffled(records.products.source, order)
    shuffled = Records(items=records.items, products=ProductRecords(source, {}, records.products.starts))
    for split in (records, shuffled):
        found = class_ids(split)
        assert found.dtype == np.int32
        assert found.tolist() == sorted(content.products)


@pytest.mark.parametrize("chunk", [1, 5, 13, 4096])
def test_ids_are_in_the_order_of_the_records_for_any_chunk(data_dir, content, chunk):
    ids = open_records(data_dir, "train").products.ids(chunk=chunk)
    assert ids.dtype == np.int64
    assert ids.tolist() == list(content.products)


def test_a_class_id_outside_the_range_is_reported(data_dir, monkeypatch):
    monkeypatch.setattr(ProductRecords, "ids", lambda self: np.array([5, 2**31]))
    with pytest.raises(ValueError, match="product id 2147483648 is outside"):
        class_ids(open_records(data_dir, "train"))


def test_a_class_is_the_position_of_the_id():
    known = np.array([3, 5, 9], np.int32)
    ids = np.array([[5, -1], [9, 4], [3, 10], [2, 2**31 - 1]], np.int32)
    classes = to_classes(ids, known)
    assert classes.dtype == np.int32
    assert classes.tolist() == [[1, -1], [2, -1], [0, -1], [-1, -1]]


def test_classes_equal_positions_in_the_list_of_ids():
    rng = np.random.default_rng(0)
    known = np.sort(rng.choice(10_000, size=700, replace=False)).astype(np.int32)
    ids = rng.integers(-1, 10_000, size=(31, 4)).astype(np.int32)
    expected = [[known.tolist().index(number) if number in known else -1 for number in row] for row in ids]
    assert to_classes(ids, known).tolist() == expected
    assert to_classes(known, known).tolist() == list(range(700))


@pytest.mark.parametrize("cached", [False, True])
def test_modality_dropout_masks_one_modality_of_complete_items(cached):
    seeds = [[3, number] for number in range(2000)]
    frame_mask, text = np.ones((2000, 2), bool), np.full((2000, 3), 7, np.int32)
    frame_mask[:200], text[200:500] = False, 0
    arrays = {"frame_mask": frame_mask.copy(), "text": text.copy()}
    if cached:
        has = np.stack([frame_mask.any(-1), text.any(-1)], axis=-1)
        arrays = {"features": ItemFeatures(np.zeros((2000, 4)), np.zeros((2000, 5)), has)}
    drop_modalities(arrays, (0.2, 0.5), seeds)
    if cached:
        frames, texts = arrays["features"].has_inputs.T
    else:
        frames, texts = arrays["frame_mask"].all(-1), (arrays["text"] == 7).all(-1)
    kept = np.stack([frames, texts], axis=-1)
    np.testing.assert_array_equal(kept[:200], [[False, True]] * 200)
    np.testing.assert_array_equal(kept[200:500], [[True, False]] * 300)
    assert kept[500:].any(axis=-1).all()
    assert [1 - frames[500:].mean(), 1 - texts[500:].mean()] == pytest.approx([0.2, 0.5], abs=0.04)
    draws = [np.random.default_rng([3, number]).random() for number in range(500, 510)]
    assert frames[500:510].tolist() == [draw >= 0.2 for draw in draws]
