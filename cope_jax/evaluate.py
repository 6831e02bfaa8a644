"""Evaluates a run: `python -m cope_jax.evaluate --workdir=runs/demo` prints both tables and writes a report."""

from pathlib import Path
from typing import Any

from absl import flags

from cope_jax import cli
from cope_jax.evaluation.evaluate_run import BEST, LATEST, evaluate, judge, metrics_path, report_path
from cope_jax.evaluation.report.report import write_report
from cope_jax.evaluation.result_tables import tables
from cope_jax.runs.checkpoints import UNTRAINED

FLAGS = flags.FLAGS
FACTS = ("workdir", "step", "data_dir", "subset", "average")  # flags that are the same in all processes


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_string(
        "step",
        LATEST,
        f"Checkpoint to evaluate: a step, {LATEST!r}, or {BEST!r}, the one with the highest mean R@1 of those "
        "evaluated so far; 0 is the untrained model.",
    )
    flags.DEFINE_string("data_dir", None, "Array records to evaluate on instead of the run's own.")
    flags.DEFINE_integer(
        "subset", None, "Evaluate that many random products alone: for a quick look; the task is easier.", lower_bound=1
    )
    flags.DEFINE_bool(
        "average", False, "Evaluate the moving average of the parameters, of a run with config.train.average_decay."
    )
    flags.DEFINE_bool("baseline", True, "Show the untrained model's numbers beside the checkpoint's.")
    flags.DEFINE_bool("reuse", False, "Take what an earlier evaluation of the same step and data wrote, if any.")
    flags.DEFINE_bool("report", True, "Write report.html, too: tables, curves, a map, a gallery of queries and hits.")
    cli.define_cluster_flags()
    flags.mark_flags_as_required(["workdir"])


def main() -> None:
    """Evaluates, prints and writes."""
    step = cli.parse_step(FLAGS.step, words=(LATEST, BEST))
    workdir = Path(FLAGS.workdir)
    with cli.this_process({f"--{name}": FLAGS[name].value for name in FACTS}):
        judged = judge(workdir, step=step, average=FLAGS.average, needs_report=FLAGS.report, **options())
        beside = untrained(workdir) if FLAGS.baseline else None
        if FLAGS.report and judged.items is not None:
            write_report(workdir, judged, beside)
    if FLAGS.subset:
        print(f"Of {FLAGS.subset} random products alone, among whose items it is easier to find the right one")
    print(tables(judged.metrics, beside))
    print(f"\nwritten to {metrics_path(workdir, judged.step, FLAGS.subset, average=FLAGS.average)}")
    if FLAGS.report:
        print(f"report: {report_path(workdir, judged.step, FLAGS.subset, average=FLAGS.average)}")


def options() -> dict[str, Any]:
    """What the evaluations of both models have in common."""
    data_dir = Path(FLAGS.data_dir) if FLAGS.data_dir else None
    return {"data_dir": data_dir, "subset": FLAGS.subset, "reuse": FLAGS.reuse}


def untrained(workdir: Path) -> dict[str, Any] | None:
    """The untrained model's metrics; None, with the reason printed, where the weights it starts from are elsewhere."""
    try:
        return evaluate(workdir, step=UNTRAINED, **options())
    except FileNotFoundError as error:
        print(f"without the untrained model beside it: {error}")
        return None


if __name__ == "__main__":
    define_flags()
    cli.run("evaluate", main)
