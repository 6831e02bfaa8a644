"""Makes a catalog from a release's text files: parsed, checked, joined and in row order, at any size.

    python -m data_prep.catalog --release=DIR --out=DIR [--splits=train,test] [--memory_limit=3GB] [--max_rejected=0.01]

Broken lines are left out, counted by file and reason, and shown in OUT/rejected.jsonl. Killed, the same command starts
over; over a finished catalog of the same files it says so and does nothing.
"""

import sys
from functools import partial
from pathlib import Path

from absl import app, flags

from data_prep.catalog import make as making
from data_prep.catalog.files import CatalogError
from data_prep.catalog.release import PREFIXES, ReleaseError
from data_prep.catalog.release_rows import make_catalog
from data_prep.catalog.summary import format_summary

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    flags.DEFINE_string("release", None, "Folder with the text files.", required=True)
    flags.DEFINE_string("out", None, "Folder of the catalog.", required=True)
    flags.DEFINE_list("splits", list(PREFIXES), "Splits to take.")
    for split, prefix in PREFIXES.items():
        flags.DEFINE_string(f"{split}_prefix", prefix, f"What the file names of split {split} start with.")
    flags.DEFINE_string("memory_limit", making.MEMORY_LIMIT, "Memory for sorting; about 1 GB more is used beside it.")
    flags.DEFINE_float("max_rejected", making.MAX_REJECTED, "Fraction of a file's lines that may be broken.", 0, 1)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        catalog = make_catalog(
            Path(FLAGS.release),
            Path(FLAGS.out),
            splits=tuple(FLAGS.splits),
            prefixes={split: FLAGS[f"{split}_prefix"].value for split in PREFIXES},
            memory_limit=FLAGS.memory_limit,
            max_rejected=FLAGS.max_rejected,
            report=partial(print, flush=True),
        )
    except (ReleaseError, CatalogError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(format_summary(catalog.summary))
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(main)
