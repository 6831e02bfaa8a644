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

from cope_jax.training import cluster
from cope_jax.training.cluster import gather, hello, place, reach
from cope_jax.training.config import flatten
from cope_jax.training.mesh import share_of

ROOT = Path(__file__).parents[3]
HOST = socket.gethostname()
# Steps without a model, which start in seconds. At step 3 one process does to itself what the test is about.
MEMBER = """
import os, signal, sys
from jax.experimental import multihost_utils
from cope_jax.training import cluster

coordinator, processes, process, actor, act, silence = sys.argv[1:]
cluster.SILENCE = float(silence)
with cluster.joined(coordinator, int(processes), int(process), facts={}, seconds=100):
    for step in range(1_000_000):
        multihost_utils.sync_global_devices("step")
        if step == 3 and process == actor:
            exec(act)
"""
STOPPABLE = MEMBER.replace("facts={}, seconds=100):", "facts={}, seconds=100), StopSignal() as stop:")
STOPPABLE = STOPPABLE.replace(
    "jax.training import cluster", "jax.training import cluster\nfrom cope_jax.training.stop import StopSignal"
)
STOPPABLE += """
        if stop.behind(step):
            print("stopped behind", step)
            break
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


@pytest.fixture(scope="module")
def start_training(make_tiny_config, tmp_path_factory):
    """A function that starts a training of the tiny config in some processes, as users do."""
    config = make_tiny_config()
    config.train.log_every = 1
    config.model.vision.heads = config.model.text.heads = 4
    # Quick to compile, which is all that these runs take time for.
    config.model.vision.cross_frame, config.model.vision.integration_depth, config.model.vision.drop_path = (
        False,
        0,
        0.0,
    )
    path = tmp_path_factory.mktemp("processes") / "config.py"
    path.write_text(
        "from configs import default\n"
        "def get_config():\n"
        "    config = default.get_config()\n"
        f"    config.update_from_flattened_dict({dict(flatten(config))!r})\n"
        "    return config\n"
    )

    def start_processes(workdir, processes, *flags):
        words = ["-m", "cope_jax.train", f"--config={path}", f"--workdir={workdir}", *flags]
        if processes > 1:
            words += ["--distributed", f"--coordinator=localhost:{free_port()}", f"--processes={processes}"]
        places = [[f"--process={i}"] if processes > 1 else [] for i in range(processes)]
        return [start(*words, *place, devices=8 // processes) for place in places]

    return start_processes


def test_any_number_of_processes_trains_the_same_and_goes_on_with_it(start_training, tmp_path):
    """Also where groups of the tensor axis lie in several processes, which then read the same examples."""
    results = ends([*start_training(tmp_path / "1", 1), *start_training(tmp_path / "2", 2)])
    shutil.copytree(tmp_path / "2", tmp_path / "4")
    shutil.rmtree(tmp_path / "4/checkpoints/6")  # as when the run was killed behind step 4
    results += ends(start_training(tmp_path / "4", 4, "--config.mesh.fsdp=2", "--config.mesh.tensor=4"))
    for code, output, errors in results:
        assert code == 0, output + errors
    assert all("going on from step 4" in output for _, output, _ in results[3:])
    curves = []
    for processes in ("1", "2", "4"):
        lines = (tmp_path / processes / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        curves.append({line["step"]: line["loss"] for line in map(json.loads, lines)})
    assert list(curves[0]) == [1, 2, 3, 4, 5, 6]
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert curves[2] == pytest.approx(curves[0], rel=1e-5)


def test_a_signal_to_one_process_stops_all_behind_the_same_step():
    """Ctrl-C, which is passed on as the SIGTERM that schedulers send."""
    act = "os.kill(os.getpid(), signal.SIGINT)"
    (code, first, _), (other_code, second, _) = ends(members(2, actor=1, act=act, code=STOPPABLE))
    assert (code, other_code) == (0, 0)
    assert "stopped behind" in first
    assert first.splitlines()[-1] == second.splitlines()[-1]


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
