"""Writes a synthetic release: text files and JPEG images, with difficulties like the real one's.

    python -m data_prep.synthetic --out=DIR --train_products=1500 --test_products=220 --image_side=96 --seed=0

The bytes depend on sizes and seed alone, not on the number of processes. The release appears under its name
only when it is complete: a killed run leaves `DIR.writing` behind, and the same command starts over.
"""

import os
import sys
from collections.abc import Sequence

from absl import app, flags

from data_prep.synthetic.release import SyntheticError, write_release


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    options = flags.FLAGS
    try:
        write_release(
            options.out, train_products=options.train_products, test_products=options.test_products,
            image_side=options.image_side, seed=options.seed, processes=options.processes,
        )  # fmt: skip
    except (SyntheticError, OSError) as error:
        sys.exit(f"data_prep.synthetic: {error}")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder to write the release to.", required=True)
    flags.DEFINE_integer("train_products", 2000, "Products of the training split.")
    flags.DEFINE_integer("test_products", 220, "Products of the test split, none of them in training.")
    flags.DEFINE_integer("image_side", 96, "Width and height of the images in pixels.")
    flags.DEFINE_integer("seed", 0, "Another seed gives another release.")
    flags.DEFINE_integer("processes", os.cpu_count() or 1, "Processes that draw; the result is the same for any.")
    app.run(main)
