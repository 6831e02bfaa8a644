"""Trains with one part of a config changed at a time: `python -m benchmarks.ablation --data_dir=… --out=DIR`.

Each training is a run of `python -m cope_jax.train` in a folder of `--out` with the name of the variant and the seed,
such as `nested-0`; finished runs are reused. `unchanged` is the config as it is. Variants of loss terms suit every
config; those that name views or `within` need its domains. The last line is JSON: for each variant, lists with a value
per seed. `centered_*` are from embeddings whose domain has its mean subtracted, which needs no training, and
`int8_32_r1` is the R@1 of items stored by `cope embed --dims=32 --dtype=int8`.
"""

import datetime
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.tables import describe_run, record
from cope_jax.evaluation.embed_items import load_run
from cope_jax.evaluation.evaluate_run import embed_split, embeddings_of
from cope_jax.evaluation.metrics import retrieval
from cope_jax.evaluation.metrics.embedding_space import masked_retrieval
from cope_jax.evaluation.metrics.retrieval import Embeddings
from cope_jax.evaluation.results import LATEST, find_step
from cope_jax.runs.config_file import load_config
from cope_jax.search.embedding_store import TYPES, decode, encode, shorten

DOMAIN_PAIRS = '(("page","video",1.0),("page","live",1.0),("video","live",1.0))'
PARTS: dict[str, dict[str, Any]] = {
    "unchanged": {},
    "modality_dropout": {"data.modality_dropout": '(("page",0.1,0.2),("video",0.1,0.2),("live",0.1,0.2))'},
    "nested": {"losses.nested": "(16,32)"},
    "without_views": {"losses.sigmoid.pairs": DOMAIN_PAIRS, "losses.infonce.weight": 0.0},
    "without_frame_loss": {"losses.infonce.weight": 0.0},
    "without_within": {"losses.sigmoid.within": "()"},
    "linear_fusion": {"model.fusion.kind": "linear"},
}
# The classifier scales its logits by 64, and with them its gradients: hence its weight.
WEIGHTS = {
    "sigmoid": (1.0, 0.0, 0.0),
    "infonce": (0.0, 1.0, 0.0),
    "sigmoid_classifier": (1.0, 0.0, 0.1),
    "infonce_classifier": (0.0, 1.0, 0.1),
}
TERMS = ("sigmoid", "infonce", "classifier")
LOSSES = {
    name: {f"losses.{term}.weight": weight for term, weight in zip(TERMS, weights, strict=True)}
    for name, weights in WEIGHTS.items()
}
VARIANTS = PARTS | LOSSES

RANGES = ("mean_r1", "frames_r1", "text_r1")  # values of the table that come with their range over seeds
MAPS = ("page_map", "video_map", "live_map")
STORED_WIDTHS = (8, 16, 32, 64, 128)

FLAGS = flags.FLAGS


def train_and_evaluate(variant: str, seed: int) -> Path:
    """Trains with one variant and evaluates, unless that is done; returns the work directory."""
    workdir = Path(FLAGS.out) / f"{variant}-{seed}"
    fields = {"seed": seed, "data.data_dir": FLAGS.data_dir} | VARIANTS[variant]
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    for words in (
        ["cope_jax.train", f"--config={FLAGS.config}", f"--workdir={workdir}", *options],
        ["cope_jax.evaluate", f"--workdir={workdir}", "--nobaseline", "--reuse"],
    ):
        subprocess.run([sys.executable, "-m", *words], check=True, stdout=sys.stderr)
    return workdir


def read_values(workdir: Path) -> dict[str, float]:
    """Returns the values of an evaluated run."""
    newest = max((workdir / "eval").iterdir(), key=lambda folder: int(folder.name))
    metrics = json.loads((newest / "metrics.json").read_text(encoding="utf-8"))
    values = {"mean_r1": metrics["retrieval_mean"]["mean_r1"]}
    values |= {f"{direction}_r1": own["r1"] for direction, own in metrics["retrieval"].items()}
    values |= {f"{kind}_r1": own["mean_r1"] for kind, own in metrics["modalities"].items() if "mean_r1" in own}
    values |= {f"first_{size}_r1": own["mean_r1"] for size, own in metrics["prefixes"].items()}
    values |= {f"{domain}_map": own["map"] for domain, own in metrics["all_domains"].items() if own}
    return values | {"participation_ratio": metrics["spectrum"]["participation_ratio"]}


def embed(workdir: Path) -> Embeddings:
    """Returns the test items of a run."""
    config = load_config(workdir)
    step = find_step(workdir, LATEST, config, None)
    return embeddings_of(embed_split(load_run(config, workdir, step), step=step))


def centered_values(embedded: Embeddings) -> dict[str, float]:
    """Returns the values of embeddings with the mean of their domain subtracted."""
    centered = {}
    for domain, (vectors, products) in embedded.items():
        shifted = vectors - vectors.mean(axis=0)
        centered[domain] = (shifted / np.linalg.norm(shifted, axis=1, keepdims=True), products)
    means = retrieval.direction_means(retrieval.direction_metrics(retrieval.direction_ranks(centered)))
    values = {"centered_mean_r1": means["mean_r1"]}
    found = retrieval.all_domains(centered)
    return values | {f"centered_{domain}_map": own["map"] for domain, own in found.items() if own}


def stored_values(embedded: Embeddings) -> dict[str, float]:
    """Returns the R@1 in galleries stored by `embed --dims --dtype`; queries are shortened, and otherwise exact."""
    values = {}
    for width, dtype in itertools.product(STORED_WIDTHS, TYPES):
        queries = {domain: shorten(vectors, width) for domain, (vectors, _) in embedded.items()}
        stored = {domain: (decode(encode(queries[domain], dtype)), own) for domain, (_, own) in embedded.items()}
        values[f"{dtype}_{width}_r1"] = masked_retrieval(queries, stored)["mean_r1"]
    return values


def record_row(variant: str, results: Mapping[str, Sequence[float]], workdir: Path) -> None:
    """Writes the row of a variant, means and ranges over seeds, to the table of docs/losses.md."""
    values = {name: float(np.mean(results[name])) for name in (*RANGES, *MAPS)}
    for name in RANGES:
        values |= {f"{name}_low": min(results[name]), f"{name}_high": max(results[name])}
    cells = [f"`{variant}`", *(f"{{{name}:.3f}} ({{{name}_low:.3f}}–{{{name}_high:.3f}})" for name in RANGES)]
    cells.append("{page_map:.2f}, {video_map:.2f}, {live_map:.2f}")
    run = describe_run(workdir, FLAGS.config)[1]
    run |= {
        "config": run["config"] + "".join(f" --config.{field}={value}" for field, value in VARIANTS[variant].items())
    }
    run |= {"seeds": [int(seed) for seed in FLAGS.seeds], "date": datetime.date.today().isoformat()}
    record("loss-ablation", cells, {name: round(value, 4) for name, value in values.items()}, run)


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("config", "configs/demo.py", "Experiment: a file in configs/.")
    flags.DEFINE_string("data_dir", None, "Array records to train and evaluate on.", required=True)
    flags.DEFINE_string("out", None, "Folder of the work directories; created if missing.", required=True)
    flags.DEFINE_multi_enum("variant", list(PARTS), list(VARIANTS), "What to train; may be repeated.")
    flags.DEFINE_bool("record", False, "Write the rows to benchmarks/results/tables/loss-ablation.json.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of each variant.")


def main(_: Sequence[str]) -> None:
    """Trains and evaluates each variant with each seed, and prints the results."""
    results: dict[str, dict[str, list[float]]] = {}
    for variant in FLAGS.variant:
        results[variant] = {}
        workdirs = [train_and_evaluate(variant, int(seed)) for seed in FLAGS.seeds]
        for workdir in workdirs:
            embedded = embed(workdir)
            values = read_values(workdir) | centered_values(embedded) | stored_values(embedded)
            for name, value in values.items():
                results[variant].setdefault(name, []).append(round(value, 4))
        if FLAGS.record:
            record_row(variant, results[variant], workdirs[0])
    print(json.dumps({"config": FLAGS.config, "seeds": FLAGS.seeds, "results": results}))


if __name__ == "__main__":
    define_flags()
    app.run(main)
