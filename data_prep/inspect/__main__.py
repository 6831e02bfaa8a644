"""Shows what a built data set contains, so that a person can judge it within a minute.

    python -m data_prep.inspect --data_dir=DIR [--out=DIR/inspect.html] [--products=8] [--items=20000]
    python -m data_prep.inspect --data_dir=DIR --check_split

The first form prints a table of distributions and writes a page with plots and some products: their items in all
domains, side by side. It reads about `items` evenly spaced items per domain; 0 reads all. The second form reads
everything and reports products, byte-identical images and near-duplicates that occur in more than one split, and
near-duplicates of different products.
"""

from pathlib import Path

from absl import flags

from data_prep.common.cli import run
from data_prep.common.files import atomic_write
from data_prep.inspect.page import format_table, inspect, render
from data_prep.inspect.split_overlap import check_split, format_overlap

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("data_dir", None, "Folder with the data set, or the data set itself.", required=True)
    flags.DEFINE_string("out", None, "Page to write. Default: inspect.html in the data folder.")
    flags.DEFINE_integer("products", 8, "Number of products to show per split.", lower_bound=0)
    flags.DEFINE_integer("items", 20_000, "Approximate number of items to read per domain and split; 0 reads all.", 0)
    flags.DEFINE_bool("check_split", False, "Report what occurs in more than one split instead.")
    flags.DEFINE_integer("processes", None, "Number of processes. Default: one per core.", lower_bound=1)


def main() -> None:
    data_dir = Path(FLAGS.data_dir)
    if FLAGS.check_split:
        print(format_overlap(check_split(data_dir, processes=FLAGS.processes)))
        return
    splits = inspect(data_dir, items=FLAGS.items, products=FLAGS.products, processes=FLAGS.processes)
    out = Path(FLAGS.out) if FLAGS.out else data_dir / "inspect.html"
    with atomic_write(out, "w") as file:
        file.write(render(data_dir, splits))
    for split in splits:
        print(f"{split.name}\n{format_table(split)}\n")
    print(f"page: {out}")


if __name__ == "__main__":
    define_flags()
    run("inspect", main)
