"""How fast batches come from array records, beside PyTorch's way and beside decoding alone.

    python -m benchmarks.input_pipeline [--quick]

From array records to uint8 batches ready for the device: those of the demo; clips of 8 frames at 224 px from JPEGs of
348 px, which are decoded whole; and the same JPEGs at 112 px, where a reduced scale does. On one core and on two, with
as many workers, beside

- `torch`: a DataLoader's worker processes, Pillow, crop and flip, then the tensors that the authors' transforms make,
  normalised float32, channels first; `torch_uint8` leaves those out. Its images and texts lie in memory.
- `decode`: simplejpeg in threads on the same JPEGs, in memory, whole, and nothing else.

A process for each workload and number of cores, in which the ways take turns. Then, each in a process of its own:
seconds to the first batch, seconds to the batch of step 1,000,000, and what a further worker adds to the memory. The
last line is JSON: a table, and `ratio_to_torch` and `ratio_to_decode` of the clips at 224 px on the most cores, each
the median of the rounds' ratios.
"""

import contextlib
import importlib
import io
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import simplejpeg
from absl import app, flags, logging
from PIL import Image
from transformers import PreTrainedTokenizerFast

from benchmarks.build import make_images, write_shards
from benchmarks.ratios import ratio
from cope_jax.data.frames import choose
from cope_jax.data.images import TrainView, random_box
from cope_jax.data.pipeline import train_batches
from cope_jax.data.records import Item, open_records, sample_texts
from cope_jax.data.tokenizer import encode, train_wordpiece
from cope_jax.domains import DOMAINS
from data_prep.build import build
from data_prep.catalog.files import Frame, write_catalog
from data_prep.catalog.files import Item as CatalogItem
from data_prep.records.inputs import Inputs, inputs_from_release
from data_prep.synthetic.release import write_release

FLAGS = flags.FLAGS
Product = Mapping[str, Sequence[Item]]  # its items of each domain
SEED, LATE_STEP = 0, 1_000_000
# Of the records. Grain shuffles few products at 0.7 ms an index, thousands at 0.02: enough for that not to count.
PRODUCTS, QUICK_PRODUCTS = 512, 32
SETTLE = 0.5  # seconds that threads may go on with the batches they were making when their loader was closed
CLIP_FRAMES = {"page": 1, "video": 8, "live": 8}
TITLE = "简约西装外套 2023 秋季新款 女 韩版宽松 休闲百搭 高级感 小众设计 上衣"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the authors normalise by


@dataclass(frozen=True)
class Workload:
    """Batches of a kind: folder of their records, products a batch, pixels, frames of each domain, tokens."""

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
    """Array records of a synthetic release, and of clips of 8 frames, so many products each."""
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
    """The project's own, with that many threads."""
    batches = train_batches(
        data_dir=folder / work.records,
        split="train",
        batch_size=work.batch_size,
        seed=SEED,
        frames=work.frames,
        view=TrainView(work.size),
        text_length=work.text_length,
        tokenizer=tokenizer,
        threads=workers,
        start_step=start_step,
    )
    with contextlib.closing(batches):
        yield batches


@contextlib.contextmanager
def torch_batches(
    work: Workload, products: Sequence[Product], tokenizer: PreTrainedTokenizerFast, workers: int, *, normalised: bool
) -> Iterator[Iterator[Any]]:
    """PyTorch's, with that many processes."""
    from torch.utils.data import DataLoader, RandomSampler

    dataset = TorchDataset(products, work, tokenizer, normalised)
    endless = RandomSampler(dataset, replacement=True, num_samples=1 << 30)
    with mock.patch.dict(os.environ, TOKENIZERS_PARALLELISM="false"):  # its threads would not survive the fork
        batches = iter(DataLoader(dataset, work.batch_size, sampler=endless, num_workers=workers))
        try:
            yield batches
        finally:
            batches._shutdown_workers()


@dataclass(frozen=True)
class TorchDataset:
    """A product as PyTorch's DataLoader takes it: a random item of each domain, frames and text."""

    products: Sequence[Product]
    work: Workload
    tokenizer: PreTrainedTokenizerFast
    normalised: bool

    def __len__(self) -> int:
        return len(self.products)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {domain: self.example(random.choice(items), domain) for domain, items in self.products[index].items()}

    def example(self, item: Item, domain: str) -> dict[str, Any]:
        """Frames and tokens of an item."""
        positions = choose(len(item.frames), self.work.frames[domain], short_clips="repeat", rng=None)
        frames = authors_view([item.frames[position] for position in positions], self.work.size)
        return {
            "frames": as_tensors(frames) if self.normalised else np.stack(frames),
            "text": encode(self.tokenizer, [item.text], self.work.text_length)[0],
        }


def authors_view(encoded: Sequence[bytes], size: int) -> list[np.ndarray]:
    """Decoded, cropped, resized and, half of the time, mirrored, all by Pillow."""
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded]
    width, height = images[0].size
    rng = np.random.default_rng(random.getrandbits(32))
    top, left, h, w = random_box(height, width, scale=(0.64, 1.0), ratio=(3 / 4, 4 / 3), rng=rng)
    corners = [round(x) for x in (left * width, top * height, (left + w) * width, (top + h) * height)]
    images = [image.crop(corners).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    if random.random() < 0.5:
        images = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    return [np.array(image) for image in images]


def as_tensors(frames: Sequence[np.ndarray]) -> Any:
    """u8[H, W, 3] each → one normalised float32 tensor [T, 3, H, W], as torchvision's ToTensor and Normalize."""
    import torch

    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    tensors = [torch.from_numpy(frame).permute(2, 0, 1).contiguous().float().div(255) for frame in frames]
    return torch.stack([tensor.sub_(mean).div_(deviation) for tensor in tensors])


def held_products(data_dir: Path) -> list[Product]:
    """The items of each product that has some in all domains, in memory."""
    records = open_records(data_dir, "train")
    products = (records.products[i].rows for i in range(len(records.products)))
    return [
        {domain: [records.items[domain][int(row)] for row in rows[domain]] for domain in DOMAINS}
        for rows in products
        if all(len(rows[domain]) for domain in DOMAINS)
    ]


def make_tokenizer(work: Workload, folder: Path) -> PreTrainedTokenizerFast:
    """A vocabulary of the records."""
    return train_wordpiece(sample_texts(open_records(folder / work.records, "train"), limit=1000), 2000)


def batch_seconds(open_batches: Callable[[], Any], *, first: int, count: int) -> float:
    """Seconds a batch, where `count` are drawn as soon as they are made, behind the `first`."""
    with open_batches() as batches:
        for _ in itertools.islice(batches, first):
            pass
        start = time.perf_counter()
        for _ in itertools.islice(batches, count):
            pass
        return (time.perf_counter() - start) / count


def decode_seconds(images: Sequence[bytes], workers: int, *, batches: int) -> float:
    """Seconds a batch's images take to be decoded whole, of the images of `batches`."""

    def decode(share: Sequence[bytes]) -> None:
        for image in share:
            simplejpeg.decode_jpeg(image, "RGB", strict=False)

    with ThreadPoolExecutor(workers) as pool:
        start = time.perf_counter()
        list(pool.map(decode, [images[i::workers] for i in range(workers)]))
        return (time.perf_counter() - start) / batches


def measure(name: str, folder: Path, workers: int, rounds: int, batches: int) -> dict[str, Any]:
    """A row of the table, on the cores that this process may use."""
    work = WORKLOADS[name]
    tokenizer = make_tokenizer(work, folder)
    products = held_products(folder / work.records)
    pool = itertools.cycle(
        image for product in products for own in product.values() for item in own for image in item.frames
    )
    images = list(itertools.islice(pool, batches * work.batch_size * sum(work.frames.values())))
    draw = partial(batch_seconds, first=2 * workers, count=batches)  # a loader makes those at once at the start
    ways: dict[str, Callable[[], float]] = {
        "ours": lambda: draw(partial(our_batches, work, folder, tokenizer, workers)),
        "torch": lambda: draw(partial(torch_batches, work, products, tokenizer, workers, normalised=True)),
        "torch_uint8": lambda: draw(partial(torch_batches, work, products, tokenizer, workers, normalised=False)),
        "decode": lambda: decode_seconds(images, workers, batches=batches),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            seconds[way].append(run())
            time.sleep(SETTLE)
    row: dict[str, Any] = {"workload": name, "cores": workers}
    row |= {f"{way}_batches_per_s": round(1 / median(times), 3) for way, times in seconds.items()}
    for way in ("torch", "torch_uint8", "decode"):
        row |= ratio(f"ratio_to_{way}", seconds[way], seconds["ours"])
    return row


def start(name: str, folder: Path, workers: int, way: str) -> dict[str, float]:
    """Seconds to the first batch, imports left out, and the memory when more were drawn than are made at once."""
    work = WORKLOADS[name]
    tokenizer = make_tokenizer(work, folder)
    if way == "torch":
        importlib.import_module("torch.utils.data")  # ours is imported by now
        opened = torch_batches(work, held_products(folder / work.records), tokenizer, workers, normalised=True)
    else:
        step = LATE_STEP if way == "late" else 0
        opened = our_batches(work, folder, tokenizer, workers, start_step=step)
    began = time.perf_counter()
    with opened as batches:
        next(batches)
        seconds = time.perf_counter() - began
        held = []
        for _ in range(3 * workers):
            next(batches)
            held.append(memory())
    return {"seconds": seconds, "bytes": max(held)}


def memory() -> int:
    """Bytes that this process and its children hold, what they share counted once."""
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    total = 0
    for pid in ["self", *itertools.chain(*children)]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += 1024 * int(re.search(r"Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())[1])
    return total


def alone(part: str, folder: Path, *, name: str, workers: int, way: str = "") -> dict[str, Any]:
    """A part in a process of its own, on as many cores as it has workers."""
    command = [sys.executable, "-m", "benchmarks.input_pipeline", f"--part={part}", f"--folder={folder}"]
    command += [f"--workload={name}", f"--workers={workers}", f"--rounds={FLAGS.rounds}", f"--batches={FLAGS.batches}"]
    cores = sorted(os.sched_getaffinity(0))[:workers]
    pin = partial(os.sched_setaffinity, 0, cores)
    done = subprocess.run([*command, f"--way={way}"], preexec_fn=pin, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path) -> dict[str, Any]:
    """Measures all parts and returns what is printed."""
    most = min(2, len(os.sched_getaffinity(0)))
    table = []
    names, cores = ([HEADLINE], [most]) if FLAGS.quick else (WORKLOADS, range(1, most + 1))
    for name, workers in itertools.product(names, cores):
        table.append(alone("rates", folder, name=name, workers=workers))
        print(table[-1], flush=True)
    starts = {
        (way, workers): alone("start", folder, name=HEADLINE, workers=workers, way=way)
        for way, workers in itertools.product(("ours", "torch"), (1, most))
    }
    late = alone("start", folder, name=HEADLINE, workers=most, way="late")
    headline = next(row for row in table if (row["workload"], row["cores"]) == (HEADLINE, most))
    result = {key: headline[key] for key in headline if key.startswith("ratio")}
    for way in ("ours", "torch"):
        result[f"{way}_first_batch_seconds"] = round(starts[way, most]["seconds"], 2)
        result[f"{way}_bytes"] = starts[way, 1]["bytes"]
        result[f"{way}_bytes_a_further_worker"] = starts[way, most]["bytes"] - starts[way, 1]["bytes"]
    return result | {"resume_seconds": round(late["seconds"], 2), "table": table}


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_bool("quick", False, "Few products, rounds and batches, of one workload.")
    flags.DEFINE_integer("rounds", None, "Times that each way is timed; default: 5, quick: 3.", lower_bound=1)
    flags.DEFINE_integer("batches", None, "Batches that are timed at a time; default: 12, quick: 3.", lower_bound=1)
    flags.DEFINE_string("folder", None, "Records for one part, as a run of all makes them.")
    flags.DEFINE_enum("part", None, ["rates", "start"], "What to measure in this process.")
    flags.DEFINE_enum("workload", HEADLINE, list(WORKLOADS), "Of the part.")
    flags.DEFINE_integer("workers", 1, "Of the part.", lower_bound=1)
    flags.DEFINE_enum("way", "", ["", "ours", "late", "torch"], "Of the part that starts.")


def main(_: list[str]) -> None:
    """Measures and prints."""
    logging.set_verbosity(logging.WARNING)  # TFDS tells of each data set that it opens
    FLAGS.rounds = FLAGS.rounds or (3 if FLAGS.quick else 5)
    FLAGS.batches = FLAGS.batches or (3 if FLAGS.quick else 12)
    if FLAGS.part == "rates":
        print(json.dumps(measure(FLAGS.workload, Path(FLAGS.folder), FLAGS.workers, FLAGS.rounds, FLAGS.batches)))
    elif FLAGS.part == "start":
        print(json.dumps(start(FLAGS.workload, Path(FLAGS.folder), FLAGS.workers, FLAGS.way)))
    else:
        with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
            write_records(Path(folder), QUICK_PRODUCTS if FLAGS.quick else PRODUCTS)
            print(json.dumps(compare(Path(folder))))


if __name__ == "__main__":
    define_flags()
    app.run(main)
