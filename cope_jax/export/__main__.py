"""Exports a run for serving: `python -m cope_jax.export --workdir=runs/demo --out=exports/demo`.

Writes config.json, model.safetensors, tokenizer/, and one StableHLO program per domain; `cope_jax.exported` loads them.
"""

from pathlib import Path

from absl import flags

from cope_jax import cli
from cope_jax.export.stablehlo import export_run

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("workdir", None, "Work directory of the run.")
    flags.DEFINE_string("out", None, "Folder to write; it must not exist.")
    flags.DEFINE_integer("step", None, "Checkpoint to export; the newest by default.", lower_bound=0)
    flags.DEFINE_bool(
        "average", False, "Export the moving average of the parameters; needs config.train.average_decay."
    )
    flags.mark_flags_as_required(["workdir", "out"])


def main() -> None:
    """Exports the run and prints how well the copies agree."""
    difference = export_run(Path(FLAGS.workdir), Path(FLAGS.out), step=FLAGS.step, average=FLAGS.average)
    print(f"wrote {FLAGS.out}; loaded back, its embeddings differ from the run's by at most {difference:.1e}")


if __name__ == "__main__":
    define_flags()
    cli.run("export", main)
