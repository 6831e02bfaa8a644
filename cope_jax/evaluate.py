"""Evaluates a run: `python -m cope_jax.evaluate --workdir=runs/demo` prints metrics and writes a report."""

from pathlib import Path
from typing import Any

from absl import flags

from cope_jax import cli
from cope_jax.evaluation.evaluate_run import evaluate
from cope_jax.evaluation.report.report import write_report
from cope_jax.evaluation.result_tables import format_tables
from cope_jax.runs.checkpoints import UNTRAINED

FLAGS = flags.FLAGS
SHARED_FLAGS = ("workdir", "step", "data_dir", "out", "subset", "average")  # must be the same in all processes


def define_flags() -> None:
    """Defines the flags of the command."""
    cli.define_checkpoint_flags()
    flags.DEFINE_integer(
        "subset", None, "Evaluate only this many random products. Faster, but an easier task.", lower_bound=1
    )
    flags.DEFINE_bool("baseline", True, "Show the untrained model's metrics as well.")
    flags.DEFINE_bool("reuse", False, "Reuse the results of an earlier evaluation of the same step and data.")
    flags.DEFINE_bool("report", True, "Write report.html with tables, curves, a map, and example queries.")
    flags.DEFINE_string("out", None, "Folder for the results. By default, eval/ in the work directory.")
    cli.define_cluster_flags()
    flags.mark_flags_as_required(["workdir"])


def main() -> None:
    """Evaluates the checkpoint, prints tables, and writes metrics and report."""
    step = cli.parse_step(FLAGS.step)
    workdir = Path(FLAGS.workdir)
    data_dir, out = (Path(value) if value else None for value in (FLAGS.data_dir, FLAGS.out))
    options = {"data_dir": data_dir, "out": out, "subset": FLAGS.subset, "reuse": FLAGS.reuse}
    with cli.join_cluster({f"--{name}": FLAGS[name].value for name in SHARED_FLAGS}):
        evaluation = evaluate(workdir, step=step, average=FLAGS.average, needs_report=FLAGS.report, **options)
        baseline = untrained_metrics(workdir, options) if FLAGS.baseline else None
        if FLAGS.report and evaluation.embedded:
            write_report(workdir, evaluation, evaluation.embedded, baseline)
    if FLAGS.subset:
        print(f"Only {FLAGS.subset} random products, which is easier than all products")
    print(format_tables(evaluation.metrics, baseline))
    print(f"\nwritten to {evaluation.files.metrics}")
    if FLAGS.report:
        print(f"report: {evaluation.files.report}")


def untrained_metrics(workdir: Path, options: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the untrained model's metrics, or None if its initial weights are not available."""
    try:
        return evaluate(workdir, step=UNTRAINED, **options).metrics
    except FileNotFoundError as error:
        print(f"without the untrained model: {error}")
        return None


if __name__ == "__main__":
    define_flags()
    cli.run("evaluate", main)
