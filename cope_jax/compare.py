"""Compares evaluated runs: `python -m cope_jax.compare runs/a runs/b` prints their metrics and the differences.

A run is a work directory or a metrics file, such as `runs/a/eval/2000/metrics.json`. --out=comparison.html also writes
a page that shows the queries won and lost.
"""

from pathlib import Path

from absl import flags

from cope_jax import cli
from cope_jax.evaluation.comparison import WRITERS, compare, format_comparison, read_step
from cope_jax.evaluation.report.comparison_page import comparison_page
from cope_jax.evaluation.results import BEST, LATEST
from data_prep.common.files import atomic_write

FLAGS = flags.FLAGS
PAGE = ".html"
SUFFIXES = " or ".join((*WRITERS, PAGE))


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("step", LATEST, f"Evaluated step of each run: a number, {LATEST!r}, or {BEST!r}.")
    flags.DEFINE_string("out", None, f"File to write as well; its suffix is {SUFFIXES}.")


def main(*runs: str) -> None:
    """Prints the comparison and writes it to --out."""
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} runs given; name at least two: ./run.sh compare RUN RUN")
    suffix = Path(FLAGS.out).suffix if FLAGS.out else PAGE
    if suffix not in (*WRITERS, PAGE):
        raise ValueError(f"--out is {FLAGS.out!r}; its suffix must be {SUFFIXES}")
    step = cli.parse_step(FLAGS.step)
    evaluated = [read_step(Path(run), step) for run in runs]
    rows = compare(evaluated)
    print(format_comparison(evaluated, rows))
    if FLAGS.out:
        with atomic_write(Path(FLAGS.out), "w") as file:
            file.write(comparison_page(evaluated, rows) if suffix == PAGE else WRITERS[suffix](rows))
        print(f"\nwritten to {FLAGS.out}")


if __name__ == "__main__":
    define_flags()
    cli.run("compare", main, positional=True)
