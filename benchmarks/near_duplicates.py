"""Does `inspect --check_split` find the copies of photos, only these, and fast enough for a million images?

    python -m benchmarks.near_duplicates --photos=GroceryStoreDataset/dataset
    python -m benchmarks.near_duplicates                              # pictures of a synthetic release instead

Plants `copies` of the photos in another split, a fifth each of JPEG quality 50, a crop to 90% of both sides, a mirror
image, half the size, and a caption bar over the lowest 15%. `found` is the share of them that is found. `false_pairs`
is the share of all pairs found that neither are planted nor show one scene from one place: those in which no homography
near the identity maps SIFT keypoints (OpenCV) all over the originals. Photos of one scene from one place are
near-duplicates, although nobody planted them.

`seconds` and `peak_rss_bytes` are of finding near-duplicates among `images` generated images, mixtures of the photos'
descriptors with noise, nine tenths in one split, in a process of its own; `processor_seconds` is its whole processor
time, which other work on the machine does not change. `hash_ms` is the time to decode and to
describe a photo on one core, and `compare_ms` that to compare two thumbnails.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from absl import app, flags

from benchmarks.measuring import peak_memory, run_in_process
from data_prep.common.process_pool import process_map
from data_prep.images.decoding import decode_rgb
from data_prep.inspect import near_duplicates
from data_prep.synthetic.release import write_release

FLAGS = flags.FLAGS
# Keypoints that a homography maps, the share of the picture between them, and how far its corners may move, in sides.
# Other photos of a package have as many keypoints in common, but on the package alone and at other places.
MIN_INLIERS, MIN_AREA, MAX_MOVE = 50, 0.25, 0.4
SIDE = 512  # pixels of the pictures that are compared
GENERATED_AT_ONCE = 4096


def caption(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Covers the lowest 15% by a bar with text."""
    height, bar = len(pixels), round(0.15 * len(pixels))
    level = int(rng.choice([0, 255]))
    result = pixels.copy()
    result[height - bar :] = level
    place = (3, height - bar // 3)
    return cv2.putText(result, "SALE -20% NOW", place, cv2.FONT_HERSHEY_SIMPLEX, bar / 50, (255 - level,) * 3)


def crop(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns 90% of both sides, at a random place."""
    sides = [round(0.9 * side) for side in pixels.shape[:2]]
    y, x = (int(rng.integers(0, side - own + 1)) for side, own in zip(pixels.shape[:2], sides, strict=True))
    return pixels[y : y + sides[0], x : x + sides[1]]


COPIES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "jpeg": lambda pixels, _: decode_rgb(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=50)),
    "crop": crop,
    "mirror": lambda pixels, _: pixels[:, ::-1],
    "resize": lambda pixels, _: cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "caption": caption,
}


def measure_planted(photos: Sequence[bytes], copies: int) -> dict[str, object]:
    """Plants copies, and returns which are found, and the share of false pairs."""
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    own = [near_duplicates.thumbnail(decode_rgb(data, min_height=48, min_width=48)) for data in photos]
    near_duplicates.describe(np.stack(own))
    hash_ms = (time.perf_counter() - start) / len(photos) * 1e3
    sources = rng.choice(len(photos), min(copies, len(photos)), replace=False).tolist()
    kinds = [list(COPIES)[number % len(COPIES)] for number in range(len(sources))]
    planted = [
        near_duplicates.thumbnail(np.ascontiguousarray(COPIES[kind](decode_rgb(photos[source]), rng)))
        for kind, source in zip(kinds, sources, strict=True)
    ]
    thumbnails = np.stack(own + planted)
    splits = [range(len(own)), range(len(own), len(thumbnails))]
    with tempfile.TemporaryDirectory() as folder, process_map(1) as apply:
        file = Path(folder) / "thumbnails"
        file.write_bytes(thumbnails.tobytes())
        every = np.arange(len(thumbnails))  # as if all showed different products
        pairs = near_duplicates.find_near_duplicates(near_duplicates.describe(thumbnails), file, splits, every, apply)
    origin = np.array([*range(len(own)), *sources])
    found = {tuple(pair) for pair in pairs.tolist()}
    hits = [(source, len(own) + number) in found for number, source in enumerate(sources)]
    others = np.unique(np.sort(origin[pairs][origin[pairs[:, 0]] != origin[pairs[:, 1]]], axis=1), axis=0)
    wrong = [(a, b) for a, b in others.tolist() if not shows_one_scene(photos[a], photos[b])]
    missed = {kind: sum(not hit for hit, one in zip(hits, kinds, strict=True) if one == kind) for kind in COPIES}
    return {
        "photos": len(photos),
        "copies": len(sources),
        "found": float(np.mean(hits)),
        "missed": missed,
        "false_pairs": len(wrong) / max(len(pairs), 1),
        "pairs": len(pairs),
        "pairs_of_one_scene": len(others) - len(wrong),
        "unconfirmed": wrong[:20],
        "hash_ms": round(hash_ms, 3),
        "compare_ms": round(_compare_ms(thumbnails), 3),
    }


def _compare_ms(thumbnails: np.ndarray) -> float:
    start = time.perf_counter()
    for row in thumbnails[:200]:
        near_duplicates.is_same_photo(row, thumbnails[0])
    return (time.perf_counter() - start) / min(200, len(thumbnails)) * 1e3


def shows_one_scene(one: bytes, two: bytes) -> bool:
    """Whether a homography near the identity maps SIFT keypoints of a photo to those of another, or of its mirror."""
    sift = cv2.SIFT.create(contrastThreshold=0.01)

    def features(pixels: np.ndarray) -> tuple[Sequence[cv2.KeyPoint], np.ndarray]:
        large = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        return sift.detectAndCompute(large, None)

    first, second = decode_rgb(one), decode_rgb(two)
    points, vectors = features(first)
    for candidate in (second, np.ascontiguousarray(second[:, ::-1])):
        others, other_vectors = features(candidate)
        if min(len(points), len(others)) < 4:
            continue
        matches = cv2.BFMatcher().knnMatch(vectors, other_vectors, k=2)
        good = [pair[0] for pair in matches if len(pair) == 2 and pair[0].distance < 0.8 * pair[1].distance]
        if len(good) < 4:
            continue
        a = np.array([points[match.queryIdx].pt for match in good], np.float32)
        b = np.array([others[match.trainIdx].pt for match in good], np.float32)
        matrix, mask = cv2.findHomography(a, b, cv2.RANSAC, 8.0)
        if mask is None or mask.sum() < MIN_INLIERS:
            continue
        corners = np.array([[[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]]], np.float32)
        moves = np.abs(cv2.perspectiveTransform(corners, matrix) - corners).max() / SIDE
        area = cv2.contourArea(cv2.convexHull(a[mask.ravel() == 1])) / SIDE**2
        if moves <= MAX_MOVE and area >= MIN_AREA:
            return True
    return False


def measure_generated(photos: Sequence[bytes], images: int) -> dict[str, object]:
    """Finds near-duplicates among generated images; returns the seconds and the peak memory of this process."""
    own = np.stack([near_duplicates.thumbnail(decode_rgb(data)) for data in photos[:2000]])
    base = near_duplicates.describe(own).astype(np.int16)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as name:
        file, descriptors = Path(name) / "thumbnails", Path(name) / "descriptors"
        with file.open("wb") as thumbnails, descriptors.open("wb") as target:
            for start in range(0, images, GENERATED_AT_ONCE):
                size = min(GENERATED_AT_ONCE, images - start)
                a, b = rng.integers(len(own), size=(2, size))
                mixed = (base[a] + base[b]) // 2 + rng.integers(-12, 13, (size, *base.shape[1:]), dtype=np.int16)
                target.write(np.clip(mixed, 0, 255).astype(np.uint8).tobytes())
                thumbnails.write(own[a].tobytes())
        del own, base
        before = peak_memory()
        rows = np.memmap(
            descriptors, np.uint8, "r", shape=(images, len(near_duplicates.REGIONS), near_duplicates.WIDTH)
        )
        splits = [range(images // 10), range(images // 10, images)]
        start = time.perf_counter()
        with process_map() as apply:
            pairs = near_duplicates.find_near_duplicates(rows, file, splits, np.arange(images), apply)
        seconds = time.perf_counter() - start
    times = os.times()  # of this process and, now that they have ended, of those that compared
    return {
        "images": images,
        "seconds": round(seconds, 1),
        "processor_seconds": round(times.user + times.system + times.children_user + times.children_system, 1),
        "peak_rss_bytes": peak_memory(),
        "rss_before": before,
        "generated_pairs": len(pairs),
    }


def read_photos(folder: Path) -> list[bytes]:
    """Returns the JPEGs below a folder."""
    photos = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    if not photos:
        raise app.UsageError(f"--photos is {folder}, which has no *.jpg")
    return photos


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("photos", None, "Folder with JPEGs. Default: pictures of a synthetic release.")
    flags.DEFINE_integer("copies", 1000, "Number of copies to plant.", lower_bound=1)
    flags.DEFINE_integer("images", 1_000_000, "Number of generated images.", lower_bound=1)
    flags.DEFINE_enum("part", "all", ["all", "planted", "generated"], "What to measure.")


def main(_: list[str]) -> None:
    """Runs the benchmark and prints its result as JSON."""
    with tempfile.TemporaryDirectory() as name:
        options = {"train_products": 60, "test_products": 20, "image_side": 96, "seed": 0, "recipe": 6}
        folder = Path(FLAGS.photos) if FLAGS.photos else write_release(Path(name) / "release", **options)
        photos = read_photos(folder)
        result: dict[str, object] = {}
        if FLAGS.part == "all":
            options = (f"--photos={folder}", f"--images={FLAGS.images}", f"--copies={FLAGS.copies}")
            for part in ("planted", "generated"):
                result |= run_in_process("near_duplicates", *options, f"--part={part}")
        elif FLAGS.part == "planted":
            result = measure_planted(photos, FLAGS.copies)
        else:
            result = measure_generated(photos, FLAGS.images)
    print(json.dumps(result))


if __name__ == "__main__":
    define_flags()
    app.run(main)
