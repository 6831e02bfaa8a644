"""Tests of the program `cope`."""

import subprocess
import sys
from pathlib import Path

import pytest

import cope_jax
from cope_jax.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]


def cope(*words: str, code: str = "") -> subprocess.CompletedProcess:
    """Runs `cope` in a fresh interpreter, after some code."""
    program = f"{code}\nimport sys\nfrom cope_jax.__main__ import main\nsys.argv[1:] = {list(words)}\nmain()"
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_help_lists_every_command():
    output = cope("--help").stdout
    assert all(f"  {name} " in output and command.summary in output for name, command in COMMANDS.items())


def test_version():
    assert cope("--version").stdout == f"cope-jax {cope_jax.__version__}\n"


def test_a_command_sees_its_own_arguments():
    done = cope("compare", "runs/nowhere")
    assert done.returncode == 1
    assert "compare: 1 runs given" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "cope: unknown command 'trian'; choose one of demo, grocery, "),
        (["tfds", "convert_format"], "cope: of TFDS's commands only 'build' works without TensorFlow"),
        (["grocery"], "grocery: give the path of a checkout of GroceryStoreDataset"),
        (["grocery", "/nowhere"], "grocery: no folder /nowhere"),
    ],
)
def test_user_errors_are_reported_in_one_sentence(words, message):
    done = cope(*words)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("package", "command", "words"), [("faiss", "search", []), ("uvloop", "download", ["--catalog=x", "--out=y"])]
)
def test_a_missing_optional_package_names_the_extra(package, command, words):
    done = cope(command, *words, code=f"import sys\nsys.modules['{package}'] = None")
    assert done.stderr == f"cope: {command} needs the package {package}: pip install 'cope-jax[{command}]'\n"


def test_help_of_download_needs_no_optional_packages():
    packages = ("aiohttp", "backports", "brotli", "tenacity", "uvloop", "yarl")
    done = cope("download", "--help", code=f"import sys\nsys.modules.update(dict.fromkeys({packages}))")
    assert "--url_prefix" in done.stdout
    assert not done.stderr


def test_a_missing_required_package_is_an_ordinary_error():
    done = cope("train", code="import sys\nsys.modules['orbax'] = None")
    assert "ModuleNotFoundError" in done.stderr
