"""Writes a synthetic release: text files and JPEG images, with difficulties like those of the real one.

    python -m data_prep.synthetic --out=DIR --train_products=1500 --test_products=220 --image_side=96 --seed=0

The files depend on the sizes and the seed, not on the number of processes. The release appears under its name once it
is complete. If the command is interrupted, run it again: it starts over.
"""

from absl import flags

from data_prep.common.cli import run
from data_prep.common.process_pool import usable_cores
from data_prep.synthetic.products import DEFAULT_RECIPE
from data_prep.synthetic.release import write_release

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("out", None, "Folder to write the release to.", required=True)
    flags.DEFINE_integer("train_products", 2000, "Number of products of the training split.")
    flags.DEFINE_integer("test_products", 220, "Number of products of the test split; none is in the training split.")
    flags.DEFINE_integer("image_side", 96, "Width and height of the images in pixels.")
    flags.DEFINE_integer("seed", 0, "Seed of all random choices.")
    flags.DEFINE_integer("recipe", DEFAULT_RECIPE, "Attributes and difficulty: 6 (26 bits per product) or 7 (41 bits).")
    flags.DEFINE_integer("processes", None, "Number of processes. Default: one per core.")


def main() -> None:
    write_release(
        FLAGS.out,
        train_products=FLAGS.train_products,
        test_products=FLAGS.test_products,
        image_side=FLAGS.image_side,
        seed=FLAGS.seed,
        recipe=FLAGS.recipe,
        processes=usable_cores() if FLAGS.processes is None else FLAGS.processes,
    )


if __name__ == "__main__":
    define_flags()
    run("synthetic", main)
