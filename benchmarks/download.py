"""Measures the speed of downloads from a reliable server, next to img2dataset: `python -m benchmarks.download`.

Ours is all of `data_prep.download`: catalog, journal, check by decoding, tar, ledger. img2dataset runs if
`--img2dataset` names its program or it is on the PATH. It fetches the same URLs with as many threads as we have
concurrent requests, without resizing; with `skip_reencode` it decodes the images and keeps the bytes, as we do. They
take turns, each in a process of its own; the server is another. Rates count from the first request to the last, without
the start of the program. The last line is JSON: medians of `images_per_s` and `img2dataset_images_per_s`, their
`ratio`, and `seconds` of the whole processes.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags

from benchmarks.catalog_writer import write_catalog
from benchmarks.measuring import summarize_ratio, time_call
from data_prep.catalog.files import Frame, Item
from data_prep.download.shard import make_url

FLAGS = flags.FLAGS
SHARD_FRAMES = 1000


def write_inputs(folder: Path, images: int, url: str) -> None:
    """Writes the same URLs as a catalog and as a list for img2dataset."""
    items = [Item(i, "", (i,), tuple(Frame(t, f"{i}-{t}.jpg") for t in range(8))) for i in range(images // 8)]
    write_catalog(folder / "catalog", {"train": {"page": [], "video": items, "live": []}})
    urls = [make_url(url, frame.name) for item in items for frame in item.frames]
    pq.write_table(pa.table({"url": urls}), folder / "urls.parquet")


def our_command(folder: Path, url: str) -> list[str]:
    """Returns the command that fetches the catalog."""
    options = {
        "catalog": folder / "catalog",
        "out": folder / "out",
        "url_prefix": url,
        "rate": 1_000_000,
        "concurrency": FLAGS.concurrency,
        "shard_frames": SHARD_FRAMES,
    }
    return [sys.executable, "-m", "data_prep.download", *(f"--{name}={value}" for name, value in options.items())]


def img2dataset_command(folder: Path, program: str) -> list[str]:
    """Returns the command that fetches the list."""
    options = {
        "url_list": folder / "urls.parquet",
        "input_format": "parquet",
        "url_col": "url",
        "output_format": "webdataset",
        "output_folder": folder / "out",
        "number_sample_per_shard": SHARD_FRAMES,
        "processes_count": 1,
        "thread_count": FLAGS.concurrency,
        "resize_mode": "no",
        "skip_reencode": True,
        "enable_wandb": False,
        "compute_hash": "sha256",
    }
    return [program, *(f"--{name}={value}" for name, value in options.items())]


def measure(command: list[str], folder: Path, url: str, images: int) -> dict[str, float]:
    """Runs a command and returns its rate and its seconds."""
    silent = subprocess.DEVNULL
    seconds = time_call(lambda: subprocess.run(command, check=True, stdout=silent, stderr=silent))
    ledgers = [pq.read_table(path).to_pylist() for path in (folder / "out").rglob("*.parquet")]
    arrived = sum(row["status"] == "success" for ledger in ledgers for row in ledger)
    assert arrived == images, f"{arrived} of {images} images arrived by {command}"
    shutil.rmtree(folder / "out")
    with urllib.request.urlopen(f"{url}times") as response:
        first, last = json.load(response)
    return {"images_per_s": images / (last - first), "seconds": seconds}


def compare(folder: Path, url: str, program: str | None) -> dict[str, float]:
    """Measures both in turn and returns the result."""
    images = FLAGS.images // 8 * 8
    write_inputs(folder, images, url)
    commands = {"": our_command(folder, url)}
    if program:
        commands["img2dataset_"] = img2dataset_command(folder, program)
    rounds = []
    for _ in range(FLAGS.rounds):
        rounds.append({name: measure(command, folder, url, images) for name, command in commands.items()})
        print(rounds[-1], flush=True)
    result = {
        f"{name}{key}": round(statistics.median(each[name][key] for each in rounds), 2)
        for name in commands
        for key in ("images_per_s", "seconds")
    }
    if program:
        result |= summarize_ratio("ratio", *([each[name]["images_per_s"] for each in rounds] for name in commands))
    return result


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("img2dataset", None, "Program to compare with; default: the one on the PATH, if any.")
    flags.DEFINE_integer("images", 4000, "Images to fetch; a multiple of 8.", lower_bound=8)
    flags.DEFINE_integer("side", 96, "Shorter side of the images, in pixels.", lower_bound=8)
    flags.DEFINE_integer("concurrency", 32, "Concurrent requests of both programs.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Number of measurements.", lower_bound=1)


def main(_: list[str]) -> None:
    """Measures and prints the result."""
    program = FLAGS.img2dataset or shutil.which("img2dataset")
    command = [sys.executable, "-m", "tests.data_prep.download.misbehaving_server", f"--photos={FLAGS.side}"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            result = compare(Path(folder), server.stdout.readline().strip(), program)
        finally:
            server.terminate()
    print(json.dumps(result))


if __name__ == "__main__":
    define_flags()
    app.run(main)
