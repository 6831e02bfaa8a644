"""Draws items as the domains show them: pages of a studio, moving videos, crowded lives.

The constants here, in texts.py and in release.py decide how difficult the release is.
"""

from collections.abc import Sequence

import numpy as np
import simplejpeg
from PIL import Image

from data_prep.synthetic import backgrounds
from data_prep.synthetic.camera import Look, Motion, Pose, pan, place
from data_prep.synthetic.products import Attributes, darker

PAGE_SIZE = (0.72, 0.92)  # relative to the side of the frame
PAGE_ANGLE = 3  # degrees
VIDEO_MOTION = Motion(size=(0.50, 0.85), offset=0.10, angle=20, turn=0.75, shear=0.15, blanks=0.15, covered=0.30)
LIVE_MOTION = Motion(size=(0.44, 0.64), offset=0.08, angle=12, turn=0.82, shear=0.08, blanks=0.12, covered=0.15)
PAIR_SHARE, PAIR_OFFSET = 0.66, 0.24  # an item of two products shows them side by side, each smaller

LOOKS = {
    "page": Look(light=(0.97, 1.03), tint=0.01, slope=0.03, noise=1, quality=(85, 96)),
    "video": Look(light=(0.65, 1.20), tint=0.07, slope=0.20, noise=5, quality=(65, 86)),
    "live": Look(light=(0.75, 1.15), tint=0.08, slope=0.20, noise=8, quality=(35, 61)),
}
VIDEO_CUTS = 0.5  # share of videos that continue in a second place
VIDEO_CARDS = 0.5  # share of a video's blank frames that show a card instead of the empty place
LIVE_RESOLUTION = (0.6, 0.9)  # relative to the side of the frame, to which lives are enlarged

# Number and size of other products of the split in a live clip.
SHELF_ITEMS = (2, 4)
SHELF_SIZE = (0.16, 0.26)
SHELF_PLACES = ((0.15, 0.20), (0.85, 0.20), (0.13, 0.52), (0.87, 0.52), (0.15, 0.82), (0.85, 0.85))


def draw_item(
    domain: str,
    shown: Sequence[Attributes],
    shelf: Sequence[Attributes],
    *,
    frames: int,
    side: int,
    rng: np.random.Generator,
) -> list[bytes]:
    """Draws the frames of an item as JPEG files of `side` × `side` pixels.

    `shown` are its one or two products, `shelf` those that may appear in the background of a live clip.
    """
    match domain:
        case "page":
            canvases = [_page(shown, side, rng) for _ in range(frames)]
        case "video":
            canvases = _video(shown, frames, side, rng)
        case "live":
            canvases = _live(shown, shelf, frames, side, rng)
        case _:
            raise ValueError(f"unknown domain {domain!r}; choose from {', '.join(LOOKS)}")
    look = LOOKS[domain]
    quality = int(rng.integers(*look.quality))
    shots = look.develop(canvases, rng)
    return [simplejpeg.encode_jpeg(shot, quality=quality, colorsubsampling="420") for shot in shots]


def _page(shown: Sequence[Attributes], side: int, rng: np.random.Generator) -> Image.Image:
    paper = backgrounds.paper(rng)
    canvas = Image.new("RGB", (side, side), paper)
    for attributes, x, share in _side_by_side(shown):
        pose = Pose((0.5 + x, 0.5), share * rng.uniform(*PAGE_SIZE), rng.uniform(-PAGE_ANGLE, PAGE_ANGLE))
        place(canvas, attributes, pose.moved(0.02, 0.025), ink=darker(paper, 0.88))
        place(canvas, attributes, pose)
    return canvas


def _video(shown: Sequence[Attributes], frames: int, side: int, rng: np.random.Generator) -> list[Image.Image]:
    cut = int(rng.integers(1, frames)) if frames > 1 and rng.random() < VIDEO_CUTS else frames
    canvases = [
        canvas
        for length in (cut, frames - cut)
        if length
        for canvas in pan(backgrounds.clutter(round(1.3 * side), rng), length, side, rng)
    ]
    blank = _perform(canvases, shown, VIDEO_MOTION, rng)
    for i in np.flatnonzero(blank & (rng.random(frames) < VIDEO_CARDS)).tolist():
        canvases[i] = backgrounds.card(side, rng)
    return canvases


def _live(
    shown: Sequence[Attributes], shelf: Sequence[Attributes], frames: int, side: int, rng: np.random.Generator
) -> list[Image.Image]:
    stage = backgrounds.stage(round(1.1 * side), rng)
    _fill_shelf(stage, [attributes for attributes in shelf if attributes not in shown], rng)
    canvases = pan(stage, frames, side, rng)
    _perform(canvases, shown, LIVE_MOTION, rng)
    overlay = backgrounds.overlay(side, rng)
    small = round(side * rng.uniform(*LIVE_RESOLUTION))
    bilinear = Image.Resampling.BILINEAR
    for canvas in canvases:
        canvas.paste(overlay, mask=overlay)
    return [canvas.resize((small, small), bilinear).resize((side, side), bilinear) for canvas in canvases]


def _perform(
    canvases: Sequence[Image.Image], shown: Sequence[Attributes], motion: Motion, rng: np.random.Generator
) -> np.ndarray:
    """Draws the moving products on the frames in place; returns which frames have none, bool[frames]."""
    frames, side = len(canvases), canvases[0].width
    blank, covered = motion.blank_frames(frames, rng), rng.random(frames) < motion.covered
    for attributes, x, share in _side_by_side(shown):
        poses = motion.poses(frames, x, share, rng)
        for i in np.flatnonzero(~blank).tolist():
            place(canvases[i], attributes, poses[i])
            if covered[i]:
                backgrounds.cover(canvases[i], poses[i].pixels(side), poses[i].size * side, rng)
    return blank


def _fill_shelf(stage: Image.Image, shelf: Sequence[Attributes], rng: np.random.Generator) -> None:
    """Draws other products on the stage, smaller than the one on offer and near the edges."""
    count = min(int(rng.integers(*SHELF_ITEMS, endpoint=True)), len(shelf))
    for chosen, near in zip(rng.permutation(len(shelf))[:count], rng.permutation(SHELF_PLACES), strict=False):
        x, y = (near + rng.uniform(-0.05, 0.05, 2)).tolist()
        place(stage, shelf[chosen], Pose((x, y), rng.uniform(*SHELF_SIZE), rng.uniform(-8, 8)))


def _side_by_side(shown: Sequence[Attributes]) -> list[tuple[Attributes, float, float]]:
    """Returns each product with its offset from the center and its size relative to the usual one."""
    if len(shown) == 1:
        return [(shown[0], 0.0, 1.0)]
    return [(shown[0], -PAIR_OFFSET, PAIR_SHARE), (shown[1], PAIR_OFFSET, PAIR_SHARE)]
