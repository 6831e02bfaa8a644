"""Runs commands: parses flags, silences libraries and reports the user's errors in one line."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

FLAGS = flags.FLAGS


def run(name: str, main: Callable[..., int | None], *, positional: bool = False) -> None:
    """Parses the flags and calls `main`; its return value is the exit code.

    A ValueError or OSError, which is how the project reports wrong flags, configs, files and disks, ends the process
    with its message and exit code 1. `--verbosity=0` shows the traceback and the log messages of all libraries.

    Args:
        name: Name of the command, put before its error messages.
        main: The command; its flags are defined.
        positional: Whether it takes positional arguments. Otherwise they are errors.
    """

    def checked(argv: list[str]) -> int | None:
        if len(argv) > 1 and not positional:
            raise app.UsageError(f"unknown argument {argv[1]!r}; options are written --name=value")
        verbose = FLAGS["verbosity"].present and FLAGS.verbosity >= logging.INFO
        if not verbose:
            logging.set_verbosity(logging.WARNING)
        try:
            return main(*argv[1:])
        except (ValueError, OSError) as error:
            if verbose:
                raise
            sys.exit(f"{name}: {error}")

    app.run(checked, flags_parser=lambda argv: _parse_flags(name, argv))


def _parse_flags(name: str, argv: list[str]) -> list[str]:
    """Parses the flags; a config flag for a field that does not exist is an error of one line, too."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:  # from ml_collections, nested
        message: object = error
        while isinstance(message, Exception):
            message = message.args[0]
        sys.exit(f"{name}: unknown field of the config: {message}")
