"""Kills commands and compares what they finally write with uninterrupted ones: `python -m benchmarks.killed_commands`.

`embed`, `search build`, `export`, `eval` and `download` run at once on a small synthetic release, with the model of a
short training. Each is killed by SIGKILL at random instants, up to three times before the same command may finish. Then
its folder is compared, file by file, with that of an uninterrupted run; files in which two uninterrupted runs differ
are listed instead. The last line is JSON: for each command the number of kills, the files that differ, those that only
one has, the files left outside its folder, temporary ones included, and the processes that outlived a kill; then the
files that appeared in the run and the data. The exit code is 1 if there is any. `shared_memory` lists what appeared in
/dev/shm meanwhile; it may belong to other programs.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
from absl import app, flags

from benchmarks.chaos import make_data, training_options

FLAGS = flags.FLAGS
COMMANDS = ("embed", "index", "export", "eval", "download")
KILLS_IN_A_ROW = 3
EARLIEST = 0.3  # of the duration: before, a command only imports its modules
ORPHAN_SECONDS = 15.0  # time for the children of a killed process to end
LOCKS = (".lock",)  # name the last process that held them


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without logging requests."""

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


class QuietServer(ThreadingHTTPServer):
    """Serves many clients at once, without reporting those that were killed."""

    request_queue_size = 1000  # or it refuses some connections, and the number of tries is stored with a download

    def handle_error(self, request: object, client_address: object) -> None:
        """Reports nothing."""


class Command:
    """A command that writes to a folder and resumes if it is interrupted."""

    def __init__(self, name: str, words: Sequence[str], folder: Path):
        """`words` are the module and its flags, with `{out}` for the folder to write in `folder`."""
        self.name, self.words, self.folder = name, words, folder
        self.log, self.temporary = folder / "log", folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.seconds = 0.0  # of the latest run without an interruption

    def start(self, out: Path) -> subprocess.Popen:
        """Starts or resumes it."""
        with self.log.open("a") as log:
            words = [word.format(out=out) for word in self.words]
            return subprocess.Popen(
                [sys.executable, "-m", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TMPDIR": str(self.temporary)},
            )

    def finish(self, out: Path) -> dict[str, str]:
        """Runs it to its end; returns the SHA-256 of each file that it wrote.

        An export that exists is complete, and the command refuses to write it again.
        """
        if self.name == "export" and out.exists():
            return file_hashes(out)
        is_new, start = not out.exists(), time.monotonic()
        if code := self.start(out).wait():
            raise RuntimeError(f"{self.name} ended with exit code {code}; see {self.log}")
        if is_new:
            self.seconds = time.monotonic() - start
        return file_hashes(out)

    def kill(self, out: Path, rng: random.Random) -> tuple[bool, int]:
        """Starts it and kills it; returns whether it was still running, and how many children outlived it."""
        is_new, start = not out.exists(), time.monotonic()
        process = self.start(out)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(EARLIEST, 1.0) * self.seconds)
            if is_new:
                self.seconds = time.monotonic() - start
            return False, 0
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        return True, len(psutil.wait_procs(children, ORPHAN_SECONDS)[1])


def file_hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of a folder, without locks."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in LOCKS]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def names_of(folder: Path, *, without: Path | None = None) -> set[str]:
    """Returns the names of all files and folders below a folder, without those of one of its folders."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if without not in (path, *path.parents)}


def kill_and_compare(command: Command, kills: int, rng: random.Random) -> dict[str, object]:
    """Kills a command this often, lets it finish in between, and compares the results."""
    first, second = (command.finish(command.folder / f"whole-{i}") for i in range(2))
    varying = sorted(name for name in first if second.get(name) != first[name])
    done = orphans = rounds = 0
    differing: set[str] = set()
    out = command.folder / "killed"
    before = names_of(command.folder, without=out)
    while done < kills:
        rounds += 1
        for _ in range(KILLS_IN_A_ROW):
            running, left = command.kill(out, rng)
            done, orphans = done + running, orphans + left
            if not running:
                break
        found = command.finish(out)
        names = first.keys() | found.keys()
        changed = {name for name in names if found.get(name) != first.get(name)}
        differing |= {name for name in changed if not (name in varying and name in found)}
        shutil.rmtree(out)
        print(f"{command.name}: {done} kills in {rounds} rounds, differing: {sorted(differing)}", file=sys.stderr)
    result = {"kills": done, "files": len(first), "varying": varying, "differing": sorted(differing)}
    left = sorted(names_of(command.folder, without=out) - before)
    return result | {"left": left, "orphans": orphans, "seconds": round(command.seconds, 1)}


def make_commands(folder: Path, url: str) -> dict[str, Command]:
    """Trains a small model and returns the commands by name."""
    data, run = make_data(folder), folder / "run"
    options = [*training_options(data, FLAGS.steps), "--config.train.evaluate_every=0"]
    subprocess.run(
        [sys.executable, "-m", "cope_jax.train", f"--workdir={run}", *options], check=True, stdout=subprocess.DEVNULL
    )
    catalog = data / "catalog"
    words: Mapping[str, Sequence[str]] = {
        "embed": ("cope_jax.embed", f"--workdir={run}", "--split=train", "--out={out}"),
        "index": ("cope_jax.search", "build", f"--workdir={run}", "--embeddings={out}", "--split=train", "--kind=hnsw"),
        "export": ("cope_jax.export", f"--workdir={run}", "--out={out}"),
        "eval": ("cope_jax.evaluate", f"--workdir={run}", "--out={out}", "--nobaseline"),
        "download": ("data_prep.download", f"--catalog={catalog}", "--out={out}", f"--url_prefix={url}", "--rate=1000"),
    }
    return {name: Command(name, words[name], folder / name) for name in FLAGS.only or COMMANDS}


def main(_: Sequence[str]) -> None:
    """Runs the commands and prints the result."""
    folder = Path(tempfile.mkdtemp(prefix="killed-"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    shared = {*Path("/dev/shm").glob("*")}
    handler = partial(QuietHandler, directory=folder / "release/images")
    with QuietServer(("localhost", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        commands = make_commands(folder, f"http://localhost:{server.server_port}/")
        inputs = {name: names_of(folder / name) for name in ("run", "data")}
        with ThreadPoolExecutor(len(commands)) as pool:
            parts = {
                name: pool.submit(kill_and_compare, command, FLAGS.kills, random.Random(f"{FLAGS.seed} {name}"))
                for name, command in commands.items()
            }
            results = {name: part.result() for name, part in parts.items()}
        server.shutdown()
    added = sorted(f"{name}/{own}" for name, before in inputs.items() for own in names_of(folder / name) - before)
    left = sorted(path.name for path in {*Path("/dev/shm").glob("*")} - shared)
    print(json.dumps(results | {"inputs": added, "shared_memory": left}))
    if added or any(result["differing"] or result["left"] or result["orphans"] for result in results.values()):
        sys.exit(f"kills made a difference; see {folder}")
    shutil.rmtree(folder)


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_integer("kills", 30, "Number of kills of each command.", lower_bound=1)
    flags.DEFINE_list("only", [], f"Commands to kill; default: all of {', '.join(COMMANDS)}.")
    flags.DEFINE_integer("steps", 4, "Steps of the training.", lower_bound=2)
    flags.DEFINE_integer("seed", 1, "Seed of the instants.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
