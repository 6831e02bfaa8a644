"""Measures the input pipeline, next to PyTorch's and to decoding alone.

    python -m benchmarks.input_pipeline [--quick]

Ours goes from array records to uint8 batches ready for the device. The workloads are the demo; clips of 8 frames at
224 px from JPEGs of 348 px, which are decoded at full scale; and the same JPEGs at 112 px, for which half the scale is
enough. They run on one core and on two, with as many workers, next to

- `torch`: worker processes of a DataLoader, Pillow, crop and flip, then the tensors of the authors' transforms
  (normalized float32, channels first); `torch_uint8` omits these. Its images and texts are in memory.
- `decode`: simplejpeg in threads on the same JPEGs, in memory, at full scale, and nothing else.

Each workload and number of cores has a process in which the methods take turns. Then, each in a process of its own:
the seconds to the first batch and to the batch of step 1,000,000, and the memory of an additional worker. The last line
is JSON: a table, and `ratio_to_torch` and `ratio_to_decode` of the clips at 224 px on the most cores.
"""

import contextlib
import importlib
import itertools
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import simplejpeg
from absl import app, flags, logging
from transformers import PreTrainedTokenizerFast

from benchmarks.build import make_images, write_shards
from benchmarks.catalog_writer import write_catalog
from benchmarks.measuring import run_in_process, summarize_ratio
from cope_jax.data.collate import Collator
from cope_jax.data.images import TrainTransform
from cope_jax.data.pipeline import train_batches
from cope_jax.data.records import Item, open_records, sample_texts
from cope_jax.data.tokenizer import train_wordpiece
from data_prep.build import build
from data_prep.catalog.files import Frame
from data_prep.catalog.files import Item as CatalogItem
from data_prep.common.domains import DOMAINS, ROPE_DOMAINS
from data_prep.records.inputs import Inputs, inputs_from_release
from data_prep.synthetic.release import write_release

FLAGS = flags.FLAGS
Product = Mapping[str, Sequence[Item]]  # the items of a product in each domain
SEED, LATE_STEP = 0, 1_000_000
# Grain's shuffle takes 0.7 ms per index with few products and 0.02 ms with thousands; with 512 it no longer matters.
PRODUCTS, QUICK_PRODUCTS = 512, 32
SETTLE_SECONDS = 0.5  # time for threads to finish their batches after their loader is closed
CLIP_FRAMES = {"page": 1, "video": 8, "live": 8}
TITLE = "简约西装外套 2023 秋季新款 女 韩版宽松 休闲百搭 高级感 小众设计 上衣"


@dataclass(frozen=True)
class Workload:
    """The kind of batches to make.

    Attributes:
        records: Folder of the array records.
        batch_size: Products per batch.
        size: Side of the images in pixels.
        frames: Frames per item of each domain.
        text_length: Tokens per text.
    """

    records: str
    batch_size: int
    size: int
    frames: Mapping[str, int]
    text_length: int


WORKLOADS = {
    "demo": Workload("demo", 64, 64, dict.fromkeys(DOMAINS, 1), 96),
    "clips_224": Workload("clips", 16, 224, CLIP_FRAMES, 32),
    "clips_112": Workload("clips", 16, 112, CLIP_FRAMES, 32),
}
HEADLINE = "clips_224"


def write_records(folder: Path, products: int) -> None:
    """Writes array records of a synthetic release and of clips of 8 frames, with this many products each."""
    release = write_release(
        folder / "release", train_products=products, test_products=10, image_side=96, seed=SEED, processes=2
    )
    build(inputs_from_release(release, folder / "demo"), folder / "demo", report=lambda line: None)
    items, names = {}, []
    for domain in DOMAINS:
        frames = [[f"{domain}-{i}-{t}.jpg" for t in range(CLIP_FRAMES[domain])] for i in range(products)]
        names += itertools.chain(*frames)
        items[domain] = [
            CatalogItem(i, TITLE, (i,), tuple(Frame(t, name) for t, name in enumerate(own)))
            for i, own in enumerate(frames)
        ]
    (folder / "shards").mkdir()
    write_shards(folder / "shards", names, make_images())
    write_catalog(folder / "catalog", {"train": items})
    inputs = Inputs(folder / "catalog", (folder / "shards",), ("train",))
    build(inputs, folder / "clips", report=lambda line: None)


@contextlib.contextmanager
def our_batches(
    work: Workload, folder: Path, tokenizer: PreTrainedTokenizerFast, workers: int, *, start_step: int = 0
) -> Iterator[Iterator[Any]]:
    """Opens our batches, with that many threads."""
    batches = train_batches(
        data_dir=folder / work.records,
        split="train",
        batch_size=work.batch_size,
        seed=SEED,
        collators=[
            Collator(domain, T, TrainTransform(work.size), tokenizer, work.text_length, kind=ROPE_DOMAINS[domain])
            for domain, T in work.frames.items()
        ],
        threads=workers,
        start_step=start_step,
    )
    with contextlib.closing(batches):
        yield batches


def read_products(data_dir: Path) -> list[Product]:
    """Reads the items of each product that has items in all domains."""
    records = open_records(data_dir, "train")
    products = (records.products[i].rows for i in range(len(records.products)))
    return [
        {domain: [records.items[domain][int(row)] for row in rows[domain]] for domain in DOMAINS}
        for rows in products
        if all(len(rows[domain]) for domain in DOMAINS)
    ]


def make_tokenizer(work: Workload, folder: Path) -> PreTrainedTokenizerFast:
    """Trains a tokenizer on the records."""
    return train_wordpiece(sample_texts(open_records(folder / work.records, "train"), limit=1000), 2000)


def batch_seconds(open_batches: Callable[[], Any], *, first: int, count: int) -> float:
    """Returns the seconds per batch of `count` batches after the `first`, taken as fast as they are made."""
    with open_batches() as batches:
        for _ in itertools.islice(batches, first):
            pass
        start = time.perf_counter()
        for _ in itertools.islice(batches, count):
            pass
        return (time.perf_counter() - start) / count


def decode_seconds(images: Sequence[bytes], workers: int, *, batches: int) -> float:
    """Returns the seconds per batch to decode the images of `batches` at full scale."""

    def decode(share: Sequence[bytes]) -> None:
        for image in share:
            simplejpeg.decode_jpeg(image, "RGB", strict=False)

    with ThreadPoolExecutor(workers) as pool:
        start = time.perf_counter()
        list(pool.map(decode, [images[i::workers] for i in range(workers)]))
        return (time.perf_counter() - start) / batches


def torch_batches(
    work: Workload, products: Sequence[Product], tokenizer: PreTrainedTokenizerFast, workers: int, *, normalized: bool
) -> AbstractContextManager[Iterator[Any]]:
    """Opens PyTorch's batches, with that many processes."""
    from benchmarks import torch_pipeline  # not at the top: our processes run without torch

    dataset = torch_pipeline.TorchDataset(
        products,
        frames=work.frames,
        size=work.size,
        text_length=work.text_length,
        tokenizer=tokenizer,
        normalized=normalized,
    )
    return torch_pipeline.batches(dataset, work.batch_size, workers)


def measure(name: str, folder: Path, workers: int, rounds: int, batches: int) -> dict[str, Any]:
    """Returns a row of the table, measured on the cores that this process may use."""
    work = WORKLOADS[name]
    tokenizer = make_tokenizer(work, folder)
    products = read_products(folder / work.records)
    pool = itertools.cycle(
        image for product in products for own in product.values() for item in own for image in item.frames
    )
    images = list(itertools.islice(pool, batches * work.batch_size * sum(work.frames.values())))
    draw = partial(batch_seconds, first=2 * workers, count=batches)  # a loader starts this many at once
    methods: dict[str, Callable[[], float]] = {
        "ours": lambda: draw(partial(our_batches, work, folder, tokenizer, workers)),
        "torch": lambda: draw(partial(torch_batches, work, products, tokenizer, workers, normalized=True)),
        "torch_uint8": lambda: draw(partial(torch_batches, work, products, tokenizer, workers, normalized=False)),
        "decode": lambda: decode_seconds(images, workers, batches=batches),
    }
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(rounds):
        for method, run in methods.items():
            seconds[method].append(run())
            time.sleep(SETTLE_SECONDS)
    row: dict[str, Any] = {"workload": name, "cores": workers}
    row |= {f"{method}_batches_per_s": round(1 / median(times), 3) for method, times in seconds.items()}
    for method in ("torch", "torch_uint8", "decode"):
        row |= summarize_ratio(f"ratio_to_{method}", seconds[method], seconds["ours"])
    return row


def measure_start(name: str, folder: Path, workers: int, way: str) -> dict[str, float]:
    """Returns the seconds to the first batch, without imports, and the memory after all workers have made batches."""
    work = WORKLOADS[name]
    tokenizer = make_tokenizer(work, folder)
    if way == "torch":
        importlib.import_module("benchmarks.torch_pipeline")  # imports do not count
        opened = torch_batches(work, read_products(folder / work.records), tokenizer, workers, normalized=True)
    else:
        step = LATE_STEP if way == "late" else 0
        opened = our_batches(work, folder, tokenizer, workers, start_step=step)
    start = time.perf_counter()
    with opened as batches:
        next(batches)
        seconds = time.perf_counter() - start
        sizes = []
        for _ in range(3 * workers):
            next(batches)
            sizes.append(process_memory())
    return {"seconds": seconds, "bytes": max(sizes)}


def process_memory() -> int:
    """Returns the bytes that this process and its children hold; shared memory counts once."""
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    total = 0
    for pid in ["self", *itertools.chain(*children)]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found = re.search(r"Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
            total += 1024 * int(found[1]) if found else 0
    return total


def run_part(part: str, folder: Path, *, name: str, workers: int, way: str = "") -> dict[str, Any]:
    """Runs a part in a process of its own, on as many cores as it has workers."""
    options = [f"--part={part}", f"--folder={folder}", f"--workload={name}", f"--workers={workers}", f"--way={way}"]
    options += [f"--rounds={FLAGS.rounds}", f"--batches={FLAGS.batches}"]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:workers])  # inherited by the process
    try:
        return run_in_process("input_pipeline", *options)
    finally:
        os.sched_setaffinity(0, cores)


def compare(folder: Path) -> dict[str, Any]:
    """Runs all parts and returns the result."""
    most = min(2, len(os.sched_getaffinity(0)))
    table = []
    names, cores = ([HEADLINE], [most]) if FLAGS.quick else (WORKLOADS, range(1, most + 1))
    for name, workers in itertools.product(names, cores):
        table.append(run_part("rates", folder, name=name, workers=workers))
        print(table[-1], flush=True)
    starts = {
        (way, workers): run_part("start", folder, name=HEADLINE, workers=workers, way=way)
        for way, workers in itertools.product(("ours", "torch"), (1, most))
    }
    late = run_part("start", folder, name=HEADLINE, workers=most, way="late")
    headline = next(row for row in table if (row["workload"], row["cores"]) == (HEADLINE, most))
    result = {key: headline[key] for key in headline if key.startswith("ratio")}
    for way in ("ours", "torch"):
        result[f"{way}_first_batch_seconds"] = round(starts[way, most]["seconds"], 2)
        result[f"{way}_bytes"] = starts[way, 1]["bytes"]
        result[f"{way}_bytes_a_further_worker"] = starts[way, most]["bytes"] - starts[way, 1]["bytes"]
    return result | {"resume_seconds": round(late["seconds"], 2), "table": table}


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_bool("quick", False, "Use few products, rounds and batches, of one workload.")
    flags.DEFINE_integer("rounds", None, "Number of measurements; default: 5, quick: 3.", lower_bound=1)
    flags.DEFINE_integer("batches", None, "Batches per measurement; default: 12, quick: 3.", lower_bound=1)
    flags.DEFINE_string("folder", None, "Folder for a temporary folder with all data, or, with --part, with the data.")
    flags.DEFINE_enum("part", None, ["rates", "start"], "Measure only this part, in this process.")
    flags.DEFINE_enum("workload", HEADLINE, list(WORKLOADS), "Workload of the part.")
    flags.DEFINE_integer("workers", 1, "Workers of the part, and cores.", lower_bound=1)
    flags.DEFINE_enum("way", "", ["", "ours", "late", "torch"], "What to start.")


def main(_: list[str]) -> None:
    """Measures and prints the result."""
    logging.set_verbosity(logging.WARNING)  # TFDS logs each data set that it opens
    FLAGS.rounds = FLAGS.rounds or (3 if FLAGS.quick else 5)
    FLAGS.batches = FLAGS.batches or (3 if FLAGS.quick else 12)
    if FLAGS.part == "rates":
        print(json.dumps(measure(FLAGS.workload, Path(FLAGS.folder), FLAGS.workers, FLAGS.rounds, FLAGS.batches)))
    elif FLAGS.part == "start":
        print(json.dumps(measure_start(FLAGS.workload, Path(FLAGS.folder), FLAGS.workers, FLAGS.way)))
    else:
        with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
            write_records(Path(folder), QUICK_PRODUCTS if FLAGS.quick else PRODUCTS)
            print(json.dumps(compare(Path(folder))))


if __name__ == "__main__":
    define_flags()
    app.run(main)
