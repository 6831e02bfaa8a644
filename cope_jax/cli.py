"""What the commands of the package have in common: quiet libraries, and errors of the user in one sentence."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from absl import flags

from cope_jax.evaluation.results import BEST, LATEST
from cope_jax.parallel.cluster import join_cluster
from data_prep.common.cli import run

__all__ = ["define_checkpoint_flags", "define_cluster_flags", "parse_step", "run", "this_process"]
FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # those defined here belong to the command that asks for them: its --help shows them


def define_checkpoint_flags() -> None:
    """Defines the flags that choose a checkpoint and the records it is applied to."""
    flags.DEFINE_string("workdir", None, "Work directory of the run.")
    flags.DEFINE_string(
        "step",
        LATEST,
        f"Checkpoint: a step, {LATEST!r}, or {BEST!r}, the one with the highest mean R@1 of those evaluated so far; 0 "
        "is the untrained model.",
    )
    flags.DEFINE_string("data_dir", None, "Array records to use instead of the run's own.")
    flags.DEFINE_bool(
        "average", False, "Use the moving average of the parameters; needs a run with config.train.average_decay."
    )


def define_cluster_flags() -> None:
    """Defines the flags of a command that several processes can run together."""
    flags.DEFINE_bool("distributed", False, "This is one process of several, on one host or on many: join them first.")
    flags.DEFINE_string("coordinator", None, "host:port of process 0; not needed where the cluster tells it.")
    flags.DEFINE_integer("processes", None, "Number of processes; not needed where the cluster tells it.")
    flags.DEFINE_integer("process", None, "Number of this process, from 0; not needed where the cluster tells it.")
    flags.DEFINE_float("join_seconds", 60.0, "How long processes wait for each other to start.", lower_bound=1.0)


def this_process(settings: Mapping[str, Any]) -> AbstractContextManager[None]:
    """What stands round the work of this process, before any use of a device: the other processes, or nothing.

    Args:
        settings: What must be the same in all processes, by name.

    Raises:
        ValueError: flags of one process among several, without saying that it is one.
    """
    place = {"coordinator": FLAGS.coordinator, "processes": FLAGS.processes, "process": FLAGS.process}
    if FLAGS.distributed:
        return join_cluster(
            **place, settings={**settings, "the version of jax": jax.__version__}, seconds=FLAGS.join_seconds
        )
    given = [f"--{flag}" for flag, value in place.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} without --distributed: this would work alone; add it or leave them out")
    return nullcontext()


def parse_step(step: str, *, words: Sequence[str]) -> int | str:
    """The value of --step: a number, or one of some words.

    Raises:
        ValueError: it is neither.
    """
    if step not in words and not step.isdigit():
        raise ValueError(f"--step is {step!r}; it must be {' or '.join(map(repr, words))} or a number of steps")
    return int(step) if step.isdigit() else step
