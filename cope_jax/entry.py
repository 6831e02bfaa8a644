"""What the commands of the package have in common: quiet libraries, and errors of the user in one sentence."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from absl import app, flags, logging

from cope_jax.training.cluster import joined

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # those defined here belong to the command that asks for them: its --help shows them


def define_cluster_flags() -> None:
    """Defines the flags of a command that several processes can run together."""
    flags.DEFINE_bool("distributed", False, "This is one process of several, on one host or on many: join them first.")
    flags.DEFINE_string("coordinator", None, "host:port of process 0; not needed where the cluster tells it.")
    flags.DEFINE_integer("processes", None, "Number of processes; not needed where the cluster tells it.")
    flags.DEFINE_integer("process", None, "Number of this process, from 0; not needed where the cluster tells it.")
    flags.DEFINE_float("join_seconds", 60.0, "How long processes wait for each other to start.", lower_bound=1.0)


def this_process(facts: Mapping[str, Any]) -> AbstractContextManager[None]:
    """What stands round the work of this process, before any use of a device: the other processes, or nothing.

    Args:
        facts: what must be the same in all processes, by name.

    Raises:
        ValueError: flags of one process among several, without saying that it is one.
    """
    place = {"coordinator": FLAGS.coordinator, "processes": FLAGS.processes, "process": FLAGS.process}
    if FLAGS.distributed:
        return joined(**place, facts=facts | {"the version of jax": jax.__version__}, seconds=FLAGS.join_seconds)
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


def run(name: str, main: Callable[..., None], *, positional: bool = False) -> None:
    """Parses the flags and calls `main`.

    A ValueError or OSError, which is how the package says that a flag, a config, a file or a disk is wrong, ends
    the process with its text and exit code 1; `--verbosity=0` shows where it came from, and all that libraries log.

    Args:
        name: of the command, in front of its errors.
        main: the command; its flags are defined.
        positional: whether it takes the arguments that are no flags; otherwise they are errors.
    """

    def checked(argv: list[str]) -> None:
        if len(argv) > 1 and not positional:
            raise app.UsageError(f"unknown argument {argv[1]!r}; options are written --name=value")
        loud = FLAGS["verbosity"].present and FLAGS.verbosity >= logging.INFO
        if not loud:
            logging.set_verbosity(logging.WARNING)
        try:
            main(*argv[1:])
        except (ValueError, OSError) as error:
            if loud:
                raise
            sys.exit(f"{name}: {error}")

    app.run(checked)
