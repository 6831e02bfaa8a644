import numpy as np
import pytest

from cope_jax.data.collate import Example, LeafMaker, kept_products
from cope_jax.data.images import EvalView
from cope_jax.data.records import Item
from cope_jax.data.tokenizer import TextAugment


def item(blues: list[int], image, **changes) -> Item:
    """An item whose frames are plain, with these blues."""
    values = {"item_id": 7, "text": "红色", "product_ids": (3, 5)}
    frames = tuple(image(np.full((8, 8, 3), (0, 0, blue))) for blue in blues)
    return Item(frames=frames, **values | changes)


@pytest.fixture
def maker(tokenizer) -> LeafMaker:
    return LeafMaker("video", 4, EvalView(6), 5, tokenizer, 3, "mask")


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


def test_ids_that_do_not_fit_are_refused():
    assert kept_products((2**31 - 1,), None, 1) == [2**31 - 1]
    for wrong in (-1, 2**31):
        with pytest.raises(ValueError, match=rf"product id {wrong} is outside 0 … 2147483647"):
            kept_products((wrong,), None, 2)


def test_a_short_clip_is_masked_behind_its_frames(maker, image):
    leaf = maker([[Example(item([100, 200], image))], [], [Example(item([0, 50, 100, 150, 200, 250], image))]])
    np.testing.assert_array_equal(leaf["frame_mask"], [[1, 1, 0, 0], [0] * 4, [1] * 4])
    np.testing.assert_allclose(leaf["frames"][:, :, 3, 3, 2], [[100, 200, 0, 0], [0] * 4, [0, 100, 150, 250]], atol=2)
    assert not leaf["frames"][0, 2:].any()
    np.testing.assert_array_equal(leaf["present"], [True, False, True])


def test_what_is_missing_is_zero_and_masked(maker, image):
    leaf = maker([[], [Example(item([], image, text=""))]])
    np.testing.assert_array_equal(leaf["present"], [False, True])
    assert not leaf["frame_mask"].any()
    assert not leaf["frames"].any()
    np.testing.assert_array_equal(leaf["text"], np.zeros((2, 5)))
    np.testing.assert_array_equal(leaf["products"], [[-1, -1, -1], [3, 5, -1]])
    assert {name: part.dtype for name, part in leaf.items()} == {
        "frames": np.uint8,
        "frame_mask": bool,
        "text": np.int32,
        "present": bool,
        "products": np.int32,
    }


def test_repeated_frames_follow_the_positions(tokenizer, image):
    maker = LeafMaker("live", 5, EvalView(6), 5, tokenizer, 3, "repeat")
    leaf = maker([[Example(item([50, 150, 250], image))]])
    np.testing.assert_allclose(leaf["frames"][0, :, 3, 3, 2], [50, 50, 150, 250, 250], atol=2)
    assert leaf["frame_mask"].all()


def test_texts_are_augmented_with_an_rng_only(tokenizer, image):
    noisy = TextAugment(probability=1.0, fraction=1.0, min_length=1)
    maker = LeafMaker("page", 1, EvalView(6), 8, tokenizer, 3, "repeat", noisy)
    page = item([9], image, text="红红红红红红")
    plain = maker([[Example(page)]])["text"]
    assert (plain == maker([[Example(page)]])["text"]).all()
    assert (plain != maker([[Example(page, 3, np.random.default_rng(0))]])["text"]).any()


def test_a_broken_image_names_its_item(maker, image):
    broken = Item(7, "", (3,), (image(np.zeros((8, 8, 3))), b"no image"))
    with pytest.raises(ValueError, match=r"video item 7, record 4 of x: 8 bytes that start with b'no image' are no"):
        maker([[Example(broken, place=lambda: "record 4 of x")]])


def test_the_next_candidate_stands_for_a_broken_one(maker, image):
    frames = (*item([50, 60], image).frames, b"no image")  # the first two are in place before the fault is found
    broken, good = Item(7, "红", (3,), frames), item([100], image, item_id=8, product_ids=(4,))
    faults = []
    candidates = [[Example(good)], iter([Example(broken), Example(broken), Example(good)]), [Example(broken)]]
    leaf = maker(candidates, lambda b, fault: faults.append((b, str(fault)[:12])))
    assert faults == [(1, "video item 7"), (1, "video item 7"), (2, "video item 7")]
    np.testing.assert_array_equal(leaf["present"], [True, True, False])
    for name, part in leaf.items():
        np.testing.assert_array_equal(part[1], part[0], err_msg=name)
        assert (part[2] == (-1 if name == "products" else 0)).all(), name
