"""Several processes: the same run in any number of them, and none that waits for one that is gone."""

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

import numpy as np
import pytest

from cope_jax.parallel import cluster
from cope_jax.parallel.cluster import gather, hello, place, reach
from cope_jax.parallel.mesh import share_of
from cope_jax.training.loop import train

ROOT = Path(__file__).parents[3]
HOST = socket.gethostname()
# Steps without a model, which start in seconds. At step 3 one process does to itself what the test is about.
MEMBER = """
import os, signal, sys, time
from jax.experimental import multihost_utils
from cope_jax.parallel import cluster

coordinator, processes, process, actor, act, silence = sys.argv[1:]
cluster.SILENCE = float(silence)
with cluster.joined(coordinator, int(processes), int(process), facts={}, seconds=100):
    for step in range(1_000_000):
        multihost_utils.sync_global_devices("step")
        if step == 3 and process in actor:
            exec(act)
"""
STOPPABLE = MEMBER.replace("facts={}, seconds=100):", "facts={}, seconds=100), StopSignal() as stop:")
STOPPABLE = STOPPABLE.replace(
    "jax.parallel import cluster",
    "jax.parallel import cluster\nfrom cope_jax.training.supervision.signals import StopSignal",
)
STOPPABLE += """
        if stop.behind(step):
            print("stopped behind", step, flush=True)
            break
"""


BLIND = """
import sys
from pathlib import Path
from cope_jax.parallel import cluster, shared_storage as shared
from cope_jax.runs import lock

coordinator, processes, process, *workdirs = sys.argv[1:]
shared.SHARED_SECONDS = cluster.GRACE = 1.0
with cluster.joined(coordinator, int(processes), int(process), facts={}, seconds=100):
    for workdir in workdirs[0], workdirs[int(process)]:
        with lock.held(Path(workdir)):
            print("held", workdir, flush=True)
"""

# Three saves of an array that is cut over the processes; for some of them the disk is full at the second one.
SAVER = """
import resource, signal, sys
from pathlib import Path
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from cope_jax.runs import checkpoints
from cope_jax.parallel import cluster
from cope_jax.runs.state import TrainState

coordinator, processes, process, failing, workdir = sys.argv[1:]
checkpoints.SAVE_SECONDS = 5
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with cluster.joined(coordinator, int(processes), int(process), facts={}, seconds=100):
    cut = NamedSharding(Mesh(jax.devices(), "all"), PartitionSpec("all"))
    values = jax.jit(lambda: jax.random.normal(jax.random.key(0), (200_000,)), out_shardings=cut)()
    with checkpoints.Checkpoints(Path(workdir), keep=1) as kept:
        for step in 1, 2, 3:
            size = 100_000 if step == 2 and process in failing else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            kept.save(step, TrainState(values, {}, {}, {}), {})
            print(step, kept.settle(), kept.latest(), flush=True)
"""


def free_port() -> int:
    """Below those that connections take, so that none has it a moment later."""
    for port in range(20_000 + os.getpid() % 5_000, 30_000):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)):
                return port
    raise AssertionError("no free port")


def start(*words, devices=1):
    """A Python process with some fake devices; it compiles fast rather than well, and always itself."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": f"{flags} --xla_llvm_disable_expensive_passes=true"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ends(processes, timeout=500):
    """(exit code, output, errors) of each; none is left."""
    try:
        texts = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def members(number, *, actor, act, code=MEMBER, silence=cluster.SILENCE):
    """Processes of MEMBER, one of which acts."""
    where = f"localhost:{free_port()}"
    return [start("-c", code, where, str(number), str(i), str(actor), act, str(silence)) for i in range(number)]


def cut_back(source, target, step):
    """A copy of a work directory as if it had been killed behind a step."""
    shutil.copytree(source, target)
    for path in (target / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)


def test_any_number_of_processes_trains_the_same_and_goes_on_with_it(make_quick_config, write_config, tmp_path):
    """One with two devices; two that go on from it, joined by the tensor axis of their mesh; and one from these.

    That two with a share of each batch train as one is shown by the README's command for them.
    """
    config = make_quick_config(**{"train.keep_checkpoints": 3})
    words = ["-m", "cope_jax.train", f"--config={write_config(config)}", f"--workdir={tmp_path / 'two'}"]
    words += ["--config.mesh.data=1", "--config.mesh.tensor=2"]
    words += ["--distributed", f"--coordinator=localhost:{free_port()}", "--processes=2"]
    train(config, tmp_path / "one")
    cut_back(tmp_path / "one", tmp_path / "two", 2)
    for code, output, errors in ends([start(*words, f"--process={i}") for i in range(2)]):
        assert code == 0, output + errors
        assert "going on from step 2" in output
    cut_back(tmp_path / "two", tmp_path / "back", 4)
    train(config, tmp_path / "back")
    curves = {}
    for name in ("one", "two", "back"):
        lines = (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        curves[name] = {line["step"]: line["loss"] for line in map(json.loads, lines)}
    assert list(curves["one"]) == [1, 2, 3, 4, 5]
    assert curves["two"] == pytest.approx(curves["one"], rel=1e-5)
    assert curves["back"] == pytest.approx(curves["one"], rel=1e-5)


def test_a_signal_to_one_process_stops_all_behind_the_same_step():
    """Ctrl-C, which is passed on as the SIGTERM that schedulers send."""
    act = "os.kill(os.getpid(), signal.SIGINT)"
    (code, first, _), (other_code, second, _) = ends(members(2, actor=1, act=act, code=STOPPABLE))
    assert (code, other_code) == (0, 0)
    assert "stopped behind" in first
    assert first.splitlines()[-1] == second.splitlines()[-1]


def test_a_signal_before_the_first_step_stops_a_run_that_goes_on_and_a_second_one_ends_it_at_once():
    """The first step is number 3, as far as JAX knows; it has heard of the signal before that is asked for."""
    code = STOPPABLE.replace("range(", "range(3, ")
    kill = "if process == '1': os.kill(os.getpid(), signal.SIGTERM)"
    code += f"    {kill}\n    time.sleep(100)\n"
    (code, first, _), (other_code, second, _) = ends(
        members(2, actor="01", act=f"{kill}\ntime.sleep(3)", code=code), timeout=100
    )
    assert (code, other_code) == (cluster.LOST, 128 + signal.SIGTERM)
    for output in (first, second):
        assert output.splitlines()[-1] == "stopped behind 3"


def test_a_work_directory_that_is_not_shared_is_found_in_seconds(tmp_path):
    """Both processes hold the first folder; the second one each has for itself."""
    where, folders = f"localhost:{free_port()}", [str(tmp_path / name) for name in ("zero", "one")]
    for folder in folders:
        Path(folder).mkdir()
    results = ends([start("-c", BLIND, where, "2", str(i), *folders) for i in range(2)])
    for code, output, errors in results:
        assert code == 1
        assert [line for line in output.splitlines() if "Gloo" not in line] == [f"held {folders[0]}"]
        assert "ValueError: process 1 of 2 does not see what process 0 writes in" in errors
        assert "--workdir must be on storage that all hosts share, under the same path" in errors


@pytest.mark.parametrize("failing", ["01", "1"])
def test_a_save_that_fails_in_some_processes_is_given_up_by_all(tmp_path, failing):
    """And the next one tries again."""
    where = f"localhost:{free_port()}"
    for code, output, errors in ends(
        [start("-c", SAVER, where, "2", str(i), failing, str(tmp_path)) for i in range(2)]
    ):
        assert code == 0, output + errors
        assert output.splitlines()[-3:] == ["1 True 1", "2 False 1", "3 True 3"]
        assert "saving step 2 in" in errors
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


@pytest.mark.parametrize("actor", [0, 1])
def test_a_killed_process_ends_the_others_with_its_name(actor):
    processes = members(3, actor=actor, act="os.kill(os.getpid(), signal.SIGKILL)")
    processes[actor].wait(500)
    killed = time.monotonic()
    results = ends(processes)
    assert time.monotonic() - killed < 60
    assert results.pop(actor)[0] == -signal.SIGKILL
    for code, _, errors in results:
        assert code == cluster.LOST
        assert f"process {actor} of 3 (host {HOST}) is gone: killed, crashed or cut off" in errors
        assert "the same command on all hosts goes on from the last checkpoint" in errors


@pytest.mark.parametrize("actor", [0, 1])
def test_a_process_that_hangs_ends_the_others_with_its_name(actor):
    processes = members(2, actor=actor, act="os.kill(os.getpid(), signal.SIGSTOP)", silence=5.0)
    hanging = processes.pop(actor)
    ((code, _, errors),) = ends(processes)
    hanging.kill()
    hanging.communicate()
    assert code == cluster.LOST
    assert f"process {actor} of 2 (host {HOST}) gave no sign of life for 5 s" in errors


@pytest.mark.parametrize("actor", [0, 1])
def test_an_error_in_one_process_is_told_by_all(actor):
    results = ends(members(2, actor=actor, act="raise FileNotFoundError('no data here')"))
    assert [code for code, _, _ in results] == [cluster.FAILED, cluster.FAILED]
    assert "Traceback" in results[actor][2]
    assert f"process {actor} of 2 (host {HOST}) ended with FileNotFoundError: no data here" in results[1 - actor][2]


def meet(*first_words, processes=2, facts=None, seconds=5.0):
    """What process 0 and others, which say certain words, are told when they meet: an error, or who the others are."""
    port = free_port()

    def told(call, *args):
        try:
            lines = call(*args, seconds=seconds)
        except ValueError as error:
            return str(error)
        lines = lines if isinstance(lines, list) else [lines]
        for line in lines:
            line.close()
        return [line.name for line in lines]

    with ThreadPoolExecutor() as pool:
        zero = pool.submit(told, gather, port, processes, facts or {})
        others = [pool.submit(told, reach, "localhost", port, words) for words in first_words]
        return [future.result() for future in (zero, *others)]


def test_processes_that_agree_know_each_other():
    words = hello(2, 1, {"a": [1, 2]})
    assert meet(words, facts={"a": [1, 2]}) == [[f"process 1 of 2 (host {HOST})"], [f"process 0 of 2 (host {HOST})"]]


def test_all_differences_are_told_to_all():
    told = meet(hello(3, 1, {"a": 1, "b": 2}), hello(3, 2, {"a": 5}), processes=3, facts={"a": 1, "b": 3})
    assert len(set(told)) == 1
    for part in (
        f"b is 2 in process 1 of 3 (host {HOST}) and 3 in process 0",
        f"a is 5 in process 2 of 3 (host {HOST}) and 1 in process 0",
        f"b is None in process 2 of 3 (host {HOST}) and 3 in process 0",
    ):
        assert part in told[0]


def test_another_number_of_processes_is_refused():
    zero, one = meet(hello(4, 1, {}))
    assert zero == one == f"process 1 of 4 (host {HOST}) contradicts process 0, which has --processes=2"


def test_two_processes_of_one_number_are_refused():
    zero, one, two = meet(hello(3, 1, {}), hello(3, 1, {}), processes=3)
    name = f"process 1 of 3 (host {HOST})"
    assert zero == one == two == f"two have --process=1: {name} and {name}"


def test_a_process_that_does_not_start_is_named():
    zero, two = meet(hello(4, 2, {}), processes=4, seconds=1.0)
    assert zero == two
    assert "of 4 processes, 1, 3 did not start within 1 s: their logs tell why, or --join_seconds gives" in zero


def test_a_coordinator_that_does_not_answer_is_named():
    port = free_port()
    with pytest.raises(ValueError, match=rf"process 0 did not answer at localhost:{port} within 1 s \(.*refused"):
        reach("localhost", port, hello(2, 1, {}), seconds=1.0)


def test_a_taken_port_is_named():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"process 0 cannot listen on port {port} of .* choose another port"):
            gather(port, 2, {}, seconds=1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None, None), r"tells --coordinator=HOST:PORT, --processes, --process: add what is missing"),
        (("host:1", 2, None), r"no cluster that JAX knows tells --process: add"),
        (("host", 2, 0), r"--coordinator is 'host'; it must be HOST:PORT"),
        (("host:x", 2, 0), r"--coordinator is 'host:x'; it must be HOST:PORT"),
        (("host:1", 2, 2), r"--process=2 does not go with --processes=2: they count from 0"),
        (("host:1", 2, -1), r"--process=-1 does not go with --processes=2"),
    ],
)
def test_places_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        place(*given, seconds=1.0)


def test_slurm_tells_the_place(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "4097",
        "SLURM_STEP_NODELIST": "node[007-009]",
        "SLURM_NTASKS": "6",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert place(None, None, None, seconds=1.0) == ("node007:61441", 6, 3)


@pytest.mark.parametrize(
    ("owners", "shares"),
    [
        ([[0], [0], [1], [1]], [(0, 2), (1, 2)]),
        ([[0, 0], [1, 1]], [(0, 2), (1, 2)]),
        ([[0, 1], [0, 1]], [(0, 1), (0, 1)]),
        ([[0, 1], [2, 3]], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([[0], [1], [1], [0]], [(0, 2), (1, 2)]),
    ],
)
def test_processes_of_one_tensor_group_read_the_same_share(owners, shares):
    assert [share_of(process, np.array(owners)) for process in range(len(shares))] == shares


@pytest.mark.parametrize("owners", [[[0, 0, 0], [0, 1, 1], [1, 1, 2], [2, 2, 2]], [[0], [0], [1]]])
def test_processes_that_hold_parts_of_shares_are_refused(owners):
    with pytest.raises(ValueError, match=r"config.mesh.tensor=\d does not fit processes of \d devices"):
        share_of(0, np.array(owners))
