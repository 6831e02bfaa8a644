"""Measures the cost of making a catalog at a fraction of ROPE's size: `python -m benchmarks.catalog --scale=0.1`.

Writes the nine text files of a training split with `--scale` times as many products, pages, videos and lives as ROPE,
on average with 8 frames per video and 12 per live, in random order, including invalid and repeated lines and lines of
no item; then runs `data_prep.catalog` on them. The last line is JSON: `items`, `frame_rows`, `lines`, `seconds`,
`rows_per_s` (lines), `peak_rss_bytes` of the process (it has no children), `disk_bytes` (the largest size of its folder
while it ran), `catalog_bytes` and `text_bytes`.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import app, flags

from data_prep.catalog.files import ROPE, Catalog
from data_prep.catalog.release_parser import release_files
from data_prep.common.domains import DOMAINS

FRAMES = {"page": 1, "video": 8, "live": 12}  # on average
TEXT_CHARACTERS = {"page": (10, 50), "video": (0, 200), "live": (0, 200)}
SECOND_PRODUCT = 0.05  # fraction of items with two products
CHUNK_ROWS = 1 << 20
REPEATED = 8  # lines that each chunk of a file ends with: repeated ones, and then
INVALID = b"7, ../a.jpg, b.jpg\nx, 7\n7\n"
SENTENCE = (
    "不买亏大了,碧根果才1元，限时限量速抢，内里是加绒加棉加厚咱这个衣服，华诺 竖条纹 手提包 酒红配雪白 爱心 高款 包邮。"
)

FLAGS = flags.FLAGS


def write_release(folder: Path, scale: float) -> int:
    """Writes the files and returns the number of frame rows."""
    for name in ("pages_pair", "videos_pair", "lives_pair"):
        (folder / f"training_product_{name}.txt").touch()
    for name in ("page_titles", "page_images", "video_asrs", "video_frames", "live_asrs", "live_clips"):
        (folder / f"training_{name}.txt").touch()
    files, frame_rows = release_files(folder, "train"), 0
    products = max(1, round(ROPE["train"]["product"] * scale))
    for seed, domain in enumerate(DOMAINS):
        rng = np.random.default_rng(seed)
        ids = rng.permutation(max(1, round(ROPE["train"][domain] * scale)))
        seconds = rng.permutation(ids)[: round(SECOND_PRODUCT * len(ids))]
        _write(files[domain].pairs, _pairs(rng, np.concatenate((ids, seconds)), products))
        _write(files[domain].texts, _texts(rng, rng.permutation(ids), TEXT_CHARACTERS[domain]))
        counts = rng.integers(1, 2 * FRAMES[domain] - 1, len(ids), endpoint=True)
        owners = rng.permutation(np.repeat(ids, counts))
        _write(files[domain].frames, _frames(rng, owners, timed=domain != "page"))
        frame_rows += len(owners)
    return frame_rows


def _write(path: Path, chunks: Iterator[list[pa.Array]]) -> None:
    """Writes the fields of each chunk as lines."""
    with path.open("wb") as file:
        for fields in chunks:
            end = pa.scalar(" \n")
            last = pc.binary_join_element_wise(fields[-1], end, "")
            rows = pc.binary_join_element_wise(*(pc.cast(field, pa.string()) for field in fields[:-1]), last, ", ")
            file.write(rows.buffers()[2])
            file.write("".join(rows[:REPEATED].to_pylist()).encode() + INVALID)


def _chunks(ids: np.ndarray) -> Iterator[np.ndarray]:
    return (ids[start : start + CHUNK_ROWS] for start in range(0, len(ids), CHUNK_ROWS))


def _pairs(rng: np.random.Generator, ids: np.ndarray, products: int) -> Iterator[list[pa.Array]]:
    for chunk in _chunks(ids):
        yield [pa.array(rng.integers(0, products, len(chunk))), pc.cast(pa.array(chunk), pa.string())]


def _texts(rng: np.random.Generator, ids: np.ndarray, characters: tuple[int, int]) -> Iterator[list[pa.Array]]:
    lengths = rng.integers(*characters, 4096)
    starts = rng.integers(0, len(SENTENCE), 4096)
    long = SENTENCE * 5
    pool = pa.array([long[start : start + length] or "空" for start, length in zip(starts, lengths, strict=True)])
    for chunk in _chunks(ids):
        yield [pa.array(chunk), pool.take(pa.array(rng.integers(0, len(pool), len(chunk))))]


def _frames(rng: np.random.Generator, owners: np.ndarray, *, timed: bool) -> Iterator[list[pa.Array]]:
    for chunk in _chunks(owners):
        times = [pa.array(rng.integers(1_660_000_000_000, 1_670_000_000_000, len(chunk)))] if timed else []
        yield [pa.array(chunk), *times, _names(rng, len(chunk))]


def _names(rng: np.random.Generator, count: int) -> pa.StringArray:
    """Returns names like those of ROPE: eae32f52-2a9a-11ee-a32e-507c6f3c3e56.jpg."""
    letters = np.frombuffer(b"0123456789abcdef", np.uint8)[rng.integers(0, 16, (count, 40), np.uint8)]
    letters[:, [8, 13, 18, 23]] = ord("-")
    letters[:, 36:] = np.frombuffer(b".jpg", np.uint8)
    offsets = np.arange(count + 1, dtype=np.int32) * 40
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(letters.tobytes()))


def run_catalog(release: Path, out: Path) -> dict[str, float]:
    """Makes the catalog in a process of its own and returns the seconds and bytes that it takes."""
    options = [f"--release={release}", f"--out={out}", "--splits=train", f"--memory_limit={FLAGS.memory_limit}"]
    done, disk = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.5):
            disk[0] = max(disk[0], _size(out.with_name(f"{out.name}.writing")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        subprocess.run([sys.executable, "-m", "data_prep.catalog", *options], check=True)
    finally:
        done.set()
        watcher.join()
    return {
        "seconds": time.perf_counter() - started,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "disk_bytes": max(disk[0], _size(out)),
        "catalog_bytes": _size(out),
    }


def _size(folder: Path) -> int:
    """Returns the bytes on disk of a folder, whose files may come and go."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_float("scale", 0.01, "Size as a fraction of ROPE's training split.", lower_bound=0)
    flags.DEFINE_string("folder", None, "Folder for a temporary folder with all data.")
    flags.DEFINE_string("memory_limit", "3GB", "The flag of data_prep.catalog.")


def main(_: list[str]) -> None:
    """Measures and prints the result."""
    folder = Path(tempfile.mkdtemp(prefix="catalog-", dir=FLAGS.folder))
    try:
        release = folder / "release"
        release.mkdir()
        frame_rows = write_release(release, FLAGS.scale)
        text_bytes = _size(release)
        print(f"{release}: {text_bytes / 1e9:.2f} GB of text", flush=True)
        measured = run_catalog(release, folder / "catalog")
        catalog = Catalog(folder / "catalog")
        lines = sum(file["lines"] for file in catalog.summary["splits"]["train"]["files"].values())
        result = {
            "scale": FLAGS.scale,
            "items": sum(catalog.count("train", domain) for domain in DOMAINS),
            "frame_rows": frame_rows,
            "lines": lines,
            "seconds": round(measured["seconds"], 1),
            "rows_per_s": round(lines / measured["seconds"]),
            "peak_rss_bytes": measured["peak_rss_bytes"],
            "disk_bytes": measured["disk_bytes"],
            "catalog_bytes": measured["catalog_bytes"],
            "text_bytes": text_bytes,
        }
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result))


if __name__ == "__main__":
    define_flags()
    app.run(main)
