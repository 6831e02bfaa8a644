"""A run that is killed again and again, beside one that is not: `python -m benchmarks.chaos --kills=20 --seed=1`.

Trains the demo's model on a small synthetic release in real processes, and kills them at random instants: by SIGKILL,
by SIGTERM, or by SIGKILL with a bit of the newest checkpoint flipped or a file of it cut off. The same command starts
them again. In the end the parameters, the optimizer's state and metrics.jsonl are compared byte by byte with those of
the run left alone. With `--processes=1,2,4` every start draws how many processes share the devices; losses are then
compared as numbers, for devices add in another order. The last line is JSON.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags

from cope_jax.training.cluster import LOST

DEVICES, SAVE_INTERVAL, PORT = 4, 5, 21_000
STOPPED = 75  # exit code of a run that was asked to stop
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "damage": signal.SIGKILL}
PATIENCE = 600.0  # seconds for a run to end that should

FLAGS = flags.FLAGS


class Lives(NamedTuple):
    """How a run got to its end.

    Attributes:
        kills: kind → how many.
        lost: steps done before each kill that were done again.
        starts: of the processes.
    """

    kills: Counter
    lost: list[int]
    starts: int


class Training:
    """A run's work directory and the processes that train in it."""

    def __init__(self, workdir: Path, data: Path, steps: int):
        """Nothing is started yet."""
        self.workdir, self.data, self.steps, self.starts = workdir, data, steps, 0

    def start(self, count: int = 1) -> None:
        """Starts the run, or goes on with it, in some processes."""
        self.starts += 1
        workdir = self.workdir
        words = [
            *("-m", "cope_jax.train", "--config=configs/demo.py", f"--workdir={workdir}"),
            f"--config.data.data_dir={self.data}",
            f"--config.train.steps={self.steps}",
            "--config.train.batch_size=32",
            "--config.train.log_every=3",  # windows that are open at most saves
            f"--config.train.checkpoint_every={SAVE_INTERVAL}",
            "--config.optimizer.warmup_steps=1",
        ]
        if count > 1:
            port = PORT + self.starts % 1000
            words += ["--distributed", f"--coordinator=localhost:{port}", f"--processes={count}"]
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // count}",
            "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
        }
        self.log = (workdir.parent / f"{workdir.name}.log").open("a")
        self.processes = [
            subprocess.Popen(
                [sys.executable, *words, *([f"--process={i}"] if count > 1 else [])],
                stdout=self.log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            for i in range(count)
        ]

    def alive(self) -> bool:
        """Whether a process runs."""
        return any(process.poll() is None for process in self.processes)

    def wait(self) -> list[int]:
        """Waits for all processes; their exit codes."""
        codes = [process.wait(PATIENCE) for process in self.processes]
        self.log.close()
        return codes

    def reached(self) -> int:
        """The last step of the progress that any start has logged."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def saved(self) -> list[int]:
        """Steps of the checkpoints, oldest first."""
        folder = self.workdir / "checkpoints"
        return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def run_to_the_end(training: Training) -> float:
    """Trains without interruption; seconds that it took."""
    began = time.monotonic()
    training.start()
    if any(training.wait()):
        raise RuntimeError(f"the run left alone failed; see {training.log.name}")
    return time.monotonic() - began


def run_with_kills(training: Training, kinds: Sequence[str], rng: random.Random, processes: Sequence[int]) -> Lives:
    """Trains, killed in each of these ways in turn at a random instant, until the run is at its end.

    Raises:
        RuntimeError: a process ended by itself, but not as it should.
    """
    kills, lost, last = Counter(), [], time.monotonic()
    startup = 4.0  # seconds; grows to what is seen
    pending = list(kinds)
    while True:
        training.start(rng.choice(processes))
        began = time.monotonic()
        first = None
        deadline = began + rng.uniform(0, startup + rng.uniform(1, 8)) if pending else began + PATIENCE
        while training.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
            if first is None and training.reached() > max([0, *training.saved()]):
                first = time.monotonic() - began
                startup = max(startup, first)
        if not training.alive():
            codes = training.wait()
            if any(codes):
                raise RuntimeError(f"a process ended by itself with {codes}; see {training.log.name}")
            return Lives(kills, lost, training.starts)
        kind = pending.pop(0)
        victim = rng.choice(training.processes)
        victim.send_signal(SIGNALS[kind])
        codes = training.wait()
        kills[kind] += 1
        if unexpected := set(codes) - {-SIGNALS[kind], -signal.SIGTERM, -signal.SIGKILL, STOPPED, LOST, 0}:
            raise RuntimeError(f"killed by {kind}, processes ended with {unexpected}; see {training.log.name}")
        reached = training.reached()
        sound = [0, *training.saved()]
        if kind == "damage" and len(sound) > 2:  # an older one is left to go back to
            damage(training, sound.pop(), rng)
        lost.append(max(0, reached - sound[-1]))
        print(f"{time.monotonic() - last:6.1f} s  {kind:<8}at step {reached}, {lost[-1]} lost", file=sys.stderr)
        last = time.monotonic()


def damage(training: Training, step: int, rng: random.Random) -> None:
    """Flips a bit of a checkpoint or cuts one of its files."""
    folder = training.workdir / "checkpoints" / str(step) / "state"
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1))
    content = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        del content[rng.randrange(len(content)) :]
    path.write_bytes(content)


def differing_bytes(one: Training, other: Training) -> int:
    """Bytes in which the last states and the metrics of two runs differ."""
    trees = [jax.tree.leaves(last_state(training)) for training in (one, other)]
    different = sum(count_differing(a.tobytes(), b.tobytes()) for a, b in zip(*trees, strict=True))
    return different + count_differing(*((run.workdir / "metrics.jsonl").read_bytes() for run in (one, other)))


def count_differing(one: bytes, other: bytes) -> int:
    """Positions at which two strings of bytes differ, and what one has more."""
    length = min(len(one), len(other))
    same = np.frombuffer(one[:length], np.uint8) == np.frombuffer(other[:length], np.uint8)
    return int(length - same.sum()) + abs(len(one) - len(other))


def last_state(training: Training) -> Any:
    """The state of the last step as numpy."""
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(training.workdir / "checkpoints" / str(training.steps) / "state")
    return jax.tree.map(np.asarray, state)


def largest_loss_difference(one: Training, other: Training) -> float:
    """Between the losses of two runs, relative."""
    curves = [
        np.array([json.loads(line)["loss"] for line in (run.workdir / "metrics.jsonl").read_text().splitlines()])
        for run in (one, other)
    ]
    return float(np.max(np.abs(curves[0] / curves[1] - 1)))


def make_data(folder: Path) -> Path:
    """Array records of a small synthetic release."""
    release, data = folder / "release", folder / "data"
    for words in (
        ("data_prep.synthetic", f"--out={release}", "--train_products=200", "--test_products=20"),
        ("data_prep.build", f"--release={release}", f"--data_dir={data}"),
    ):
        subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)
    return data


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_integer("kills", 20, "How often the run is killed.", lower_bound=1)
    flags.DEFINE_integer("seed", 1, "Of the instants and kinds.")
    flags.DEFINE_integer("steps", 60, "Of the run.", lower_bound=2)
    flags.DEFINE_list("processes", ["1"], "Numbers of processes to draw from at each start; each divides 4.")


def main(argv: list[str]) -> None:
    """Runs both and compares."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    jax.config.update("jax_num_cpu_devices", DEVICES)  # as the runs have: Orbax reads their checkpoints back on as many
    began, rng = time.monotonic(), random.Random(FLAGS.seed)
    processes = [int(count) for count in FLAGS.processes]
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    data = make_data(folder)
    alone = Training(folder / "alone", data, FLAGS.steps)
    print(f"left alone: {run_to_the_end(alone):.1f} s", file=sys.stderr)
    kinds = (list(SIGNALS) * FLAGS.kills)[: FLAGS.kills]
    rng.shuffle(kinds)
    kills, lost, starts, runs, different, loss_difference = Counter(), [], 0, 0, 0, 0.0
    while kills.total() < FLAGS.kills:  # a run may be at its end before all are used
        runs += 1
        killed = Training(folder / f"killed-{runs}", data, FLAGS.steps)
        lives = run_with_kills(killed, kinds[kills.total() :], rng, processes)
        kills, lost, starts = kills + lives.kills, lost + lives.lost, starts + lives.starts
        loss_difference = max(loss_difference, largest_loss_difference(killed, alone))
        if processes == [1]:
            different += differing_bytes(killed, alone)
    result = {
        "kills": dict(kills),
        "restarts": starts - runs,
        "runs": runs,
        "steps_lost": {"largest": max(lost), "mean": round(sum(lost) / len(lost), 2), "save_interval": SAVE_INTERVAL},
        "differing_bytes": different if processes == [1] else None,
        "largest_loss_difference": loss_difference,
        "seconds": round(time.monotonic() - began, 1),
    }
    shutil.rmtree(folder)
    print(json.dumps(result))


if __name__ == "__main__":
    define_flags()
    app.run(main)
