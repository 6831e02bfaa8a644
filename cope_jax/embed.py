"""Embeds all items of a split: `python -m cope_jax.embed --workdir=runs/demo --split=test --out=embeddings/demo`.

Writes Parquet files, `page/00000-of-00004.parquet` and so on. If it is interrupted, the same command resumes.
"""

from pathlib import Path

from absl import flags

from cope_jax import cli
from cope_jax.search.embedding_store import TYPES, embed_to_parquet

FLAGS = flags.FLAGS
# They must be the same in all processes.
SHARED_FLAGS = ("workdir", "out", "split", "data_dir", "step", "average", "dims", "dtype", "update")


def define_flags() -> None:
    """Defines the flags of the command."""
    cli.define_checkpoint_flags()
    flags.DEFINE_string("out", None, "Folder to write.")
    flags.DEFINE_string("split", "test", "Split to embed, or several: train+test.")
    flags.DEFINE_bool("update", False, "Replace embeddings of earlier records; compute only what is new or changed.")
    flags.DEFINE_integer("dims", None, "Number of values to keep, the first ones; all by default.", lower_bound=1)
    flags.DEFINE_enum("dtype", "float32", list(TYPES), "Type of the embeddings.")
    cli.define_cluster_flags()
    flags.mark_flags_as_required(["workdir", "out"])


def main() -> None:
    """Embeds the items and prints their numbers."""
    with cli.join_cluster({f"--{name}": FLAGS[name].value for name in SHARED_FLAGS}):
        sizes = embed_to_parquet(
            Path(FLAGS.workdir),
            Path(FLAGS.out),
            split=FLAGS.split,
            data_dir=Path(FLAGS.data_dir) if FLAGS.data_dir else None,
            step=cli.parse_step(FLAGS.step),
            average=FLAGS.average,
            dims=FLAGS.dims,
            dtype=FLAGS.dtype,
            update=FLAGS.update,
        )
    counts = ", ".join(f"{size} {domain} items" for domain, size in sizes.items())
    print(f"{FLAGS.out} has the embeddings of {counts}")


if __name__ == "__main__":
    define_flags()
    cli.run("embed", main)
