"""Evaluates a run: `python -m cope_jax.evaluate --workdir=runs/demo` prints both tables and writes them as JSON."""

from pathlib import Path
from typing import Any

from absl import flags

from cope_jax import entry
from cope_jax.evaluation.report import tables
from cope_jax.evaluation.run import evaluate, metrics_path
from cope_jax.training.checkpoints import UNTRAINED

FLAGS = flags.FLAGS
LATEST = "latest"


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_string("step", LATEST, f"Checkpoint to evaluate: a step or {LATEST!r}; 0 is the untrained model.")
    flags.DEFINE_string("data_dir", None, "Array records to evaluate on instead of the run's own.")
    flags.DEFINE_bool("baseline", True, "Show the untrained model's numbers beside the checkpoint's.")
    flags.DEFINE_bool("reuse", False, "Take what an earlier evaluation of the same step and data wrote, if any.")
    flags.mark_flags_as_required(["workdir"])


def main() -> None:
    """Evaluates and prints."""
    if FLAGS.step != LATEST and not FLAGS.step.isdigit():
        raise ValueError(f"--step is {FLAGS.step!r}; it must be {LATEST!r} or a number of steps")
    workdir = Path(FLAGS.workdir)
    step = None if FLAGS.step == LATEST else int(FLAGS.step)
    data_dir = Path(FLAGS.data_dir) if FLAGS.data_dir else None
    metrics = evaluate(workdir, step=step, data_dir=data_dir, reuse=FLAGS.reuse)
    beside = untrained(workdir, data_dir) if FLAGS.baseline else None
    print(tables(metrics, beside))
    print(f"\nwritten to {metrics_path(workdir, metrics['step'])}")


def untrained(workdir: Path, data_dir: Path | None) -> dict[str, Any] | None:
    """The untrained model's metrics; None, with the reason printed, where the weights it starts from are elsewhere."""
    try:
        return evaluate(workdir, step=UNTRAINED, data_dir=data_dir, reuse=FLAGS.reuse)
    except FileNotFoundError as error:
        print(f"without the untrained model beside it: {error}")
        return None


if __name__ == "__main__":
    define_flags()
    entry.run("evaluate", main)
