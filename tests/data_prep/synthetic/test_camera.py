"""Tests poses, motion, light and noise."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from data_prep.synthetic import camera
from data_prep.synthetic.camera import Look, Motion, Pose, drift, pan, place
from data_prep.synthetic.products import Attributes
from data_prep.synthetic.sprites import Sprite

THING = Attributes("bag", "red", "navy", "dots", "star", "tall")
MOTION = Motion(size=(0.3, 0.6), offset=0.1, angle=20, turn=0.7, shear=0.1, blanks=0.3, covered=0.0)


@pytest.fixture
def squares(monkeypatch):
    """Makes all products plain magenta squares that fill their sprite."""

    def sprite(side):
        return Sprite(Image.new("RGB", (side, side), (255, 0, 255)), Image.new("L", (side, side), 255))

    monkeypatch.setattr(camera, "sprites", lambda attributes, side: (sprite(side), sprite(side // 2)))


def placed(pose: Pose, side: int = 200) -> np.ndarray:
    canvas = Image.new("RGB", (side, side))
    place(canvas, THING, pose)
    return np.asarray(canvas)[..., 0] > 127


@pytest.mark.parametrize("size", [0.3, 0.5, 0.7])
def test_a_product_is_placed_with_the_given_center_and_size(squares, size):
    rows, columns = np.nonzero(placed(Pose((0.4, 0.55), size)))
    assert np.ptp(rows) + 1 == pytest.approx(200 * size, abs=2)
    assert np.ptp(columns) + 1 == pytest.approx(200 * size, abs=2)
    assert (columns.mean(), rows.mean()) == pytest.approx((80, 110), abs=1.5)


def test_turning_narrows_and_angles_rotate(squares):
    turned = placed(Pose((0.5, 0.5), 0.5, turn=0.6))
    assert turned.any(0).sum() == pytest.approx(60, abs=2)
    assert turned.any(1).sum() == pytest.approx(100, abs=2)
    rotated = placed(Pose((0.5, 0.5), 0.5, angle=20))
    assert rotated.sum() == pytest.approx(100 * 100, rel=0.03)
    assert rotated.any(0).sum() == pytest.approx(100 * (np.cos(0.349) + np.sin(0.349)), abs=3)
    top = np.nonzero(rotated)[1][0]  # angles are clockwise, so the upper left corner is on top
    assert top < 100


def test_ink_draws_only_the_shadow(squares):
    canvas = Image.new("RGB", (60, 60))
    place(canvas, THING, Pose((0.5, 0.5), 0.5), ink=(9, 8, 7))
    assert canvas.getpixel((30, 30)) == (9, 8, 7)


def test_poses_stay_within_the_motion():
    rng = np.random.default_rng(0)
    poses = [pose for _ in range(200) for pose in MOTION.poses(5, 0.2, 0.5, rng)]
    assert len(poses) == 1000
    table = np.array([(*p.center, p.size, p.angle, p.turn, p.shear) for p in poses])
    assert (table.min(0) >= np.array((0.65, 0.4, 0.15, -20, 0.7, -0.1)) - 1e-9).all()
    assert (table.max(0) <= np.array((0.75, 0.6, 0.30, 20, 1.0, 0.1)) + 1e-9).all()
    assert (np.ptp(table, axis=0) > 0.9 * np.array((0.1, 0.2, 0.15, 40, 0.3, 0.2))).all()


def test_blank_frames_occur_at_their_rate_but_are_never_half():
    rng = np.random.default_rng(0)
    masks = [MOTION.blank_frames(7, rng) for _ in range(500)]
    assert np.mean(masks) == pytest.approx(0.29, abs=0.03)
    assert max(mask.sum() for mask in masks) == 3
    assert not MOTION.blank_frames(1, rng).any()


def test_drift_is_steady_and_within_its_limits():
    rng = np.random.default_rng(0)
    paths = np.stack([drift(2, 5, 6, rng, jitter=0) for _ in range(300)])
    assert paths.min() >= 2
    assert paths.max() <= 5
    steps = np.diff(paths)
    assert steps == pytest.approx(np.broadcast_to(steps[:, :1], steps.shape))


def test_panning_crops_frames_from_the_background():
    background = Image.fromarray(np.arange(40 * 40, dtype=np.uint16).astype(np.uint8).reshape(40, 40))
    frames = pan(background, 30, 32, np.random.default_rng(0))
    corners = {frame.getpixel((0, 0)) for frame in frames}
    assert {frame.size for frame in frames} == {(32, 32)}
    assert len(corners) > 5


def test_developing_scales_brightness_and_adds_noise():
    rng = np.random.default_rng(0)
    canvases = [Image.new("RGB", (50, 50), (100, 120, 140))] * 3
    plain = Look(light=(1.0, 1.0), tint=0, slope=0, noise=0, quality=(90, 91))
    assert (plain.develop(canvases, rng) == (100, 120, 140)).all()
    dark = dataclasses.replace(plain, light=(0.5, 0.5)).develop(canvases, rng)
    assert (dark == (50, 60, 70)).all()
    noisy = dataclasses.replace(plain, noise=8).develop(canvases, rng)
    assert noisy.astype(float).std(axis=(1, 2)) == pytest.approx(np.full((3, 3), 8), rel=0.1)
    assert (noisy[0] != noisy[1]).mean() > 0.9
