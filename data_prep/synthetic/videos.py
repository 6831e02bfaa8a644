"""Writes the clips of a synthetic release as videos, and its items as a table.

    python -m data_prep.synthetic.videos --release=DIR

Each video becomes a file, and the lives become recordings of many items, one after the other, of which the table has
the start and end. Each image is shown for a second. The folder DIR/videos, with items.csv, appears once it is complete.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from absl import flags

from data_prep.catalog.release_parser import NO_TEXT
from data_prep.common.cli import run
from data_prep.common.files import atomic_folder
from data_prep.common.process_pool import process_map
from data_prep.common.progress import Progress
from data_prep.images.decoding import decode_rgb
from data_prep.synthetic.release import OPTIONS_FILE, PlannedItem, plan_release

FOLDER, TABLE = "videos", "items.csv"
COLUMNS = ("split", "domain", "product", "item", "text", "images", "video", "start", "end")
RATE = 2  # frames per second
# Nearly lossless, with a keyframe every ten seconds.
ENCODER = {"crf": "18", "preset": "veryfast", "g": str(10 * RATE)}
ITEMS_PER_RECORDING = 60  # six to seven minutes


def write_videos(release: Path) -> Path:
    """Writes the videos and the table of a release to its folder `videos`, if it has none; returns the table.

    Names in the table are paths in the folder of the release.
    """
    table = release / FOLDER / TABLE
    if table.exists():
        return table
    options = json.loads((release / OPTIONS_FILE).read_text(encoding="utf-8"))
    plan = plan_release(*(options[name] for name in ("train_products", "test_products", "seed", "recipe")))
    files = _files(plan.items)
    with atomic_folder(release / FOLDER) as folder, process_map() as apply:
        with Progress(desc="videos", total=len(files), unit="files") as progress:
            for _ in apply(partial(_write_file, release / "images", folder), list(files.items())):
                progress.update(1)
        with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
            rows: csv.DictWriter[str] = csv.DictWriter(file, COLUMNS)
            rows.writeheader()
            rows.writerows(row for item in plan.items if item.domain == "page" for row in _rows(item))
            for name, items in files.items():
                start = 0
                for item in items:
                    place: dict[str, Any] = {"video": f"{FOLDER}/{name}"}
                    if item.domain == "live":
                        place |= {"start": start, "end": (start := start + len(item.frames))}
                    rows.writerows(row | place for row in _rows(item))
    return table


def _files(items: Sequence[PlannedItem]) -> dict[str, list[PlannedItem]]:
    """Returns the items of each file to write."""
    files, lives = {}, defaultdict(list)
    for item in items:
        if item.domain == "video":
            files[f"video-{item.item_id}.mp4"] = [item]
        elif item.domain == "live":
            lives[item.split].append(item)
    for split, own in lives.items():
        parts = [own[start : start + ITEMS_PER_RECORDING] for start in range(0, len(own), ITEMS_PER_RECORDING)]
        files |= {f"live-{split}-{number}.mp4": part for number, part in enumerate(parts)}
    return files


def _rows(item: PlannedItem) -> list[dict[str, Any]]:
    """Returns the rows of an item, one per product; of a page with its images."""
    images = "|".join(f"images/{name}" for _, name in item.frames) if item.domain == "page" else ""
    row = {"split": item.split, "domain": item.domain, "item": item.item_id, "images": images}
    row["text"] = "" if item.text == NO_TEXT else item.text
    return [row | {"product": product.product_id} for product in item.products]


def _write_file(images: Path, folder: Path, file: tuple[str, list[PlannedItem]]) -> None:
    name, items = file
    encode(folder / name, ((images / image).read_bytes() for item in items for _, image in item.frames))


def encode(path: Path, images: Iterable[bytes]) -> None:
    """Writes a video, H.264 in MP4, that shows each of some encoded images of one size for a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", RATE, options=ENCODER)
        stream.thread_count, stream.pix_fmt = 1, "yuv420p"
        for number, image in enumerate(images):
            pixels = decode_rgb(image)
            height, width = (size - size % 2 for size in pixels.shape[:2])  # the format has only even ones
            if number == 0:
                stream.width, stream.height = width, height
            shot = cv2.resize(pixels, (width, height)).astype(np.uint8)
            for _ in range(RATE):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shot, "rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("release", None, "Folder of the synthetic release.", required=True)
    run("synthetic.videos", lambda: print(f"written to {write_videos(Path(FLAGS.release)).parent}"))
