"""Several processes train like one, start only if they fit together, and end together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cope_jax.parallel.cluster import accept_peers, connect, detect_cluster
from cope_jax.parallel.monitor import EXIT_FAILED, EXIT_RETRY, HEARTBEAT_TIMEOUT
from cope_jax.training.loop import train

ROOT = Path(__file__).parents[3]
HOST = socket.gethostname()
# Steps without a model, which start within seconds. In step 3, the processes in `actors` run some code.
MEMBER = """
import os, signal, sys, time
from jax.experimental import multihost_utils
from cope_jax.parallel import cluster, monitor

coordinator, processes, process, actors, code, timeout = sys.argv[1:]
monitor.HEARTBEAT_TIMEOUT, monitor.GRACE_PERIOD = float(timeout), 1.0
cluster.HEARTBEAT_TIMEOUT = float(timeout)
with cluster.join_cluster(coordinator, int(processes), int(process), settings={}, seconds=100):
    for step in range(1_000_000):
        multihost_utils.sync_global_devices("step")
        if step == 3 and process in actors:
            exec(code)
"""
STOPPABLE = MEMBER.replace("seconds=100):", "seconds=100), StopSignal() as stop:")
STOPPABLE = "from cope_jax.training.signals import StopSignal\n" + STOPPABLE
STOPPABLE += """
        if stop.agreed(step):
            print("stopped after", step, flush=True)
            break
"""

# Both processes lock the first work directory; then each locks one of its own.
LOCKER = """
import sys
from pathlib import Path
from cope_jax.parallel import cluster, monitor, processes as storage
from cope_jax.training import loop

coordinator, processes, process, *workdirs = sys.argv[1:]
storage.STORAGE_TIMEOUT = monitor.GRACE_PERIOD = 1.0
with cluster.join_cluster(coordinator, int(processes), int(process), settings={}, seconds=100):
    for workdir in workdirs[0], workdirs[int(process)]:
        with loop.locked_workdir(Path(workdir)):
            print("locked", workdir, flush=True)
"""

# Three saves of an array that is sharded over the processes; during the second one, the disk of some of them is full.
SAVER = """
import resource, signal, sys
from pathlib import Path
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from cope_jax.runs import checkpoints
from cope_jax.parallel import cluster
from cope_jax.runs.checkpoints import TrainState

coordinator, processes, process, failing, workdir = sys.argv[1:]
checkpoints.SAVE_SECONDS = 5
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with cluster.join_cluster(coordinator, int(processes), int(process), settings={}, seconds=100):
    sharding = NamedSharding(Mesh(jax.devices(), "all"), PartitionSpec("all"))
    values = jax.jit(lambda: jax.random.normal(jax.random.key(0), (200_000,)), out_shardings=sharding)()
    with checkpoints.Checkpoints(Path(workdir), keep=1) as kept:
        for step in 1, 2, 3:
            size = 100_000 if step == 2 and process in failing else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            kept.save(step, TrainState(values, {}, {}, {}), {})
            print(step, kept.wait(), kept.latest(), flush=True)
"""


def free_address() -> str:
    """An address below the ports that outgoing connections use, so that it stays free."""
    for port in range(20_000 + os.getpid() % 5_000, 30_000):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)):
                return f"localhost:{port}"
    raise AssertionError("no free port")


def start(*arguments):
    """Starts a Python process with one fake device."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(processes, timeout=500):
    """Returns (exit code, output, errors) of each process; kills those that do not end."""
    try:
        texts = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def start_members(number, *, actors, code, program=MEMBER, timeout=HEARTBEAT_TIMEOUT):
    address = free_address()
    return [start("-c", program, address, str(number), str(i), str(actors), code, str(timeout)) for i in range(number)]


def copy_until(source, target, step):
    """Copies a work directory as if the run had been killed after a step."""
    shutil.copytree(source, target)
    for path in (target / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)


@pytest.mark.slow
def test_a_run_resumes_with_the_same_losses_in_another_number_of_processes(make_quick_config, write_config, tmp_path):
    """From one process with two devices to two, joined by the tensor axis of their mesh, and back.

    A test of the README's command covers two processes that read different shares of a batch.
    """
    config = make_quick_config(**{"train.keep_checkpoints": 3})
    words = ["-m", "cope_jax.train", f"--config={write_config(config)}", f"--workdir={tmp_path / 'two'}"]
    words += ["--config.mesh.data=1", "--config.mesh.tensor=2"]
    words += ["--distributed", f"--coordinator={free_address()}", "--processes=2"]
    train(config, tmp_path / "one")
    copy_until(tmp_path / "one", tmp_path / "two", 2)
    for code, output, errors in wait_for([start(*words, f"--process={i}") for i in range(2)]):
        assert code == 0, output + errors
        assert "resuming from step 2" in output
    copy_until(tmp_path / "two", tmp_path / "back", 4)
    train(config, tmp_path / "back")
    curves = {}
    for name in ("one", "two", "back"):
        lines = (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        curves[name] = {line["step"]: line["loss"] for line in map(json.loads, lines)}
    assert list(curves["one"]) == [1, 2, 3, 4, 5]
    assert curves["two"] == pytest.approx(curves["one"], rel=1e-5)
    assert curves["back"] == pytest.approx(curves["one"], rel=1e-5)


def test_a_signal_to_one_process_stops_all_after_the_same_step():
    """SIGINT, which is forwarded as the SIGTERM that schedulers send."""
    code = "os.kill(os.getpid(), signal.SIGINT)"
    (exit_code, first, _), (other_exit_code, second, _) = wait_for(
        start_members(2, actors=1, code=code, program=STOPPABLE)
    )
    assert (exit_code, other_exit_code) == (0, 0)
    assert "stopped after" in first
    assert first.splitlines()[-1] == second.splitlines()[-1]


@pytest.mark.slow
def test_a_signal_before_the_first_step_stops_a_resumed_run_and_a_second_one_kills_it():
    """The first step is number 3 here; JAX has received the signal before StopSignal asks about it."""
    kill = "if process == '1': os.kill(os.getpid(), signal.SIGTERM)"
    program = STOPPABLE.replace("range(", "range(3, ") + f"    {kill}\n    time.sleep(100)\n"
    (exit_code, first, _), (other_exit_code, second, _) = wait_for(
        start_members(2, actors="01", code=f"{kill}\ntime.sleep(3)", program=program), timeout=100
    )
    assert (exit_code, other_exit_code) == (EXIT_RETRY, 128 + signal.SIGTERM)
    for output in (first, second):
        assert output.splitlines()[-1] == "stopped after 3"


@pytest.mark.slow
def test_a_work_directory_that_is_not_shared_is_an_error(tmp_path):
    address, folders = free_address(), [str(tmp_path / name) for name in ("zero", "one")]
    for folder in folders:
        Path(folder).mkdir()
    for exit_code, output, errors in wait_for([start("-c", LOCKER, address, "2", str(i), *folders) for i in range(2)]):
        assert exit_code == 1
        assert [line for line in output.splitlines() if "Gloo" not in line] == [f"locked {folders[0]}"]
        assert "ValueError: process 1 of 2 does not see what process 0 writes to" in errors
        assert "--workdir must be on storage that all hosts share, under the same path" in errors


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["01", "1"])
def test_a_save_that_fails_in_some_processes_fails_in_all_and_the_next_one_succeeds(tmp_path, failing):
    address = free_address()
    processes = [start("-c", SAVER, address, "2", str(i), failing, str(tmp_path)) for i in range(2)]
    for exit_code, output, errors in wait_for(processes):
        assert exit_code == 0, output + errors
        assert output.splitlines()[-3:] == ["1 True 1", "2 False 1", "3 True 3"]
        assert "saving step 2 in" in errors
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


@pytest.mark.parametrize("actor", [0, 1])
def test_a_killed_process_ends_the_others_with_its_name(actor):
    processes = start_members(3, actors=actor, code="os.kill(os.getpid(), signal.SIGKILL)")
    processes[actor].wait(500)
    killed = time.monotonic()
    results = wait_for(processes)
    assert time.monotonic() - killed < 60
    assert results.pop(actor)[0] == -signal.SIGKILL
    for exit_code, _, errors in results:
        assert exit_code == EXIT_RETRY
        assert f"process {actor} of 3 (host {HOST}) is gone: killed, crashed or disconnected" in errors
        assert "run the same command on all hosts again to resume from the last checkpoint" in errors


@pytest.mark.slow
@pytest.mark.parametrize("actor", [0, 1])
def test_a_hanging_process_ends_the_others_with_its_name(actor):
    processes = start_members(2, actors=actor, code="os.kill(os.getpid(), signal.SIGSTOP)", timeout=5.0)
    hanging = processes.pop(actor)
    ((exit_code, _, errors),) = wait_for(processes)
    hanging.kill()
    hanging.communicate()
    assert exit_code == EXIT_RETRY
    assert f"process {actor} of 2 (host {HOST}) sent no heartbeat for 5 s" in errors


@pytest.mark.slow
@pytest.mark.parametrize("actor", [0, 1])
def test_an_error_in_one_process_is_reported_by_all(actor):
    results = wait_for(start_members(2, actors=actor, code="raise FileNotFoundError('no data here')"))
    assert [exit_code for exit_code, _, _ in results] == [EXIT_FAILED, EXIT_FAILED]
    assert "Traceback" in results[actor][2]
    assert f"process {actor} of 2 (host {HOST}) ended with FileNotFoundError: no data here" in results[1 - actor][2]


def hello(process, processes, settings):
    name = f"process {process} of {processes} (host {HOST})"
    return {"name": name, "process": process, "settings": {"--processes": processes, **settings}}


def meet(*hellos, processes=2, settings=None, seconds=5.0):
    """Lets process 0 and others meet; returns the error or the names of the peers for each of them."""
    address = free_address()

    def outcome(join, message):
        try:
            peers = join(address, message, seconds=seconds)
        except ValueError as error:
            return str(error)
        peers = peers if isinstance(peers, list) else [peers]
        for peer in peers:
            peer.close()
        return [peer.name for peer in peers]

    with ThreadPoolExecutor() as pool:
        zero = pool.submit(outcome, accept_peers, hello(0, processes, settings or {}))
        others = [pool.submit(outcome, connect, message) for message in hellos]
        return [future.result() for future in (zero, *others)]


def test_processes_that_agree_learn_their_names():
    zero, one = meet(hello(1, 2, {"a": [1, 2]}), settings={"a": [1, 2]})
    assert zero == [f"process 1 of 2 (host {HOST})"]
    assert one == [f"process 0 of 2 (host {HOST})"]


def test_all_processes_report_all_differences():
    errors = meet(hello(1, 3, {"a": 1, "b": 2}), hello(2, 3, {"a": 5}), processes=3, settings={"a": 1, "b": 3})
    assert len(set(errors)) == 1
    for difference in (
        f"b is 2 in process 1 of 3 (host {HOST}) and 3 in process 0",
        f"a is 5 in process 2 of 3 (host {HOST}) and 1 in process 0",
        f"b is None in process 2 of 3 (host {HOST}) and 3 in process 0",
    ):
        assert difference in errors[0]


@pytest.mark.parametrize("number", [1, 3])
def test_another_number_of_processes_is_an_error(number, monkeypatch):
    monkeypatch.setattr("cope_jax.parallel.cluster.GRACE_PERIOD", 0.5)
    zero, other = meet(hello(number, 4, {}))
    assert zero == other
    assert zero.endswith(f"differently: --processes is 4 in process {number} of 4 (host {HOST}) and 2 in process 0")


def test_two_processes_with_the_same_number_are_an_error(monkeypatch):
    monkeypatch.setattr("cope_jax.parallel.cluster.GRACE_PERIOD", 0.5)
    zero, one, two = meet(hello(1, 3, {}), hello(1, 3, {}), processes=3)
    name = f"process 1 of 3 (host {HOST})"
    assert zero == one == two == f"the processes were started differently: two have --process=1, {name} and {name}"


def test_processes_that_do_not_start_are_named():
    zero, two = meet(hello(2, 4, {}), processes=4, seconds=1.0)
    assert zero == two
    assert "of 4 processes, 1, 3 did not start within 1 s: see their logs, or wait longer with --join_seconds" in zero


def test_a_coordinator_that_does_not_answer_is_named():
    address = free_address()
    with pytest.raises(ValueError, match=rf"process 0 did not answer at {address} within 1 s \(.*refused"):
        connect(address, hello(1, 2, {}), seconds=1.0)


def test_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=rf"process 0 cannot listen on port {port} of .* choose another port"):
            accept_peers(f"localhost:{port}", hello(0, 2, {}), seconds=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, None), r"provides --coordinator=HOST:PORT, --processes, --process; set what is missing"),
        (("host:1", 2, None), r"JAX detects no cluster that provides --process; set"),
        (("host", 2, 0), r"--coordinator is 'host'; it must be HOST:PORT"),
        (("host:x", 2, 0), r"--coordinator is 'host:x'; it must be HOST:PORT"),
        (("host:1", 2, 2), r"--process=2 must be at least 0 and less than --processes=2"),
        (("host:1", 2, -1), r"--process=-1 must be at least 0 and less than --processes=2"),
    ],
)
def test_missing_or_invalid_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        detect_cluster(*arguments, seconds=1.0)


def test_slurm_is_detected(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "4097",
        "SLURM_STEP_NODELIST": "node[007-009]",
        "SLURM_NTASKS": "6",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert detect_cluster(None, None, None, seconds=1.0) == ("node007:61441", 6, 3)
