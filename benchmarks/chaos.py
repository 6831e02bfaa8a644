"""A run that is killed again and again, beside one that is not: `python -m benchmarks.chaos --kills=20 --seed=1`.

Trains the demo's model on a small synthetic release in real processes, evaluating it in between, and kills them at
chosen instants: by SIGKILL, by SIGTERM, or by SIGKILL with a bit of the newest checkpoint flipped or a file of it cut
off. The same command starts them again. In the end the parameters, their average, the optimizer's state and the logs
are compared byte by byte with those of the run left alone. With `--processes=1,2,4` every start draws how many
processes share the devices; losses are then compared as numbers, for devices add in another order, and the rate is so
small that such differences do not grow. The last line is JSON. Exit code 1 where bytes or losses differ or a kill took
more steps than it may.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags

from cope_jax.parallel.monitor import EXIT_FAILED, EXIT_RETRY
from cope_jax.runs.checkpoints import UNFINISHED
from cope_jax.runs.manifest import FILE as MANIFEST

DEVICES, SAVE_INTERVAL, PORT = 4, 5, 21_000
# Steps that a kill may take where it leaves the checkpoints alone: a save is waited for when the next one begins, so
# until then it may not be there, and the newest that is there is two intervals old.
MOST_LOST = 2 * SAVE_INTERVAL
# Of the losses of runs by different numbers of processes, relative. By SHARED_RATE they agree to the six digits logged,
# and another batch has one 5% away; by the demo's rate rounding grows to 2% within 60 steps, without any kill.
MOST_LOSS_DIFFERENCE, SHARED_RATE = 1e-4, 1e-4
JOIN_SECONDS = 30  # that processes wait for one that was killed before it came
STOPPED = 75  # exit code of a run that was asked to stop
DAMAGE = "damage"
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, DAMAGE: signal.SIGKILL}
# When a process is killed, and how many seconds at most behind that: within a second of its start, while the first step
# compiles, between steps, while a save writes, when all of it is written and about to be renamed, while it evaluates.
INSTANTS = {"at once": 1.0, "compile": 2.0, "steps": 2.0, "saving": 0.05, "rename": 0.0, "evaluation": 0.5}
PATIENCE = 600.0  # seconds for a run to end that should
LOOK = 0.002  # seconds between two looks for an instant: a rename follows within some

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command; not at import, for the tests use the rest."""
    flags.DEFINE_integer("kills", 20, "How often the run is killed.", lower_bound=1)
    flags.DEFINE_integer("seed", 1, "Of the instants and kinds.")
    flags.DEFINE_integer("steps", 60, "Of the run.", lower_bound=2)
    flags.DEFINE_list("processes", ["1"], "Numbers of processes to draw from at each start; each divides 4.")


class Kill(NamedTuple):
    """How a process is to end: a key of SIGNALS, a key of INSTANTS."""

    kind: str
    instant: str


class Death(NamedTuple):
    """How one ended: at the last step that it had logged or saved, losing so many that no sound checkpoint had."""

    kill: Kill
    step: int
    lost: int


class Training:
    """A run's work directory and the processes that train in it."""

    def __init__(self, workdir: Path, words: Sequence[str], *, steps: int, devices: int = DEVICES):
        """Nothing is started yet.

        Args:
            workdir: of the run; its folder also takes the log and the compiled programs.
            words: options of training, besides the work directory.
            steps: of the run.
            devices: pretended ones, over all processes.
        """
        self.workdir, self.words, self.steps, self.devices = workdir, words, steps, devices
        self.log_path, self.starts = workdir.parent / f"{workdir.name}.log", 0
        self.metrics, self.recorded = workdir / "metrics.jsonl", workdir / "starts.jsonl"

    def start(self, count: int = 1) -> None:
        """Starts the run, or goes on with it, in some processes."""
        self.starts += 1
        words = ["-m", "cope_jax.train", f"--workdir={self.workdir}", *self.words]
        if count > 1:
            port = PORT + self.starts % 1000
            words += ["--distributed", f"--coordinator=localhost:{port}", f"--processes={count}"]
            words += [f"--join_seconds={JOIN_SECONDS}"]
        flag = f"--xla_force_host_platform_device_count={self.devices // count}"
        compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(self.workdir.parent / "compiled"))
        environment = os.environ | {
            "XLA_FLAGS": " ".join([*without_devices(os.environ.get("XLA_FLAGS", "")), flag]),
            "JAX_COMPILATION_CACHE_DIR": compiled,
            "PYTHONUNBUFFERED": "1",
        }
        self.log = self.log_path.open("a")
        self.began_at = self.log_path.stat().st_size
        self.before = [changed(path) for path in (self.metrics, self.recorded)]
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

    def said(self) -> str:
        """What this start has printed."""
        with self.log_path.open(encoding="utf-8", errors="replace") as file:
            file.seek(self.began_at)
            return file.read()

    def reached(self) -> int:
        """The last step that this start has logged; 0 before it takes up the log."""
        if changed(self.metrics) == self.before[0]:
            return 0
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def saved(self) -> list[int]:
        """Steps of the checkpoints, oldest first."""
        folder = self.workdir / "checkpoints"
        return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())

    def has_come(self, instant: str) -> bool:
        """Whether this start is where an instant begins."""
        if instant == "at once":
            return True
        said, folder = self.said(), self.workdir / "checkpoints"
        if instant == "compile":
            return changed(self.recorded) != self.before[1]
        if instant == "evaluation":
            return said.count(": evaluating") > said.count(" evaluated: ")
        if instant == "steps":
            return bool(re.search(r"^step +\d+/", said, re.MULTILINE))
        return any(folder.glob(f"*{UNFINISHED}/{MANIFEST}" if instant == "rename" else f"*{UNFINISHED}"))


def changed(path: Path) -> int:
    """When a file was changed last, in nanoseconds; 0 where there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def without_devices(words: str) -> list[str]:
    """XLA's flags but that for the number of devices."""
    return [word for word in words.split() if "device_count" not in word]


def run_to_the_end(training: Training) -> float:
    """Trains without interruption; seconds that it took."""
    began = time.monotonic()
    training.start()
    if any(training.wait()):
        raise RuntimeError(f"the run left alone failed; see {training.log_path}")
    return time.monotonic() - began


def run_with_kills(
    training: Training, kills: Iterable[Kill], rng: random.Random, processes: Sequence[int] = (1,)
) -> list[Death]:
    """Trains, killed in each of these ways in turn, until the run is at its end.

    A checkpoint is damaged only where another one is left to go back to; kills that can wait for that do.

    Returns:
        A death for each kill; fewer if the run was at its end before.

    Raises:
        RuntimeError: a process ended by itself, but not as it should.
    """
    pending, deaths = list(kills), []
    while True:
        training.start(rng.choice(processes))
        kill = next_kill(pending, training)
        if not (kill and comes(kill, training, rng)):
            codes = training.wait()
            if any(codes):
                raise RuntimeError(f"a process ended by itself with {codes}; see {training.log_path}")
            return deaths
        pending.remove(kill)
        rng.choice(training.processes).send_signal(SIGNALS[kill.kind])
        codes = training.wait()
        if unexpected := set(codes) - expected_codes(kill, len(codes)):
            raise RuntimeError(f"killed by {kill.kind}, processes ended with {unexpected}; see {training.log_path}")
        sound = [0, *training.saved()]
        reached = max(training.reached(), sound[-1])
        if kill.kind == DAMAGE:
            damage(training, sound.pop(), rng)
        deaths.append(Death(kill, reached, max(0, reached - sound[-1])))
        print(f"{time.strftime('%X')}  {kill.kind:<8}{kill.instant:<11}{deaths[-1][1:]}", file=sys.stderr, flush=True)


def expected_codes(kill: Kill, processes: int) -> set[int]:
    """How the processes of a run may end behind a kill."""
    codes = {-SIGNALS[kill.kind], -signal.SIGTERM, -signal.SIGKILL, STOPPED, EXIT_RETRY, 0}
    # One that is killed before it has joined the others is one that did not start, to them.
    return codes | {EXIT_FAILED} if kill.instant == "at once" and processes > 1 else codes


def next_kill(pending: Sequence[Kill], training: Training) -> Kill | None:
    """The first that is possible from the start on, else the first; None where all are done."""
    possible = [kill for kill in pending if kill.kind != DAMAGE or len(training.saved()) > 1]
    return next(iter(possible or pending), None)


def comes(kill: Kill, training: Training, rng: random.Random) -> bool:
    """Waits for the instant of a kill; False where the processes end before."""
    while training.alive():
        if training.has_come(kill.instant) and (kill.kind != DAMAGE or len(training.saved()) > 1):
            time.sleep(rng.uniform(0, INSTANTS[kill.instant]))
            return training.alive()
        time.sleep(LOOK)
    return False


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
    """Bytes in which the last states and the logs of two runs differ."""
    trees = [jax.tree.leaves(last_state(training)) for training in (one, other)]
    different = sum(count_differing(a.tobytes(), b.tobytes()) for a, b in zip(*trees, strict=True))
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        different += count_differing(*((run.workdir / name).read_bytes() for run in (one, other)))
    return different


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


def options(data: Path, steps: int, processes: Sequence[int] = (1,)) -> list[str]:
    """Of a short training of the demo's model that saves, evaluates and averages."""
    shared = [] if list(processes) == [1] else [f"--config.optimizer.rate={SHARED_RATE}"]
    return [
        "--config=configs/demo.py",
        f"--config.data.data_dir={data}",
        f"--config.train.steps={steps}",
        "--config.train.batch_size=16",
        "--config.train.log_every=3",  # windows that are open at most saves
        f"--config.train.checkpoint_every={SAVE_INTERVAL}",
        f"--config.train.evaluate_every={2 * SAVE_INTERVAL}",
        "--config.train.average_decay=0.9",
        "--config.optimizer.warmup_steps=1",
        "--config.eval.ways=5",
        *shared,
    ]


def all_kills(number: int, rng: random.Random) -> list[Kill]:
    """Kinds and instants equally often, in random order and in random pairs."""
    kinds, instants = ((list(choices) * number)[:number] for choices in (SIGNALS, INSTANTS))
    for choices in (kinds, instants):
        rng.shuffle(choices)
    return [Kill(*pair) for pair in zip(kinds, instants, strict=True)]


def summary(deaths: Sequence[Death]) -> dict[str, Any]:
    """Counts of kills, and by kind the most steps that one lost."""
    lost = defaultdict(list)
    for death in deaths:
        lost[death.kill.kind].append(death.lost)
    return {
        "kills": dict(Counter(death.kill.kind for death in deaths)),
        "instants": dict(Counter(death.kill.instant for death in deaths)),
        "steps_lost": {
            "each": [death.lost for death in deaths],
            "largest": {kind: max(each) for kind, each in lost.items()},
            "save_interval": SAVE_INTERVAL,
        },
    }


def shortcomings(deaths: Sequence[Death], different: int, loss_difference: float) -> list[str]:
    """What the run should have kept and did not, a sentence each."""
    lost = [
        f"{death.kill.kind} {death.kill.instant} at step {death.step} took {death.lost} steps, more than {MOST_LOST}"
        for death in deaths
        if death.kill.kind != DAMAGE and death.lost > MOST_LOST
    ]
    lost += [f"{different} bytes differ from the run left alone"] * bool(different)
    return lost + [f"losses differ by {loss_difference}, relative"] * (loss_difference > MOST_LOSS_DIFFERENCE)


def main(argv: list[str]) -> None:
    """Runs both and compares."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    jax.config.update("jax_num_cpu_devices", DEVICES)  # as the runs have: Orbax reads their checkpoints back on as many
    began, rng, steps = time.monotonic(), random.Random(FLAGS.seed), FLAGS.steps
    processes = [int(count) for count in FLAGS.processes]
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    words = options(make_data(folder), steps, processes)
    alone = Training(folder / "alone", words, steps=steps)
    print(f"left alone: {run_to_the_end(alone):.1f} s", file=sys.stderr)
    pending = all_kills(FLAGS.kills, rng)
    deaths, starts, runs, different, loss_difference = [], 0, 0, 0, 0.0
    while pending:  # a run may be at its end before all are used
        runs += 1
        killed = Training(folder / f"killed-{runs}", words, steps=steps)
        died = run_with_kills(killed, pending, rng, processes)
        for death in died:
            pending.remove(death.kill)
        deaths, starts = deaths + died, starts + killed.starts
        loss_difference = max(loss_difference, largest_loss_difference(killed, alone))
        if processes == [1]:
            different += differing_bytes(killed, alone)
    result = summary(deaths) | {
        "restarts": starts - runs,
        "runs": runs,
        "differing_bytes": different if processes == [1] else None,
        "largest_loss_difference": loss_difference,
        "seconds": round(time.monotonic() - began, 1),
    }
    shutil.rmtree(folder)
    print(json.dumps(result))
    if failed := shortcomings(deaths, different, loss_difference):
        sys.exit("; ".join(failed))


if __name__ == "__main__":
    define_flags()
    app.run(main)
