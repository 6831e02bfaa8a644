"""Compares evaluated runs: `python -m cope_jax.compare runs/a runs/b` prints their metrics and the differences.

A run is a work directory or a metrics file, such as `runs/a/eval/2000/metrics.json`.
"""

from pathlib import Path

from absl import flags

from cope_jax import cli
from cope_jax.evaluation.result_tables import WRITERS, compare, format_comparison, read_step
from cope_jax.evaluation.results import BEST, LATEST

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("step", LATEST, f"Evaluated step of each run: a number, {LATEST!r}, or {BEST!r}.")
    flags.DEFINE_string("out", None, f"File to write as well; its suffix is {' or '.join(WRITERS)}.")


def main(*runs: str) -> None:
    """Prints the comparison and writes it to --out."""
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} runs given; name at least two: ./run.sh compare RUN RUN")
    if FLAGS.out and Path(FLAGS.out).suffix not in WRITERS:
        raise ValueError(f"--out is {FLAGS.out!r}; its suffix must be {' or '.join(WRITERS)}")
    step = cli.parse_step(FLAGS.step)
    evaluated = [read_step(Path(run), step) for run in runs]
    rows = compare(evaluated)
    print(format_comparison(evaluated, rows))
    if FLAGS.out:
        Path(FLAGS.out).write_text(WRITERS[Path(FLAGS.out).suffix](rows), encoding="utf-8")
        print(f"\nwritten to {FLAGS.out}")


if __name__ == "__main__":
    define_flags()
    cli.run("compare", main, positional=True)
