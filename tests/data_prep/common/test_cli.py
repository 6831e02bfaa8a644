"""The frame of a command: arguments, exit codes and one-line errors."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMMAND = """
from absl import flags
from data_prep.common import cli
flags.DEFINE_string("error", "", "")
flags.DEFINE_bool("positional", False, "")
def main(*words):
    if flags.FLAGS.error:
        raise eval(flags.FLAGS.error)
    print(*words)
    return 4 if words else None
import sys
cli.run("tidy", main, positional="--positional" in sys.argv)
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "code", "output"),
    [([], 0, "\n"), (["--positional", "a", "b"], 4, "a b\n")],
)
def test_the_exit_code_is_what_the_command_returns(arguments, code, output):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (code, output, "")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("ValueError('--rate is 0')", "tidy: --rate is 0\n"),
        ("FileNotFoundError(2, 'No such file', 'a.txt')", "tidy: [Errno 2] No such file: 'a.txt'\n"),
    ],
)
def test_errors_of_the_user_are_one_line(error, message):
    done = run(f"--error={error}")
    assert (done.returncode, done.stderr) == (1, message)
    verbose = run(f"--error={error}", "--verbosity=0")
    assert verbose.returncode == 1
    assert "Traceback" in verbose.stderr


def test_other_errors_keep_their_traceback():
    done = run("--error=KeyError('a bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_unknown_arguments_are_errors():
    done = run("a")
    assert done.returncode == 1
    assert "unknown argument 'a'; options are written --name=value" in done.stdout + done.stderr
