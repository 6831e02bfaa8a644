"""Trains a model: `python -m cope_jax.train --config=configs/demo.py --workdir=runs/demo`.

Fields of the config are flags: `--config.train.batch_size=64`. The same command goes on where a run was stopped.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from cope_jax import entry
from cope_jax.training.cluster import joined
from cope_jax.training.config import flatten, make_paths_absolute
from cope_jax.training.dry_run import dry_run, pretend_devices
from cope_jax.training.loop import Stopped, train

FLAGS = flags.FLAGS
STOPPED = 75  # exit code: stopped by a signal, all work saved (EX_TEMPFAIL: call again)


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    config_flags.DEFINE_config_file("config", None, "Experiment: a file of configs/.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of the run: config, checkpoints, metrics. Made if missing.")
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Print parameters, operations and memory of each device for the config's mesh, and train nothing. Needs no "
        "data, no work directory and none of the devices.",
    )
    flags.DEFINE_bool("distributed", False, "This is one process of several, on one host or on many: join them first.")
    flags.DEFINE_string("coordinator", None, "host:port of process 0; not needed where the cluster tells it.")
    flags.DEFINE_integer("processes", None, "Number of processes; not needed where the cluster tells it.")
    flags.DEFINE_integer("process", None, "Number of this process, from 0; not needed where the cluster tells it.")
    flags.DEFINE_float("join_seconds", 60.0, "How long processes wait for each other to start.", lower_bound=1.0)
    flags.mark_flags_as_required(["config"])


def main() -> None:
    """Joins the cluster where there is one, and trains; or tells what that would take."""
    if FLAGS.dry_run:
        pretend_devices(FLAGS.config)
        print(dry_run(FLAGS.config))
        return
    if not FLAGS.workdir:
        raise ValueError("--workdir is missing: name the folder of the run, which is made if need be")
    code = 0
    with this_process():
        make_paths_absolute(FLAGS.config)
        try:
            train(FLAGS.config, Path(FLAGS.workdir))
        except Stopped as stopped:  # in all processes at the same step
            print(stopped)
            code = STOPPED
    sys.exit(code)


def this_process() -> AbstractContextManager[None]:
    """What stands round the training of this process: the other ones, or nothing.

    Raises:
        ValueError: flags of one process among several, without saying that it is one.
    """
    place = {"coordinator": FLAGS.coordinator, "processes": FLAGS.processes, "process": FLAGS.process}
    if FLAGS.distributed:
        fields = {f"config.{key}": value for key, value in flatten(FLAGS.config)}
        facts = {"--workdir": FLAGS.workdir, "the version of jax": jax.__version__} | fields
        return joined(**place, facts=facts, seconds=FLAGS.join_seconds)
    given = [f"--{flag}" for flag, value in place.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} without --distributed: this would train alone; add it or leave them out")
    return nullcontext()


if __name__ == "__main__":
    define_flags()
    entry.run("train", main)
