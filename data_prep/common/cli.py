"""Runs commands: parses flags, silences libraries and reports the user's errors in one line."""

import difflib
import errno
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from data_prep.common.interrupts import handling_interrupts

FLAGS = flags.FLAGS
CONFIG_CODE = ("<module>", "get_config")  # names of the code of a config file
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def run(name: str, main: Callable[..., int | None], *, positional: bool = False) -> None:
    """Parses the flags and calls `main`; its return value is the exit code.

    A ValueError or OSError, which is how the project reports wrong flags, configs, files and disks, ends the process
    with its message and exit code 1, and Ctrl-C with a line and exit code 130. `--verbosity=0` shows the traceback and
    the log messages of all libraries.

    Args:
        name: Name of the command, put before its error messages.
        main: The command; its flags are defined.
        positional: Whether it takes positional arguments. Otherwise they are errors.
    """

    def checked(argv: list[str]) -> int | None:
        if len(argv) > 1 and not positional:
            sys.exit(f"{name}: unknown argument {argv[1]!r}; options are written --name=value")
        verbose = FLAGS["verbosity"].present and FLAGS.verbosity >= logging.INFO
        if not verbose:
            logging.set_verbosity(logging.WARNING)
        try:
            return main(*argv[1:])
        except (ValueError, OSError) as error:
            if verbose:
                raise
            is_full = isinstance(error, OSError) and error.errno in DISK_FULL
            sys.exit(f"{name}: {error}" + ("; free some space and run the same command again" if is_full else ""))

    with handling_interrupts(name):
        app.run(checked, flags_parser=lambda argv: _parse_flags(name, argv))


def _parse_flags(name: str, argv: list[str]) -> list[str]:
    """Parses the flags; invalid ones end the process with a line that says what to change."""
    try:
        rest = _parse_config(name, argv)
    except flags.UnrecognizedFlagError as error:
        similar = difflib.get_close_matches(error.flagname, FLAGS.flag_values_dict(), cutoff=0.7)
        remedy = f"did you mean --{similar[0]}?" if similar else "--help lists the flags"
        sys.exit(f"{name}: unknown flag --{error.flagname}; {remedy}")
    except flags.Error as error:
        sys.exit(f"{name}: {_explain(str(error), _first_positional(argv))}")
    except (AttributeError, KeyError) as error:  # from ml_collections, nested
        message: object = error
        while isinstance(message, Exception):
            message = message.args[0]
        sys.exit(f"{name}: unknown field of the config: {message}")
    for flag in map(FLAGS.__getitem__, FLAGS):
        if flag.present:
            _check_texts(name, flag)
    return rest


def _parse_config(name: str, argv: list[str]) -> list[str]:
    """Parses the flags; any error in a config file, which is the user's code, ends the process with its line."""
    try:
        return FLAGS(argv)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__ or cause
        places = [(f.filename, f.lineno) for f in traceback.extract_tb(cause.__traceback__) if f.name in CONFIG_CODE]
        if not places and not isinstance(cause, SyntaxError):
            raise
        file, line = (cause.filename, cause.lineno) if isinstance(cause, SyntaxError) else places[-1]
        message = cause.msg if isinstance(cause, SyntaxError) else str(cause)
        sys.exit(f"{name}: {file}, line {line}: {type(cause).__name__}: {message}")


def _check_texts(name: str, flag: flags.Flag) -> None:
    for value in flag.value if isinstance(flag.value, list) else [flag.value]:
        if value == "" and flag.default is None:  # pathlib takes it for the current folder
            sys.exit(f"{name}: --{flag.name} is empty")
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):  # Python's substitutes for other bytes
            sys.exit(f"{name}: --{flag.name}={value!a} is not UTF-8; rename the folder, or use a link to it")


def _explain(message: str, positional: str | None) -> str:
    """Rewrites absl's message about flags for people who have not read its documentation."""
    if missing := re.findall(r"flag --(\w+)=None: Flag --\1 must have a value other than None", message):
        given = len(missing) == 1 and positional is not None
        remedy = f"write --{missing[0]}={positional}" if given else "--help lists the flags"
        return f"{', '.join(f'--{flag}' for flag in missing)} must be given; {remedy}"
    if one_of := re.match(r"flags (.*?): Exactly one of \((.*)\) must", message):
        names = " or ".join(f"--{flag}" for flag in one_of[2].split(", "))
        return f"either {names} must be given" + ("" if "=None, " in f"{one_of[1]}, " else ", not both")
    return message.removeprefix("flag ")


def _first_positional(argv: Sequence[str]) -> str | None:
    """Returns the first argument that belongs to no flag, at which absl stops parsing."""
    arguments = iter(argv[1:])
    for argument in arguments:
        if not argument.startswith("-"):
            return argument
        flag = argument.lstrip("-")
        if flag in FLAGS and not FLAGS[flag].boolean:
            next(arguments, None)  # its value
    return None
