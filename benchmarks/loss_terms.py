"""What the terms of the loss bring: `python -m benchmarks.loss_terms --config=configs/demo.py --data_dir=… --out=DIR`.

Four trainings that differ in their loss alone, the same steps, seed and batches: sigmoid and InfoNCE, each with and
without the product classifier. Each is the run that `python -m cope_jax.train` makes, in its own folder of `--out`;
finished ones are not repeated. The last line is JSON: for each the mean R@1 over the six directions and R@1 of each.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

SIGMOID = {"sigmoid": 1.0, "infonce": 0.0, "classifier": 0.0}
INFONCE = {"sigmoid": 0.0, "infonce": 1.0, "classifier": 0.0}
CLASSIFIER_WEIGHT = 0.1  # its gradients are scaled by 64
LOSSES = {
    "sigmoid": SIGMOID,
    "infonce": INFONCE,
    "sigmoid-classifier": SIGMOID | {"classifier": CLASSIFIER_WEIGHT},
    "infonce-classifier": INFONCE | {"classifier": CLASSIFIER_WEIGHT},
}

FLAGS = flags.FLAGS


def run(name: str, weights: dict[str, float]) -> dict[str, Any]:
    """Trains and evaluates with one loss, and reads what evaluation wrote."""
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
    flags.DEFINE_string("config", None, "Experiment: a file of configs/.", required=True)
    flags.DEFINE_string("data_dir", None, "Array records to train and evaluate on.", required=True)
    flags.DEFINE_string("out", None, "Folder of the four work directories; made if missing.", required=True)


def main(_: list[str]) -> None:
    """Trains, evaluates and prints."""
    results = {}
    for name, weights in LOSSES.items():
        metrics = run(name, weights)
        results[name] = {direction: round(values["r1"], 4) for direction, values in metrics["retrieval"].items()}
        results[name]["mean"] = round(metrics["retrieval_mean"]["mean_r1"], 4)
    print(json.dumps({"config": FLAGS.config, "R@1": results}))


if __name__ == "__main__":
    define_flags()
    app.run(main)
