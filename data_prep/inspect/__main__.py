"""Shows what is in a built data set, so that a person can see in a minute whether the data are right.

    python -m data_prep.inspect --data_dir=DIR [--out=DIR/inspect.html] [--products=8] [--items=20000]
    python -m data_prep.inspect --data_dir=DIR --check_split

The first prints a table of distributions and writes a page with plots and some products, their pages, videos and
lives side by side. Of each domain about `items` items are read, evenly spread; 0 reads all. The second reads
all and reports products and byte-identical images that occur in more than one split.
"""

import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from absl import app, flags, logging

from data_prep.inspect import page as inspect_page
from data_prep.inspect.inspection import InspectError, check_split, format_overlap, format_table, inspect
from data_prep.rope.rope_dataset_builder import Builder

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    flags.DEFINE_string("data_dir", None, "Folder with the data sets, in its folder rope.", required=True)
    flags.DEFINE_string("out", None, "The page to write; default: inspect.html in the data folder.")
    flags.DEFINE_integer("products", 8, "Products to show of each split.", lower_bound=0)
    flags.DEFINE_integer("items", 20_000, "Items to read of each domain and split, about; 0 is all.", lower_bound=0)
    flags.DEFINE_bool("check_split", False, "Report what occurs in more than one split, instead.")
    flags.DEFINE_integer("processes", None, "Processes that read; default: one a core.", lower_bound=1)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.ERROR)  # TFDS tells of each data set that it opens
    data_dir = Path(FLAGS.data_dir)
    try:
        if FLAGS.check_split:
            print(format_overlap(check_split(data_dir, processes=FLAGS.processes)))
            return 0
        splits = inspect(data_dir, items=FLAGS.items, products=FLAGS.products, processes=FLAGS.processes)
        out = Path(FLAGS.out) if FLAGS.out else data_dir / "inspect.html"
        out.write_text(inspect_page.render(f"{Builder.name} in {data_dir}", splits), encoding="utf-8")
    except (InspectError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("error: a worker was killed, perhaps for want of memory", file=sys.stderr)
        return 1
    for split in splits:
        print(f"{split.name}\n{format_table(split)}\n")
    print(f"page: {out}")
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(main)
