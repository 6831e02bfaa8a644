"""How fast images arrive from a server without faults, beside img2dataset: `python -m benchmarks.download`.

Ours is `data_prep.download`, whole: catalog, journal, check by decoding, tar, ledger. img2dataset, where
`--img2dataset` names its program or it is found on the PATH, fetches the same URLs with as many threads as we have
requests at a time, without resizing; `skip_reencode` lets it decode and keep the bytes, as we do. Both in turn, each a
process of its own, as the server is. A rate is images by the time from the first request to the last, so that the time
that a program takes to start does not count. The last line is JSON: medians of `images_per_s` and
`img2dataset_images_per_s`, their `ratio`, and `seconds` of the whole processes.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags

from benchmarks.ratios import ratio
from data_prep.catalog.files import Frame, Item, write_catalog
from data_prep.download.shard import make_url

FLAGS = flags.FLAGS
SHARD = 1000


def write_inputs(folder: Path, images: int, url: str) -> None:
    """Writes the same URLs as a catalog and as a list of img2dataset."""
    items = [Item(i, "", (i,), tuple(Frame(t, f"{i}-{t}.jpg") for t in range(8))) for i in range(images // 8)]
    write_catalog(folder / "catalog", {"train": {"page": [], "video": items, "live": []}})
    urls = [make_url(url, frame.name) for item in items for frame in item.frames]
    pq.write_table(pa.table({"url": urls}), folder / "urls.parquet")


def ours(folder: Path, url: str) -> list[str]:
    """Command that fetches the catalog."""
    return [
        *(sys.executable, "-m", "data_prep.download", f"--catalog={folder / 'catalog'}", f"--out={folder / 'out'}"),
        *(f"--url_prefix={url}", "--rate=1000000", f"--concurrency={FLAGS.concurrency}", f"--shard_frames={SHARD}"),
    ]


def theirs(folder: Path, program: str) -> list[str]:
    """Command that fetches the list."""
    return [
        *(program, f"--url_list={folder / 'urls.parquet'}", "--input_format=parquet", "--url_col=url"),
        *("--output_format=webdataset", f"--output_folder={folder / 'out'}", f"--number_sample_per_shard={SHARD}"),
        *("--processes_count=1", f"--thread_count={FLAGS.concurrency}", "--resize_mode=no", "--skip_reencode=True"),
        *("--enable_wandb=False", "--compute_hash=sha256"),
    ]


def measure(command: list[str], folder: Path, url: str, images: int) -> dict[str, float]:
    """Runs a command; returns its rate and its seconds."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    ledgers = [pq.read_table(path).to_pylist() for path in (folder / "out").rglob("*.parquet")]
    arrived = sum(row["status"] == "success" for ledger in ledgers for row in ledger)
    assert arrived == images, f"{arrived} of {images} images arrived by {command}"
    shutil.rmtree(folder / "out")
    with urllib.request.urlopen(f"{url}times") as answer:
        first, last = json.load(answer)
    return {"images_per_s": images / (last - first), "seconds": seconds}


def compare(folder: Path, url: str, program: str | None) -> dict[str, float]:
    """Measures both in turn and returns what is printed."""
    images = FLAGS.images // 8 * 8
    write_inputs(folder, images, url)
    commands = {"": ours(folder, url)} | ({"img2dataset_": theirs(folder, program)} if program else {})
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
        result |= ratio("ratio", *([each[name]["images_per_s"] for each in rounds] for name in commands))
    return result


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("img2dataset", None, "Program to compare with; default: the one on the PATH, if any.")
    flags.DEFINE_integer("images", 4000, "Images to fetch; a multiple of 8.", lower_bound=8)
    flags.DEFINE_integer("side", 96, "Pixels of the images' shorter side.", lower_bound=8)
    flags.DEFINE_integer("concurrency", 32, "Requests at a time, on both sides.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Times that both are measured, in turn.", lower_bound=1)


def main(_: list[str]) -> None:
    """Measures and prints."""
    program = FLAGS.img2dataset or shutil.which("img2dataset")
    command = [sys.executable, "-m", "tests.data_prep.download.misbehaving_server", f"--photos={FLAGS.side}"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            result = compare(Path(folder), server.stdout.readline().strip(), program)
        finally:
            server.terminate()
    print(json.dumps(result))


if __name__ == "__main__":
    define_flags()
    app.run(main)
