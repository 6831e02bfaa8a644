"""Tests the pictures of pages, videos and lives."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from data_prep.synthetic import backgrounds, camera, scenes
from data_prep.synthetic.products import RECIPES, Attributes, sample_products
from data_prep.synthetic.scenes import LIVE_MOTION, LOOKS, PAGE_SIZE, PAIR_SHARE, VIDEO_MOTION, draw_item
from data_prep.synthetic.sprites import Sprite

THING = Attributes("bag", "red", "navy", "dots", "star", "tall")
SHELF = [product.attributes for product in sample_products(20, 8, 0, RECIPES[6])[0]]
MAGENTA = (255, 0, 255)  # no product and no background has this color


def drawn(domain, shown=(THING,), frames=6, side=96, seed=0) -> np.ndarray:
    files = draw_item(domain, shown, SHELF, frames=frames, side=side, rng=np.random.default_rng(seed))
    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])


@pytest.fixture
def marked(monkeypatch):
    """Makes THING a magenta square that nothing covers, and removes the effects of light and camera."""
    original = camera.sprites

    def sprites(attributes, side):
        if attributes != THING:
            return original(attributes, side)
        return tuple(Sprite(Image.new("RGB", (s, s), MAGENTA), Image.new("L", (s, s), 255)) for s in (side, side // 2))

    monkeypatch.setattr(camera, "sprites", sprites)
    plain = {"light": (1.0, 1.0), "tint": 0, "slope": 0, "noise": 0, "quality": (95, 96)}
    monkeypatch.setattr(scenes, "LOOKS", {d: dataclasses.replace(look, **plain) for d, look in LOOKS.items()})
    monkeypatch.setattr(backgrounds, "cover", lambda *args: None)


def magenta(shots: np.ndarray) -> np.ndarray:
    """Returns the pixels of the marked product, bool[frames, H, W]."""
    return (shots[..., 0] > 190) & (shots[..., 1] < 90) & (shots[..., 2] > 190)


def sizes(shots: np.ndarray) -> np.ndarray:
    """Returns the height of the marked product relative to the frame, float[frames], 0 if it is not visible."""
    return magenta(shots).any(axis=2).sum(axis=1) / shots.shape[1]


def test_pages_are_frontal_and_centered_on_a_plain_light_background(marked):
    for seed in range(10):
        (shot,) = shots = drawn("page", frames=1, seed=seed)
        border = np.concatenate((shot[0], shot[-1], shot[:, 0], shot[:, -1])).astype(int)
        assert border.min() > 200
        assert border.std(axis=0).max() < 12  # the shadow may reach it
        assert PAGE_SIZE[0] - 0.03 < sizes(shots)[0] < PAGE_SIZE[1] + 0.08
        assert [axis.mean() for axis in np.nonzero(magenta(shots)[0])] == pytest.approx([47.5, 47.5], abs=2)


@pytest.mark.parametrize(("domain", "motion"), [("video", VIDEO_MOTION), ("live", LIVE_MOTION)])
def test_clips_show_the_product_in_its_range_of_sizes_and_omit_it_at_its_rate(marked, domain, motion):
    seen = np.stack([sizes(drawn(domain, frames=8, seed=seed)) for seed in range(60)])
    blank = seen < 0.05
    assert blank.mean() == pytest.approx(motion.blanks, abs=0.05)
    assert blank.mean(axis=1).max() < 0.5
    assert motion.size[0] - 0.05 < seen[~blank].min()
    assert seen[~blank].max() < motion.size[1] * 1.4  # a rotated square is higher
    changes = [np.ptp(sizes_of_clip[sizes_of_clip > 0.05]) for sizes_of_clip in seen]
    assert max(changes) > 0.5 * np.ptp(motion.size)


def test_products_move_within_a_clip(marked):
    shots = drawn("video", frames=12, seed=3)
    centers = [np.argwhere(mask).mean(axis=0) for mask in magenta(shots) if mask.sum() > 50]
    assert np.ptp(centers, axis=0).max() > 5


def test_live_shows_other_products_than_video(marked):
    """Checks that lives depend on their shelf, but videos do not."""
    for domain, differ in (("video", False), ("live", True)):
        with_shelf, without = (
            draw_item(domain, (THING,), shelf, frames=4, side=96, rng=np.random.default_rng(1)) for shelf in (SHELF, [])
        )
        assert (with_shelf[0] != without[0]) is differ


def test_two_products_are_side_by_side(marked):
    other = dataclasses.replace(THING, category="hat")
    for domain, size in (("page", PAGE_SIZE), ("video", VIDEO_MOTION.size), ("live", LIVE_MOTION.size)):
        for shown, left in (((THING, other), True), ((other, THING), False)):
            shots = drawn(domain, shown, frames=1)
            assert PAIR_SHARE * size[0] - 0.05 < sizes(shots)[0] < PAIR_SHARE * size[1] * 1.4
            assert bool(np.argwhere(magenta(shots)[0])[:, 1].mean() < 48) is left


def test_lives_have_lower_jpeg_quality():
    files = {d: draw_item(d, (THING,), SHELF, frames=4, side=96, rng=np.random.default_rng(2)) for d in LOOKS}
    tables = {d: sum(Image.open(io.BytesIO(f[0])).quantization[0]) for d, f in files.items()}
    assert tables["page"] < tables["video"] < tables["live"]


@pytest.mark.parametrize("domain", ["page", "video", "live"])
def test_an_item_depends_only_on_its_generator(domain):
    one, again, other = (
        draw_item(domain, (THING,), SHELF, frames=3, side=32, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert one == again
    assert all(a != b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("domain", ["page", "video", "live"])
def test_files_contain_no_metadata(domain):
    for file in draw_item(domain, (THING,), SHELF, frames=2, side=48, rng=np.random.default_rng(0)):
        image = Image.open(io.BytesIO(file))
        assert image.size == (48, 48)
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_unknown_domains_are_an_error():
    with pytest.raises(ValueError, match="unknown domain 'radio'; choose from page, video, live"):
        drawn("radio")
