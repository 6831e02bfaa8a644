"""Flags and helpers shared by the commands of `cope_jax`."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import entry_points
from typing import Any

import jax
from absl import flags

from cope_jax.evaluation.results import BEST, LATEST
from cope_jax.parallel import cluster
from cope_jax.parallel.local_devices import computes_on_cpu
from data_prep.common import cli as common

__all__ = ["define_checkpoint_flags", "define_cluster_flags", "join_cluster", "parse_step", "run"]
FLAGS = flags.FLAGS


def run(name: str, main: Callable[..., int | None], *, positional: bool = False) -> None:
    """Runs a command as `data_prep.common.cli.run` does, and reports environments that JAX cannot work in."""

    def checked(*words: str) -> int | None:
        check_environment()
        if computes_on_cpu():  # otherwise, plugins that are installed to compile would look for their devices
            jax.config.update("jax_platforms", "cpu")
        try:
            return main(*words)
        except RuntimeError as error:
            if "Unable to initialize backend" not in str(error):
                raise
            raise ValueError(f"{str(error).splitlines()[0]}; unset JAX_PLATFORMS to use another device") from error

    common.run(name, checked, positional=positional)


def check_environment() -> None:
    """Raises a ValueError if environment variables ask JAX for what the project or this machine does not support."""
    if jax.config.read("jax_enable_x64"):
        raise ValueError("JAX_ENABLE_X64 is set, but models need 32-bit numbers; unset it")
    platforms = os.environ.get("JAX_PLATFORMS", "").split(",")
    plugins = " ".join(plugin.name for plugin in entry_points(group="jax_plugins"))
    if {"cuda", "gpu"} & {*platforms[:1]} and "cuda" not in plugins:
        raise ValueError(
            f"JAX_PLATFORMS is {','.join(platforms)!r}, but JAX is installed without CUDA; unset it to use the CPU, or "
            "install jax[cuda13]"
        )


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
    flags.disclaim_key_flags()  # --help shows them as flags of the command
    flags.DEFINE_bool("distributed", False, "Join other processes, on one host or several, before starting.")
    flags.DEFINE_string("coordinator", None, "host:port of process 0, if the cluster does not provide it.")
    flags.DEFINE_integer("processes", None, "Number of processes, if the cluster does not provide it.")
    flags.DEFINE_integer("process", None, "Index of this process from 0, if the cluster does not provide it.")
    flags.DEFINE_float("join_seconds", 60.0, "Time limit for all processes to start.", lower_bound=1.0)


def join_cluster(settings: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Returns a context in which all processes work together; call it before any use of devices.

    Args:
        settings: Values that must be the same in all processes, by name.

    Raises:
        ValueError: There are flags of one process among several, but --distributed is missing.
    """
    place = {"coordinator": FLAGS.coordinator, "processes": FLAGS.processes, "process": FLAGS.process}
    if FLAGS.distributed:
        settings = {**settings, "the version of jax": jax.__version__}
        return cluster.join_cluster(**place, settings=settings, seconds=FLAGS.join_seconds)
    given = [f"--{flag}" for flag, value in place.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} without --distributed: add it, or remove the others to run one process")
    return nullcontext()


def parse_step(step: str) -> int | str:
    """Returns the value of --step: a number, "latest" or "best". Raises ValueError if it is neither."""
    if step not in (LATEST, BEST) and not step.isdigit():
        raise ValueError(f"--step is {step!r}; expected {LATEST!r} or {BEST!r} or a number of steps")
    return int(step) if step.isdigit() else step
