"""What the commands of the package have in common: quiet libraries, and errors of the user in one sentence."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

FLAGS = flags.FLAGS


def run(name: str, main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`.

    A ValueError or FileNotFoundError, which is how the package says that a flag, a config or a file is wrong, ends
    the process with its text and exit code 1; `--verbosity=0` shows where it came from, and all that libraries log.

    Args:
        name: of the command, in front of its errors.
        main: the command; its flags are defined.
    """

    def checked(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown argument {argv[1]!r}; options are written --name=value")
        loud = FLAGS["verbosity"].present and FLAGS.verbosity >= logging.INFO
        if not loud:
            logging.set_verbosity(logging.WARNING)
        try:
            main()
        except (ValueError, FileNotFoundError) as error:
            if loud:
                raise
            sys.exit(f"{name}: {error}")

    app.run(checked)
