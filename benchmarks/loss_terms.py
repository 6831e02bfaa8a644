"""Compares the loss terms by training with each of them.

    python -m benchmarks.loss_terms --config=configs/demo.py --data_dir=… --out=DIR

Trains with four losses, with the same steps, seed and batches: sigmoid and InfoNCE, each with and without the product
classifier. Each training is a run of `python -m cope_jax.train` in its own folder of `--out`; finished runs are reused.
The last line is JSON: R@1 of each run in the six directions, and their mean.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

SIGMOID = {"sigmoid": 1.0, "infonce": 0.0, "classifier": 0.0}
INFONCE = {"sigmoid": 0.0, "infonce": 1.0, "classifier": 0.0}
CLASSIFIER_WEIGHT = 0.1  # the classifier scales its logits by 64, and with them its gradients
LOSSES = {
    "sigmoid": SIGMOID,
    "infonce": INFONCE,
    "sigmoid-classifier": SIGMOID | {"classifier": CLASSIFIER_WEIGHT},
    "infonce-classifier": INFONCE | {"classifier": CLASSIFIER_WEIGHT},
}

FLAGS = flags.FLAGS


def train_and_evaluate(name: str, weights: dict[str, float]) -> dict[str, Any]:
    """Trains with one loss, evaluates, and returns the metrics."""
    workdir = Path(FLAGS.out) / name
    python = [sys.executable, "-m"]
    train = [*python, "cope_jax.train", f"--config={FLAGS.config}", f"--workdir={workdir}"]
    train += [f"--config.data.data_dir={FLAGS.data_dir}"]
    train += [f"--config.losses.{term}.weight={weight}" for term, weight in weights.items()]
    subprocess.run(train, check=True)
    subprocess.run([*python, "cope_jax.evaluate", f"--workdir={workdir}"], check=True)
    newest = max((workdir / "eval").iterdir(), key=lambda folder: int(folder.name))
    return json.loads((newest / "metrics.json").read_text(encoding="utf-8"))


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("config", None, "Experiment: a file in configs/.", required=True)
    flags.DEFINE_string("data_dir", None, "Array records to train and evaluate on.", required=True)
    flags.DEFINE_string("out", None, "Folder of the four work directories; created if missing.", required=True)


def main(_: list[str]) -> None:
    """Trains with each loss, evaluates, and prints the results."""
    results = {}
    for name, weights in LOSSES.items():
        metrics = train_and_evaluate(name, weights)
        results[name] = {direction: round(values["r1"], 4) for direction, values in metrics["retrieval"].items()}
        results[name]["mean"] = round(metrics["retrieval_mean"]["mean_r1"], 4)
    print(json.dumps({"config": FLAGS.config, "R@1": results}))


if __name__ == "__main__":
    define_flags()
    app.run(main)
