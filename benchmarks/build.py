"""Measures the speed of a build, next to a plain writer of the same bytes, and the growth of its memory with the data.

    python -m benchmarks.build [--mb=1200] [--processes=2] [--source=shards|folder] [--folder=DIR]

Writes catalogs with `mb` and 4·`mb` megabytes of images (videos of 8 frames, JPEGs of about 28 kB). In turn, each in a
process of its own, both are built, and one ArrayRecordWriter writes the records of the larger one again, from memory.
The last line is JSON: items_per_s and mb_per_s of the larger build, from listing the images to the finished data set;
bare_mb_per_s of the plain writer; their ratio; peak_rss_bytes of all processes; and rss_growth, the ratio of the
larger build's peak to the smaller one's. With --source=shards the images are in the shards of a download, whose ledger
has checked them; with --source=folder the build checks each image by decoding it.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np
from absl import app, flags
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image

from benchmarks.catalog_writer import write_catalog
from benchmarks.measuring import run_in_process, summarize_ratio
from data_prep.build import build
from data_prep.catalog.files import Frame, Item
from data_prep.common.domains import DOMAINS
from data_prep.download.ledger import SUCCESS, Footer, Row, write_ledger
from data_prep.download.shard import add_image, shard_path
from data_prep.records.inputs import Inputs

FLAGS = flags.FLAGS
FRAMES = 8
DISTINCT = 64
SHARD_FRAMES = 5000


def make_images() -> list[bytes]:
    """Returns JPEGs of 348 px with as much detail as photos."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(DISTINCT):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize(
            (348, 348), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse) + rng.normal(0, 9, (348, 348, 3))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        images.append(buffer.getvalue())
    return images


def write_inputs(folder: Path, megabytes: int, source: str) -> Inputs:
    """Writes a catalog and its images: videos, and one page and one live."""
    images = make_images()
    videos = max(1, round(megabytes * 1e6 / (FRAMES * sum(map(len, images)) / len(images))))
    names = [f"{number:08}.jpg" for number in range(videos * FRAMES)]
    items = {
        domain: [
            Item(i, f"item {i}", (i // 3,), tuple(Frame(t, names[i * FRAMES + t]) for t in range(FRAMES)))
            for i in range(videos if domain == "video" else 1)
        ]
        for domain in DOMAINS
    }
    write_catalog(folder / "catalog", {"train": items})
    write = write_shards if source == "shards" else write_folder
    (folder / "images").mkdir()
    write(folder / "images", names, images)
    return Inputs(folder / "catalog", (folder / "images",), ("train",))


def write_folder(folder: Path, names: list[str], images: list[bytes]) -> None:
    """Writes the images as files, using each several times."""
    for number, name in enumerate(names):
        (folder / name).write_bytes(images[number % DISTINCT])


def write_shards(folder: Path, names: list[str], images: list[bytes]) -> None:
    """Writes the images as `data_prep.download` does, using each several times."""
    sums = [hashlib.sha256(image).hexdigest() for image in images]
    for number, start in enumerate(range(0, len(names), SHARD_FRAMES)):
        rows = []
        with tarfile.open(shard_path(folder, number, ".tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(start, min(start + SHARD_FRAMES, len(names))):
                body, url = images[i % DISTINCT], f"https://host/{names[i]}"
                common = {"key": f"{i:09}", "url": url, "status": SUCCESS, "name": names[i], "tries": 1}
                row = Row(**common, bytes=len(body), extension="jpg", sha256=sums[i % DISTINCT])
                rows.append(dataclasses.replace(row, start=add_image(tar, row, body)))
        write_ledger(shard_path(folder, number, ".parquet"), rows, Footer(0, 0, {}))


class Memory:
    """Sums the peak memory of this process and of its children, sampled five times a second."""

    def __enter__(self) -> "Memory":
        self._peaks: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak(self) -> int:
        """Bytes so far."""
        return sum(self._peaks.values())

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
            for pid in [str(os.getpid()), *(child for some in children for child in some)]:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    # Not from getrusage: there, the peak of a child starts at the memory of its parent.
                    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                    self._peaks[pid] = max(self._peaks.get(pid, 0), 1024 * int(found[1]) if found else 0)


def measure_build(folder: Path, processes: int) -> dict[str, float]:
    """Builds in this process and returns items, bytes, seconds and the peak memory of all processes."""
    inputs = Inputs(folder / "catalog", (folder / "images",), ("train",))
    start = time.perf_counter()
    with Memory() as memory:
        summary = build(inputs, folder / "data", processes=processes, report=lambda line: None)
    seconds = time.perf_counter() - start
    counts = [summary["splits"]["train"][domain] for domain in DOMAINS]
    return {
        "items": sum(count["items"]["kept"] for count in counts),
        "bytes": sum(count["bytes"] for count in counts),
        "seconds": seconds,
        "peak_rss_bytes": memory.peak,
    }


def measure_bare(folder: Path) -> dict[str, float]:
    """Writes the records of the videos again and returns bytes and seconds, without the time to read them."""
    seconds, size = 0.0, 0
    target = folder / "bare"
    target.mkdir()
    for path in sorted((folder / "data" / "rope" / "video" / "1.0.0").glob("*array_record*")):
        reader = ArrayRecordReader(str(path))
        records = reader.read_all()
        reader.close()
        start = time.perf_counter()
        writer = ArrayRecordWriter(str(target / path.name), "group_size:1,uncompressed")
        for record in records:
            writer.write(record)
        writer.close()
        seconds += time.perf_counter() - start
        size += (target / path.name).stat().st_size
    return {"bytes": size, "seconds": seconds}


def run_part(part: str, folder: Path) -> dict[str, float]:
    """Runs one measurement in a process of its own, after pending writes have reached the disk."""
    os.sync()
    return run_in_process("build", f"--part={part}", f"--folder={folder}", f"--processes={FLAGS.processes}")


def compare(folder: Path) -> dict[str, float]:
    """Builds both sizes and returns the result."""
    for name, megabytes in (("n", FLAGS.mb), ("4n", 4 * FLAGS.mb)):
        print(f"writing {megabytes} MB of images as {FLAGS.source}", file=sys.stderr, flush=True)
        (folder / name).mkdir()
        write_inputs(folder / name, megabytes, FLAGS.source)
    rounds = []
    for _ in range(FLAGS.rounds):
        parts = (("build", "n"), ("build", "4n"), ("bare", "4n"))
        rounds.append([run_part(part, folder / name) for part, name in parts])
        for written in ("n/data", "4n/data", "4n/bare"):
            shutil.rmtree(folder / written)
        print(", ".join(f"{run['bytes'] / 1e6 / run['seconds']:.1f} MB/s" for run in rounds[-1]), file=sys.stderr)
    small, large, bare = zip(*rounds, strict=True)
    rates, bare_rates = ([run["bytes"] / 1e6 / run["seconds"] for run in runs] for runs in (large, bare))
    peaks, small_peaks = ([run["peak_rss_bytes"] for run in runs] for runs in (large, small))
    return {
        "items_per_s": median(run["items"] / run["seconds"] for run in large),
        "mb_per_s": median(rates),
        "bare_mb_per_s": median(bare_rates),
        **summarize_ratio("ratio", rates, bare_rates),
        **summarize_ratio("rss_growth", peaks, small_peaks),
        "peak_rss_bytes": max(peaks),
        "bytes": large[0]["bytes"],
        "seconds": median(run["seconds"] for run in large),
    }


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_integer("mb", 1200, "Megabytes of images in the smaller build.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Number of measurements.", lower_bound=1)
    flags.DEFINE_integer("processes", 2, "Number of processes that build.", lower_bound=1)
    flags.DEFINE_enum("source", "shards", ["shards", "folder"], "Where the images are.")
    flags.DEFINE_string("folder", None, "Folder for a temporary folder with all data.")
    flags.DEFINE_enum(
        "part", None, ["build", "bare"], "Measure only this part, in this process, on the data in --folder."
    )


def main(_: list[str]) -> None:
    """Measures and prints the result."""
    if FLAGS.part == "build":
        print(json.dumps(measure_build(Path(FLAGS.folder), FLAGS.processes)))
    elif FLAGS.part == "bare":
        print(json.dumps(measure_bare(Path(FLAGS.folder))))
    else:
        with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
            print(json.dumps(compare(Path(folder))))


if __name__ == "__main__":
    define_flags()
    app.run(main)
