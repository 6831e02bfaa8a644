"""Runs commands in forks of a process that has imported the modules of all commands, which takes longer than most do.

python -m tests.forks     reads commands as JSON, one per line, runs one after the other, and prints their exit codes
"""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

from cope_jax.__main__ import main
from cope_jax.training.allocator import PURGE_DELAY

ROOT = Path(__file__).parents[1]
SECONDS = 600  # after which a command is killed


def import_modules() -> None:
    """Imports all modules of the packages but those that are run as programs, and those that use bm25s.

    That computes with JAX when it is imported, and JAX cannot be forked after it has computed.
    """
    for path in (path for package in ("cope_jax", "data_prep") for path in sorted((ROOT / package).glob("*/**/*.py"))):
        if path.stem != "__main__" and path.parent.name != "search":
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))


def serve() -> None:
    """Forks a process for each command; that process returns from here and goes on with the command."""
    import_modules()
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        words, output, errors = json.loads(line)
        if process := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
            continue
        signal.alarm(SECONDS)
        for path, number in ((os.devnull, 0), (output, 1), (errors, 2)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        sys.argv = ["cope", *words]
        main()
        break


@contextmanager
def command_runner(folder: Path, environment: dict[str, str]) -> Iterator[Callable[..., CompletedProcess]]:
    """Yields a function that runs a command with arguments to its end; what it prints goes through files in `folder`.

    Training does not restart itself with another allocator, as it would have to import everything again.
    """
    environment = environment | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", PURGE_DELAY: "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-W", "ignore:os.fork:RuntimeWarning", "-m", "tests.forks"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as server:

        def run(*words: str) -> CompletedProcess:
            output, errors = paths = folder / "output", folder / "errors"
            for path in paths:
                path.unlink(missing_ok=True)
            print(json.dumps([words, str(output), str(errors)]), file=server.stdin, flush=True)
            code = int(server.stdout.readline())
            return CompletedProcess(words, code, output.read_text("utf-8"), errors.read_text("utf-8"))

        yield run
        server.stdin.close()


if __name__ == "__main__":
    serve()
