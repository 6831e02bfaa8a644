"""How fast is a build, beside a bare writer of the same bytes, and does its memory stay flat as the data grow?

    python -m benchmarks.build [--mb=1200] [--processes=2] [--source=shards|folder] [--folder=DIR]

Writes catalogs with images of `mb` and 4·`mb` megabytes (videos of 8 frames, JPEGs of about 28 kB). In turn, each in a
process of its own: both are built, and the records of the larger written once more by one ArrayRecordWriter, from
memory. The last line is JSON: items_per_s and mb_per_s of the larger build, from the first look at the images to the
finished data set; bare_mb_per_s; their ratio; peak_rss_bytes over all processes of it and rss_growth, that over the
smaller one's.
`shards` are those of a download whose ledger vouches for the images; from a folder each one is decoded to check it.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
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

from benchmarks.ratios import ratio
from data_prep.build import build
from data_prep.catalog.files import Frame, Item, write_catalog
from data_prep.common.domains import DOMAINS
from data_prep.download.ledger import SUCCESS, Footer, Row
from data_prep.download.ledger import write as write_ledger
from data_prep.download.shard import add_image, ledger_path, tar_path
from data_prep.records.inputs import Inputs

FLAGS = flags.FLAGS
FRAMES = 8
DISTINCT = 64
A_SHARD = 5000  # images


def make_images() -> list[bytes]:
    """Some JPEGs of 348 px with the detail of photos."""
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
    """Writes a catalog and its images; pages and lives are few, the videos make the size."""
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
    for number, name in enumerate(names):
        (folder / name).write_bytes(images[number % DISTINCT])


def write_shards(folder: Path, names: list[str], images: list[bytes]) -> None:
    """Writes the shards of a download, as ours does."""
    sums = [hashlib.sha256(image).hexdigest() for image in images]
    for number, start in enumerate(range(0, len(names), A_SHARD)):
        rows = []
        with tarfile.open(tar_path(folder, number), "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(start, min(start + A_SHARD, len(names))):
                body, told = images[i % DISTINCT], {"extension": "jpg", "sha256": sums[i % DISTINCT]}
                row = Row(f"{i:09}", f"https://host/{names[i]}", SUCCESS, names[i], 1, bytes=len(body), **told)
                rows.append(dataclasses.replace(row, start=add_image(tar, row, body)))
        write_ledger(ledger_path(folder, number), rows, Footer(0, 0, {}))


class Memory:
    """Adds up the peaks of this process and of its children, looked at five times a second while they live."""

    def __enter__(self) -> "Memory":
        self._peaks: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self._peaks.values())

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
            for pid in [str(os.getpid()), *(child for some in children for child in some)]:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    # Not getrusage's: a child's would begin at what its parent had.
                    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                    self._peaks[pid] = max(self._peaks.get(pid, 0), 1024 * int(found[1]) if found else 0)


def measure_build(folder: Path, processes: int) -> dict[str, float]:
    """Builds in this process and returns items, bytes, seconds and the peak of memory over all processes."""
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
    """Writes the videos' records once more and returns bytes and seconds; reading them back is not counted."""
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
    """Runs one measurement in a process of its own, with nothing left to write to disk."""
    os.sync()
    command = [sys.executable, "-m", "benchmarks.build", f"--part={part}", f"--folder={folder}"]
    done = subprocess.run([*command, f"--processes={FLAGS.processes}"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path) -> dict[str, float]:
    """Builds both sizes and returns the line to print."""
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
        **ratio("ratio", rates, bare_rates),
        **ratio("rss_growth", peaks, small_peaks),
        "peak_rss_bytes": max(peaks),
        "bytes": large[0]["bytes"],
        "seconds": median(run["seconds"] for run in large),
    }


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_integer("mb", 1200, "Megabytes of images of the smaller build.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Times that both are measured, in turn.", lower_bound=1)
    flags.DEFINE_integer("processes", 2, "Processes that write.", lower_bound=1)
    flags.DEFINE_enum("source", "shards", ["shards", "folder"], "What the images lie in.")
    flags.DEFINE_string("folder", None, "Empty folder for all of it; default: a temporary one, removed at the end.")
    flags.DEFINE_enum("part", None, ["build", "bare"], "One measurement, on what lies in the folder.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
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
