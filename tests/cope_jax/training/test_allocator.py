"""mimalloc as the memory allocator of a process."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from cope_jax.training import allocator

PROGRAM = """
import os, sys
from cope_jax.training.allocator import preload_mimalloc

print("start", flush=True)
preload_mimalloc()
maps = open("/proc/self/maps").read()
print(os.getpid(), sys.argv[1:], "libmimalloc.so" in maps, "jax" in sys.modules)
"""


def test_a_process_restarts_itself_once_with_mimalloc():
    arguments = [sys.executable, "-c", PROGRAM, "--name=some value"]
    environment = {key: value for key, value in os.environ.items() if key != allocator.PURGE_DELAY}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        lines = process.stdout.read().splitlines()
    assert lines == ["start", "start", f"{process.pid} ['--name=some value'] True False"]


@pytest.mark.parametrize("reason", ["other devices", "not installed"])
def test_nothing_changes_if_mimalloc_does_not_help_or_is_not_installed(reason, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    assert set(allocator.mimalloc_environment()) == {"LD_PRELOAD", allocator.PURGE_DELAY}
    if reason == "other devices":
        monkeypatch.setattr(allocator, "computes_on_cpu", lambda: False)
    else:
        monkeypatch.setattr(allocator, "files", missing)
    assert allocator.mimalloc_environment() == {}


def test_another_preloaded_library_is_kept(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/lib/other.so")
    mimalloc, other = allocator.mimalloc_environment()["LD_PRELOAD"].split(":")
    assert os.path.exists(mimalloc)
    assert other == "/lib/other.so"
