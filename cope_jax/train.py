"""Trains a model: `python -m cope_jax.train --config=configs/demo.py --workdir=runs/demo`.

Fields of the config are flags: `--config.train.batch_size=64`. To resume a stopped run, run the same command again.
"""

from cope_jax.training.allocator import preload_mimalloc

if __name__ == "__main__":
    preload_mimalloc()  # before the imports below, which take seconds

import json
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from cope_jax import CONFIG_ROOT, INSTALLED, cli
from cope_jax.parallel.targets import Target
from cope_jax.runs.config import flatten
from cope_jax.runs.config_file import make_paths_absolute
from cope_jax.runs.config_validation import describe_fields, resolve_config
from cope_jax.runs.log_files import ignore_full_disk_when_printing
from cope_jax.runs.pretrained import start_from_weights
from cope_jax.training.dry_run import dry_run, mesh_sizes, use_fake_devices
from cope_jax.training.loop import train
from cope_jax.training.signals import STOPPED, Stopped
from data_prep.common.files import atomic_write

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command."""
    config_flags.DEFINE_config_file("config", None, "Config file of the experiment, in configs/.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder for config, checkpoints and metrics. Created if it is missing.")
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Print parameters, operations and memory per device for the config's mesh instead of training. Needs neither "
        "data nor a work directory nor the devices.",
    )
    flags.DEFINE_string(
        "target",
        None,
        "Devices to compile for in a dry run, which need not be there: h100:8, v5e:2x4, v6e:2x4, cpu:4. Needs the "
        "packages of requirements-accelerators.txt. Default: CPUs, one for each device of the mesh.",
    )
    flags.DEFINE_string("json", None, "File for the results of a dry run as JSON.")
    flags.DEFINE_bool("accept_other_data", False, "Continue even if the training data changed since the run began.")
    flags.DEFINE_string(
        "profile_steps", "", "FIRST:LAST, such as 10:15: write a profiler trace of these steps to <workdir>/profile."
    )
    cli.define_cluster_flags()
    flags.mark_flags_as_required(["config"])


def main() -> None:
    """Trains, or prints the report of a dry run."""
    flags_of_fields = config_flags.get_override_values(FLAGS["config"])
    config = start_from_weights(resolve_config(FLAGS.config.to_dict()), keep=flags_of_fields)
    if FLAGS.dry_run:
        target = Target.parse(FLAGS.target) if FLAGS.target else None
        use_fake_devices(prod(mesh_sizes(config, target and target.size).values()))
        report, summary = dry_run(config, target)
        print(report)
        if FLAGS.json:
            with atomic_write(Path(FLAGS.json), "w") as file:
                file.write(json.dumps(summary, indent=2) + "\n")
        return
    if FLAGS.target or FLAGS.json:
        raise ValueError("--target and --json belong to a dry run; add --dry_run")
    if not FLAGS.workdir:
        raise ValueError("--workdir is missing; expected the folder of the run, which may not exist yet")
    ignore_full_disk_when_printing()
    code, profile_steps = 0, parse_steps(FLAGS.profile_steps)
    fields = {f"config.{key}": value for key, value in flatten(config).items()}
    with cli.join_cluster({"--workdir": FLAGS.workdir, **fields}):
        if jax.process_index() == 0:
            print(f"curves and pictures: {'' if INSTALLED else './run.sh '}tensorboard --logdir={FLAGS.workdir}")
        try:
            train(
                make_paths_absolute(config),
                Path(FLAGS.workdir),
                accept_other_data=FLAGS.accept_other_data,
                profile_steps=profile_steps,
            )
        except Stopped as stopped:  # in all processes at the same step
            print(stopped)
            code = STOPPED
    sys.exit(code)


def find_config(words: Sequence[str]) -> list[str]:
    """Returns the words of the command line, with the path of --config as it is opened."""
    found, rest = [], iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-config"):
            path, colon, argument = (value if equals else next(rest, "")).partition(":")
            word = f"--config={config_file(path)}{colon}{argument}"
        found.append(word)
    return found


def config_file(path: str) -> Path:
    """Returns the file of a path relative to the current folder or, if there is none, to CONFIG_ROOT.

    Exits with the list of configs if it is in neither; the library that reads it has no short message.
    """
    for file in (Path(path), CONFIG_ROOT / path):
        if file.is_file():
            return file
    files = (file for folder in (Path(), CONFIG_ROOT) for file in folder.glob("configs/*.py"))
    names = sorted({f"configs/{file.name}" for file in files if file.stem != "__init__"})
    sys.exit(f"train: no config file {path!r}; configs/ has {', '.join(names) or 'none'}")


def list_fields() -> str:
    """Lists the fields of the config as flags, with their types."""
    lines = (f"  --config.{key}: {kind}" for key, kind in describe_fields().items())
    return "\n".join(["Fields of the config, which configs/default.py explains:", *lines])


def parse_steps(text: str) -> tuple[int, int] | None:
    """Parses "10:15" as (10, 15) and "" as None; anything else raises ValueError."""
    if not text:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--profile_steps is {text!r}; it must be FIRST:LAST, such as 10:15, counted from 1")
    return int(first), int(last)


if __name__ == "__main__":
    sys.argv[1:] = find_config(sys.argv[1:])
    define_flags()
    __doc__ = f"{__doc__}\n{list_fields()}\n"  # --help prints it
    cli.run("train", main)
