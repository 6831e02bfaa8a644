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
flags.DEFINE_integer("rows", 1, "")
import sys
if "--strict" in sys.argv:
    sys.argv.remove("--strict")
    flags.DEFINE_string("out", None, "", required=True)
    flags.DEFINE_multi_string("images", None, "")
    flags.DEFINE_string("table", None, "")
    flags.DEFINE_string("release", None, "")
    flags.mark_flags_as_mutual_exclusive(["table", "release"], required=True)
def main(*words):
    if flags.FLAGS.error:
        raise eval(flags.FLAGS.error)
    print(*words)
    return 4 if words else None
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
        (
            "OSError(28, 'No space left on device', 'a.txt')",
            "tidy: [Errno 28] No space left on device: 'a.txt'; free some space and run the same command again\n",
        ),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "unknown argument 'a'; options are written --name=value"),
        (["--row=3"], "unknown flag --row; did you mean --rows?"),
        (["--zzz"], "unknown flag --zzz; --help lists the flags"),
        (["--rows=x"], "--rows=x: invalid literal for int() with base 10: 'x'"),
        (["--strict", "--table=a"], "--out must be given; --help lists the flags"),
        (["--strict", "--table=a", "--rows", "3", "runs/a"], "--out must be given; write --out=runs/a"),
        (["--strict", "--out=a"], "either --table or --release must be given"),
        (["--strict", "--out=a", "--table=b", "--release=c"], "either --table or --release must be given, not both"),
        (["--strict", "--out=", "--table=b"], "--out is empty"),
        (["--strict", "--out=a", "--table=b", "--images="], "--images is empty"),
        (["--error=caf\udce9"], r"--error='caf\udce9' is not UTF-8; rename the folder, or use a link to it"),
    ],
)
def test_wrong_arguments_are_errors_of_one_line(arguments, message):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"tidy: {message}\n")
