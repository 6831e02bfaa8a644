"""Compares evaluated runs: `python -m cope_jax.compare runs/a runs/b` prints their metrics and how far they differ.

A run is its work directory, or a file that evaluation wrote: `runs/a/eval/2000/metrics.json`.
"""

from pathlib import Path

from absl import flags

from cope_jax import cli
from cope_jax.evaluation.compare import WRITERS, compare, read, table
from cope_jax.evaluation.evaluate_run import BEST, LATEST

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    flags.DEFINE_string("step", LATEST, f"Which evaluated step of each run: a number, {LATEST!r} or {BEST!r}.")
    flags.DEFINE_string("out", None, f"File to write besides, by its ending: {' or '.join(WRITERS)}.")


def main(*runs: str) -> None:
    """Prints the table, and writes it where asked to."""
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} runs given; name at least two: ./run.sh compare RUN RUN")
    if FLAGS.out and Path(FLAGS.out).suffix not in WRITERS:
        raise ValueError(f"--out is {FLAGS.out!r}; its ending must be {' or '.join(WRITERS)}")
    step = cli.parse_step(FLAGS.step, words=(LATEST, BEST))
    evaluated = [read(Path(run), step) for run in runs]
    rows = compare(evaluated)
    print(table(evaluated, rows))
    if FLAGS.out:
        Path(FLAGS.out).write_text(WRITERS[Path(FLAGS.out).suffix](rows), encoding="utf-8")
        print(f"\nwritten to {FLAGS.out}")


if __name__ == "__main__":
    define_flags()
    cli.run("compare", main, positional=True)
