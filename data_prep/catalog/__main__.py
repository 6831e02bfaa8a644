"""Builds a catalog from the text files of a release.

    python -m data_prep.catalog --release=DIR --out=DIR [--splits=train,test] [--memory_limit=3GB] [--max_rejected=0.01]

Invalid lines are left out, counted by file and reason, and listed in OUT/rejected.jsonl. If the command is interrupted,
run it again: it starts over. It does nothing if the catalog of the same files already exists.
"""

from functools import partial
from pathlib import Path

from absl import flags

from data_prep.catalog import builder
from data_prep.catalog.files import format_summary
from data_prep.catalog.release_catalog import build_release_catalog
from data_prep.catalog.release_parser import PREFIXES
from data_prep.common import cli

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("release", None, "Folder with the text files.", required=True)
    flags.DEFINE_string("out", None, "Folder of the catalog.", required=True)
    flags.DEFINE_list("splits", list(PREFIXES), "Splits to include.")
    for split, prefix in PREFIXES.items():
        flags.DEFINE_string(f"{split}_prefix", prefix, f"Prefix of the file names of split {split}.")
    flags.DEFINE_string("memory_limit", builder.MEMORY_LIMIT, "Memory for sorting. The rest takes about 1 GB more.")
    flags.DEFINE_float("max_rejected", builder.MAX_REJECTED, "Fraction of a file's lines that may be invalid.", 0, 1)


def main() -> None:
    catalog = build_release_catalog(
        Path(FLAGS.release),
        Path(FLAGS.out),
        splits=tuple(FLAGS.splits),
        prefixes={split: getattr(FLAGS, f"{split}_prefix") for split in PREFIXES},
        memory_limit=FLAGS.memory_limit,
        max_rejected=FLAGS.max_rejected,
        report=partial(print, flush=True),
    )
    print(format_summary(catalog.summary))


if __name__ == "__main__":
    define_flags()
    cli.run("catalog", main)
