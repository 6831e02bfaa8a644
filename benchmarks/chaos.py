"""Compares a run that is killed repeatedly with an uninterrupted one: `python -m benchmarks.chaos --kills=20 --seed=1`.

Trains the model of the demo on a small synthetic release in real processes, with evaluations, and kills the processes
at chosen moments: by SIGKILL, by SIGTERM, or by SIGKILL followed by damage to the newest checkpoint (a flipped bit or a
truncated file). The same command then restarts the run. In the end the parameters, their average, the state of the
optimizer and the logs are compared byte by byte with those of the uninterrupted run. With `--processes=1,2,4` the
number of processes that share the devices is drawn at each start. Losses are then compared as numbers, because devices
sum in a different order, with a learning rate so small that the differences do not grow. The last line is JSON. The
exit code is 1 if bytes or losses differ, or if a kill cost too many steps.
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
# Steps that a kill may cost unless it damages a checkpoint. A save is only awaited when the next one begins, so the
# newest complete checkpoint may be two intervals old.
MOST_STEPS_LOST = 2 * SAVE_INTERVAL
# Largest relative difference of losses between runs with different numbers of processes. With SHARED_RATE the losses
# agree to the six digits logged, while another batch differs by 5%. With the demo's learning rate, rounding errors grow
# to 2% within 60 steps, without any kill.
MOST_LOSS_DIFFERENCE, SHARED_RATE = 1e-4, 1e-4
JOIN_SECONDS = 30  # how long processes wait for one that was killed before it joined
STOPPED = 75  # exit code of a run that SIGTERM stopped
DAMAGE = "damage"
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, DAMAGE: signal.SIGKILL}
# Moments at which a process is killed, each with the largest delay in seconds: after its start, while the first step is
# compiled, between steps, while a checkpoint is written, before it is renamed, and during an evaluation.
MOMENTS = {"at once": 1.0, "compile": 2.0, "steps": 2.0, "saving": 0.05, "rename": 0.0, "evaluation": 0.5}
TIMEOUT = 600.0  # seconds for a run to end
POLL_INTERVAL = 0.002  # seconds; a checkpoint is renamed within a few milliseconds

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_integer("kills", 20, "Number of kills.", lower_bound=1)
    flags.DEFINE_integer("seed", 1, "Seed of the moments and kinds of the kills.")
    flags.DEFINE_integer("steps", 60, "Steps of the run.", lower_bound=2)
    flags.DEFINE_list("processes", ["1"], "Numbers of processes to draw from at each start; each divides 4.")


class Kill(NamedTuple):
    """A kill to carry out: its kind, a key of SIGNALS, and its moment, a key of MOMENTS."""

    kind: str
    moment: str


class Death(NamedTuple):
    """The outcome of a kill: the last step that was logged or saved, and the steps lost since a valid checkpoint."""

    kill: Kill
    step: int
    lost: int


class Training:
    """A run and the processes that train it."""

    def __init__(self, workdir: Path, options: Sequence[str], *, steps: int, devices: int = DEVICES):
        """Initializes the run without starting it.

        Args:
            workdir: Work directory of the run. The log and the compiled programs go to its parent.
            options: Options of training other than the work directory.
            steps: Number of steps of the run.
            devices: Number of simulated devices of all processes.
        """
        self.workdir, self.options, self.steps, self.devices = workdir, options, steps, devices
        self.log_path, self.starts = workdir.parent / f"{workdir.name}.log", 0
        self.metrics, self.recorded = workdir / "metrics.jsonl", workdir / "starts.jsonl"

    def start(self, count: int = 1) -> None:
        """Starts or resumes the run, in `count` processes."""
        self.starts += 1
        words = ["-m", "cope_jax.train", f"--workdir={self.workdir}", *self.options]
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
        self.log_start = self.log_path.stat().st_size
        self.before = [modification_time(path) for path in (self.metrics, self.recorded)]
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
        """Returns whether a process is running."""
        return any(process.poll() is None for process in self.processes)

    def wait(self) -> list[int]:
        """Waits for all processes and returns their exit codes."""
        codes = [process.wait(TIMEOUT) for process in self.processes]
        self.log.close()
        return codes

    def output(self) -> str:
        """Returns what has been printed since the last start."""
        with self.log_path.open(encoding="utf-8", errors="replace") as file:
            file.seek(self.log_start)
            return file.read()

    def last_logged_step(self) -> int:
        """Returns the last step that has been logged since the last start; 0 if the log has not changed."""
        if modification_time(self.metrics) == self.before[0]:
            return 0
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def saved_steps(self) -> list[int]:
        """Returns the steps of the checkpoints, oldest first."""
        folder = self.workdir / "checkpoints"
        return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())

    def has_reached(self, moment: str) -> bool:
        """Returns whether the run has reached a moment since the last start."""
        if moment == "at once":
            return True
        output, folder = self.output(), self.workdir / "checkpoints"
        if moment == "compile":
            return modification_time(self.recorded) != self.before[1]
        if moment == "evaluation":
            return output.count(": evaluating") > output.count(" evaluated: ")
        if moment == "steps":
            return bool(re.search(r"^step +\d+/", output, re.MULTILINE))
        return any(folder.glob(f"*{UNFINISHED}/{MANIFEST}" if moment == "rename" else f"*{UNFINISHED}"))


def modification_time(path: Path) -> int:
    """Returns when a file was last modified, in nanoseconds, or 0 if it does not exist."""
    return path.stat().st_mtime_ns if path.exists() else 0


def without_devices(words: str) -> list[str]:
    """Returns XLA's flags except for the number of devices."""
    return [word for word in words.split() if "device_count" not in word]


def run_to_the_end(training: Training) -> float:
    """Trains without interruption and returns the seconds that it takes."""
    start = time.monotonic()
    training.start()
    if any(training.wait()):
        raise RuntimeError(f"the uninterrupted run failed; see {training.log_path}")
    return time.monotonic() - start


def run_with_kills(
    training: Training, kills: Iterable[Kill], rng: random.Random, processes: Sequence[int] = (1,)
) -> list[Death]:
    """Trains to the end with these kills, in turn.

    A checkpoint is only damaged if there is another one to return to; until then other kills come first.

    Returns:
        A death for each kill; fewer if the run ends before.

    Raises:
        RuntimeError: A process ended with an unexpected exit code.
    """
    pending, deaths = list(kills), []
    while True:
        training.start(rng.choice(processes))
        kill = next_kill(pending, training)
        if not (kill and wait_for_moment(kill, training, rng)):
            codes = training.wait()
            if any(codes):
                raise RuntimeError(f"processes ended without a kill, with {codes}; see {training.log_path}")
            return deaths
        pending.remove(kill)
        rng.choice(training.processes).send_signal(SIGNALS[kill.kind])
        codes = training.wait()
        if unexpected := set(codes) - expected_codes(kill, len(codes)):
            raise RuntimeError(f"killed by {kill.kind}, processes ended with {unexpected}; see {training.log_path}")
        valid = [0, *training.saved_steps()]
        reached = max(training.last_logged_step(), valid[-1])
        if kill.kind == DAMAGE:
            damage_checkpoint(training, valid.pop(), rng)
        deaths.append(Death(kill, reached, max(0, reached - valid[-1])))
        print(f"{time.strftime('%X')}  {kill.kind:<8}{kill.moment:<11}{deaths[-1][1:]}", file=sys.stderr, flush=True)


def expected_codes(kill: Kill, processes: int) -> set[int]:
    """Returns the exit codes that the processes of a run may end with after a kill."""
    codes = {-SIGNALS[kill.kind], -signal.SIGTERM, -signal.SIGKILL, STOPPED, EXIT_RETRY, 0}
    # To the other processes, one that is killed before it has joined them is one that failed to start.
    return codes | {EXIT_FAILED} if kill.moment == "at once" and processes > 1 else codes


def next_kill(pending: Sequence[Kill], training: Training) -> Kill | None:
    """Returns the next kill: the first that is possible at once, else the first; None if none is left."""
    possible = [kill for kill in pending if kill.kind != DAMAGE or len(training.saved_steps()) > 1]
    return next(iter(possible or pending), None)


def wait_for_moment(kill: Kill, training: Training, rng: random.Random) -> bool:
    """Waits for the moment of a kill; returns False if the processes end before."""
    while training.alive():
        if training.has_reached(kill.moment) and (kill.kind != DAMAGE or len(training.saved_steps()) > 1):
            time.sleep(rng.uniform(0, MOMENTS[kill.moment]))
            return training.alive()
        time.sleep(POLL_INTERVAL)
    return False


def damage_checkpoint(training: Training, step: int, rng: random.Random) -> None:
    """Flips a bit of a checkpoint or truncates one of its files."""
    folder = training.workdir / "checkpoints" / str(step) / "state"
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1))
    content = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        del content[rng.randrange(len(content)) :]
    path.write_bytes(content)


def differing_bytes(one: Training, other: Training) -> int:
    """Returns the number of bytes in which the final states and the logs of two runs differ."""
    trees = [jax.tree.leaves(last_state(training)) for training in (one, other)]
    different = sum(count_differing(a.tobytes(), b.tobytes()) for a, b in zip(*trees, strict=True))
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        different += count_differing(*((run.workdir / name).read_bytes() for run in (one, other)))
    return different


def count_differing(one: bytes, other: bytes) -> int:
    """Returns the number of positions at which two byte strings differ, including those that only one has."""
    length = min(len(one), len(other))
    same = np.frombuffer(one[:length], np.uint8) == np.frombuffer(other[:length], np.uint8)
    return int(length - same.sum()) + abs(len(one) - len(other))


def last_state(training: Training) -> Any:
    """Returns the state of the last step as NumPy arrays."""
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(training.workdir / "checkpoints" / str(training.steps) / "state")
    return jax.tree.map(np.asarray, state)


def largest_loss_difference(one: Training, other: Training) -> float:
    """Returns the largest relative difference between the losses of two runs."""
    curves = [
        np.array([json.loads(line)["loss"] for line in (run.workdir / "metrics.jsonl").read_text().splitlines()])
        for run in (one, other)
    ]
    return float(np.max(np.abs(curves[0] / curves[1] - 1)))


def make_data(folder: Path) -> Path:
    """Writes the array records of a small synthetic release and returns their folder."""
    release, data = folder / "release", folder / "data"
    for words in (
        ("data_prep.synthetic", f"--out={release}", "--train_products=200", "--test_products=20"),
        ("data_prep.build", f"--release={release}", f"--data_dir={data}"),
    ):
        subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)
    return data


def training_options(data: Path, steps: int, processes: Sequence[int] = (1,)) -> list[str]:
    """Returns the options of a short training of the demo's model that saves, evaluates and averages."""
    shared = [] if list(processes) == [1] else [f"--config.optimizer.rate={SHARED_RATE}"]
    return [
        "--config=configs/demo.py",
        f"--config.data.data_dir={data}",
        f"--config.train.steps={steps}",
        "--config.train.batch_size=16",
        "--config.train.log_every=3",  # not a divisor of the save interval: most saves are within a window of the log
        f"--config.train.checkpoint_every={SAVE_INTERVAL}",
        f"--config.train.evaluate_every={2 * SAVE_INTERVAL}",
        "--config.train.average_decay=0.9",
        "--config.optimizer.warmup_steps=1",
        "--config.eval.ways=5",
        *shared,
    ]


def all_kills(number: int, rng: random.Random) -> list[Kill]:
    """Draws kills with all kinds and all moments equally often, in random order and random pairs."""
    kinds, moments = ((list(choices) * number)[:number] for choices in (SIGNALS, MOMENTS))
    for choices in (kinds, moments):
        rng.shuffle(choices)
    return [Kill(*pair) for pair in zip(kinds, moments, strict=True)]


def summarize(deaths: Sequence[Death]) -> dict[str, Any]:
    """Counts the kills by kind and moment, and the steps that they cost."""
    lost = defaultdict(list)
    for death in deaths:
        lost[death.kill.kind].append(death.lost)
    return {
        "kills": dict(Counter(death.kill.kind for death in deaths)),
        "instants": dict(Counter(death.kill.moment for death in deaths)),
        "steps_lost": {
            "each": [death.lost for death in deaths],
            "largest": {kind: max(each) for kind, each in lost.items()},
            "save_interval": SAVE_INTERVAL,
        },
    }


def find_problems(deaths: Sequence[Death], different: int, loss_difference: float) -> list[str]:
    """Returns a sentence for each way in which the killed run fell short."""
    problems = [
        f"{kill.kind} {kill.moment} at step {step} lost {lost} steps, more than {MOST_STEPS_LOST}"
        for kill, step, lost in deaths
        if kill.kind != DAMAGE and lost > MOST_STEPS_LOST
    ]
    problems += [f"{different} bytes differ from the uninterrupted run"] * bool(different)
    return problems + [f"losses have a relative difference of {loss_difference}"] * (
        loss_difference > MOST_LOSS_DIFFERENCE
    )


def main(_: list[str]) -> None:
    """Runs both, compares them and prints the result."""
    jax.config.update("jax_num_cpu_devices", DEVICES)  # as in the runs: Orbax restores checkpoints on as many devices
    start, rng, steps = time.monotonic(), random.Random(FLAGS.seed), FLAGS.steps
    processes = [int(count) for count in FLAGS.processes]
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    options = training_options(make_data(folder), steps, processes)
    uninterrupted = Training(folder / "uninterrupted", options, steps=steps)
    print(f"uninterrupted: {run_to_the_end(uninterrupted):.1f} s", file=sys.stderr)
    pending = all_kills(FLAGS.kills, rng)
    deaths, starts, runs, different, loss_difference = [], 0, 0, 0, 0.0
    while pending:  # a run may end before all kills are used
        runs += 1
        killed = Training(folder / f"killed-{runs}", options, steps=steps)
        died = run_with_kills(killed, pending, rng, processes)
        for death in died:
            pending.remove(death.kill)
        deaths, starts = deaths + died, starts + killed.starts
        loss_difference = max(loss_difference, largest_loss_difference(killed, uninterrupted))
        if processes == [1]:
            different += differing_bytes(killed, uninterrupted)
    result = summarize(deaths) | {
        "restarts": starts - runs,
        "runs": runs,
        "differing_bytes": different if processes == [1] else None,
        "largest_loss_difference": loss_difference,
        "seconds": round(time.monotonic() - start, 1),
    }
    shutil.rmtree(folder)
    print(json.dumps(result))
    if problems := find_problems(deaths, different, loss_difference):
        sys.exit("; ".join(problems))


if __name__ == "__main__":
    define_flags()
    app.run(main)
