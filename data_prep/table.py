"""Builds a catalog from a table of products.

    python -m data_prep.table --table=items.csv --images=DIR --out=DIR [--test_fraction=0.1] [--max_rejected=0.01]

The table has the columns `product`, `domain` (page, video or live), `item`, optionally `text` and `split` (train or
test), and either `images` (one row per item; a list, or names separated by "|") or `image` (one row per image) and
optionally `time`. An item of several products has one row for each.
"""

from functools import partial
from pathlib import Path

from absl import flags

from data_prep.catalog import builder
from data_prep.catalog.summary import format_summary
from data_prep.catalog.table_catalog import TEST_FRACTION, build_table_catalog
from data_prep.common import cli

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("table", None, "The table: *.parquet, *.csv or *.jsonl.", required=True)
    flags.DEFINE_string("images", None, "Folder with the images. Their names are paths in it.", required=True)
    flags.DEFINE_string("out", None, "Folder of the catalog.", required=True)
    flags.DEFINE_float("test_fraction", TEST_FRACTION, "Fraction of products to test, for rows without a split.", 0, 1)
    flags.DEFINE_string("memory_limit", builder.MEMORY_LIMIT, "Memory for sorting. The rest takes about 1 GB more.")
    flags.DEFINE_float("max_rejected", builder.MAX_REJECTED, "Fraction of rows that may be invalid.", 0, 1)


def main() -> None:
    catalog = build_table_catalog(
        Path(FLAGS.table),
        Path(FLAGS.images),
        Path(FLAGS.out),
        test_fraction=FLAGS.test_fraction,
        memory_limit=FLAGS.memory_limit,
        max_rejected=FLAGS.max_rejected,
        report=partial(print, flush=True),
    )
    print(format_summary(catalog.summary))


if __name__ == "__main__":
    define_flags()
    cli.run("table", main)
