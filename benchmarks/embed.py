"""Measures embedding a test split from array records, next to its parts: `python -m benchmarks.embed [--quick]`.

Items per second of all three domains with the untrained model of the demo: `input`, reading and decoding only;
`compute`, embedding batches in memory only; and `both`, as in evaluation. They take turns. On a CPU one core computes
and another one reads, like a device and its host; with a GPU all cores read. The last line is JSON: `ratio`, the rate
of `both` relative to the slower part, and the three rates.
"""

import json
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import jax
from absl import app, flags, logging

from benchmarks.measuring import summarize_ratio, time_call
from configs import demo
from cope_jax.data.records import open_records, sample_texts
from cope_jax.data.tokenizer import train_wordpiece
from cope_jax.evaluation.embed_items import LoadedRun, embed_function
from cope_jax.parallel.mesh import make_mesh, replicated
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_validation import resolve_config
from cope_jax.runs.inputs import evaluation_batches
from cope_jax.runs.model import split_model
from data_prep.build import build
from data_prep.common.domains import DOMAINS
from data_prep.records.inputs import inputs_from_release
from data_prep.synthetic.release import write_release

FLAGS = flags.FLAGS


def make_data(folder: Path, products: int) -> Path:
    """Writes array records of a synthetic release."""
    release = write_release(
        folder / "release", train_products=products, test_products=products, image_side=96, seed=0, processes=2
    )
    build(inputs_from_release(release, folder / "data"), folder / "data", report=lambda line: None)
    return folder / "data"


def make_run(config: RunConfig) -> LoadedRun:
    """Returns a run with the untrained model."""
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    texts = sample_texts(open_records(config.data.data_dir, config.data.train_split), limit=1000)
    tokenizer = train_wordpiece(texts, config.data.vocab_size)
    graphdef, initialize = split_model(config, vocab_size=len(tokenizer))
    model = jax.jit(initialize, out_shardings=replicated(mesh))()
    return LoadedRun(config, tokenizer, mesh, embed_function(graphdef, model, mesh), model)


def batches_of(run: LoadedRun, domain: str) -> Any:
    """Returns the batches of a domain of the test split."""
    return evaluation_batches(run.config, run.tokenizer, domain=domain, batch_size=run.config.eval.batch_size)


def measure(run: LoadedRun, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds for all items in each round: reading, computing, and both."""
    held = {domain: list(batches_of(run, domain)) for domain in DOMAINS}

    def read() -> None:
        for domain in DOMAINS:
            for _ in batches_of(run, domain):
                pass

    def compute() -> None:
        for domain in DOMAINS:
            run.embed_batches(held[domain], domain)

    def both() -> None:
        for domain in DOMAINS:
            run.embed_batches(batches_of(run, domain), domain)

    seconds: dict[str, list[float]] = {"input": [], "compute": [], "both": []}
    for _ in range(rounds):
        for name, part in zip(seconds, (read, compute, both), strict=True):
            seconds[name].append(time_call(part))
    return seconds


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_bool("quick", False, "Use few items and rounds.")
    flags.DEFINE_integer("rounds", None, "Number of measurements; default: 5, quick: 3.", lower_bound=1)


def main(_: list[str]) -> None:
    """Measures and prints the result."""
    logging.set_verbosity(logging.WARNING)  # TFDS logs each data set that it opens
    rounds = FLAGS.rounds or (3 if FLAGS.quick else 5)
    cores = sorted(os.sched_getaffinity(0))
    split_cores = not os.path.exists("/dev/nvidiactl") and len(cores) > 1
    with tempfile.TemporaryDirectory() as folder:
        data_dir = make_data(Path(folder), 100 if FLAGS.quick else 1000)
        changes = {"data.data_dir": str(data_dir), "data.threads": 1 if split_cores else len(cores)}
        config = resolve_config(demo.get_config(), changes)
        if split_cores:
            os.sched_setaffinity(0, cores[:1])  # the threads that JAX starts now stay on it
        run = make_run(config)
        for domain in DOMAINS:
            first = next(batches_of(run, domain))
            run.embed_batches([first], domain)  # compiles
        if split_cores:
            os.sched_setaffinity(0, cores[1:2])  # this thread and those that it starts from now on
        items = open_records(config.data.data_dir, config.data.eval_split).items
        count = sum(len(items[domain]) for domain in DOMAINS)
        seconds = measure(run, rounds)
    slower = [max(parts) for parts in zip(seconds["input"], seconds["compute"], strict=True)]
    result = summarize_ratio("ratio", slower, seconds["both"])
    result |= {f"{name}_items_per_s": round(count / median(times), 1) for name, times in seconds.items()}
    print(json.dumps(result | {"items": count, "device": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    define_flags()
    app.run(main)
