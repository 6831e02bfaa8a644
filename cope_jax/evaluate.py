"""Evaluates a run: `python -m cope_jax.evaluate --workdir=runs/demo` prints metrics and writes a report.

With --zero_shot, evaluates published weights without training; a work directory is made for them.
"""

import runpy
from pathlib import Path
from typing import Any

import jax
from absl import flags

from cope_jax import CONFIG_ROOT, cli
from cope_jax.evaluation.evaluate_run import evaluate
from cope_jax.evaluation.report.report import write_report
from cope_jax.evaluation.result_tables import format_tables
from cope_jax.evaluation.results import baseline_name
from cope_jax.runs.checkpoints import UNTRAINED
from cope_jax.runs.config_file import make_paths_absolute, save_config
from cope_jax.runs.config_validation import resolve_config
from cope_jax.runs.inputs import run_tokenizer
from cope_jax.runs.pretrained import start_from_weights

FLAGS = flags.FLAGS
CATALOG_CONFIG = "configs/catalog.py"
# They must be the same in all processes.
SHARED_FLAGS = ("workdir", "zero_shot", "step", "data_dir", "split", "out", "subset", "average")


def define_flags() -> None:
    """Defines the flags of the command."""
    cli.define_checkpoint_flags()
    flags.DEFINE_string("split", None, "Split to evaluate, or several: train+test. By default, config.data.eval_split.")
    flags.DEFINE_integer(
        "subset", None, "Evaluate only this many random products. Faster, but an easier task.", lower_bound=1
    )
    flags.DEFINE_string(
        "zero_shot",
        None,
        "Evaluate these weights (folder, hub name, run or export) on --data_dir without training. The work directory "
        "is runs/NAME by default.",
    )
    flags.DEFINE_bool("baseline", True, "Show the metrics before training as well.")
    flags.DEFINE_bool("reuse", False, "Reuse the results of an earlier evaluation of the same step and data.")
    flags.DEFINE_bool("report", True, "Write report.html with tables, curves, a map, and example queries.")
    flags.DEFINE_string("out", None, "Folder for the results. By default, eval/ in the work directory.")
    cli.define_cluster_flags()


def main() -> None:
    """Evaluates the checkpoint, prints tables, and writes metrics and report."""
    step = cli.parse_step(FLAGS.step)
    data_dir, out = (Path(value) if value else None for value in (FLAGS.data_dir, FLAGS.out))
    if FLAGS.zero_shot and not data_dir:
        raise ValueError("--data_dir is missing; expected the data that --zero_shot is evaluated on")
    if not FLAGS.zero_shot and not FLAGS.workdir:
        raise ValueError("--workdir is missing; expected the folder of a run, or --zero_shot with weights to evaluate")
    workdir = Path(FLAGS.workdir or f"runs/{Path(FLAGS.zero_shot).name}")
    options = {"data_dir": data_dir, "split": FLAGS.split, "out": out, "subset": FLAGS.subset, "reuse": FLAGS.reuse}
    with cli.join_cluster({f"--{name}": FLAGS[name].value for name in SHARED_FLAGS}):
        if FLAGS.zero_shot and data_dir:
            make_zero_shot_run(FLAGS.zero_shot, data_dir, workdir)
            step, options["data_dir"] = UNTRAINED, None
        evaluation = evaluate(workdir, step=step, average=FLAGS.average, needs_report=FLAGS.report, **options)
        wanted = FLAGS.baseline and evaluation.step != UNTRAINED
        baseline = untrained_metrics(workdir, options) if wanted else None
        if FLAGS.report and evaluation.embedded:
            write_report(workdir, evaluation, evaluation.embedded, baseline)
    if FLAGS.subset:
        print(f"Only {FLAGS.subset} random products, which is easier than all products")
    print(format_tables(evaluation.metrics, baseline, baseline_name(evaluation.config)))
    print(f"\nwritten to {evaluation.files.metrics}")
    if FLAGS.report:
        print(f"report: {evaluation.files.report}")


def make_zero_shot_run(weights: str, data_dir: Path, workdir: Path) -> None:
    """Makes the work directory of a run without any step, which starts from weights and has the data's domains.

    Raises:
        FileNotFoundError: The weights are missing.
        ValueError: The weights do not fit, or the work directory is that of another run.
    """
    file = next(path for path in (Path(CATALOG_CONFIG), CONFIG_ROOT / CATALOG_CONFIG) if path.exists())
    fields = runpy.run_path(str(file))["get_config"](f"{data_dir},scratch")
    config = start_from_weights(resolve_config(fields, {"model.init_from": weights}))
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        save_config(make_paths_absolute(config), workdir)
    run_tokenizer(config, workdir)


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
