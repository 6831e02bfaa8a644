"""Tests of run.sh: the demo at a tiny size, whole, interrupted and repeated; messages; the installation."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cope_jax.__main__ import COMMANDS
from tests.conftest import TINY_DEMO

ROOT = Path(__file__).parents[1]

# When each run of the demo is interrupted, by what it has written and printed by then.
MOMENTS = {
    "while the release is written": lambda root, printed: any(root.glob("data/demo/release.writing/images/*")),
    "while shards are written": lambda root, printed: any(root.glob("data/demo/rope/**/*array_record*")),
    "after a checkpoint": lambda root, printed: any(root.glob("runs/demo/checkpoints/[369]")),
    "during evaluation": lambda root, printed: "evaluating" in printed,
}
STOPPED = 75  # exit code of a training run that SIGTERM stopped after a checkpoint


def run_until(moment, start_run_sh, root, log, *, gently: bool) -> int | None:
    """Starts the demo and kills it when `moment` has come; returns the exit code, None if it ended before.

    Args:
        gently: Send SIGTERM to the process of run.sh alone, rather than SIGKILL to all processes.
    """
    with log.open("w") as file:
        process = start_run_sh("demo", f"--root={root}", *TINY_DEMO, stdout=file, stderr=subprocess.STDOUT)
    while process.poll() is None and not moment(root, log.read_text()):
        time.sleep(0.02)
    if process.poll() is not None:
        print(log.read_text())
        return None
    if gently:
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


@pytest.fixture(scope="module")
def demo(start_run_sh, run_sh, tmp_path_factory):
    """A demo interrupted at one moment after the other, and then run to the end."""
    root = tmp_path_factory.mktemp("demo")
    log = tmp_path_factory.mktemp("log") / "demo.log"
    codes = {
        name: run_until(moment, start_run_sh, root, log, gently=name == "after a checkpoint")
        for name, moment in MOMENTS.items()
    }
    done = run_sh("demo", f"--root={root}", *TINY_DEMO)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, codes, done.stdout


@pytest.mark.slow
def test_an_interrupted_demo_resumes_to_the_same_results(demo, demo_root):
    root, codes, _ = demo
    assert list(codes.values()) == [-signal.SIGKILL, -signal.SIGKILL, STOPPED, -signal.SIGKILL]
    lines, others = (
        [json.loads(line) for line in (place / "runs/demo/metrics.jsonl").read_text().splitlines()]
        for place in (root, demo_root)
    )
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert lines == others
    for step in (0, 12):
        metrics, other = (
            json.loads((place / f"runs/demo/eval/{step}/metrics.json").read_text()) for place in (root, demo_root)
        )
        assert metrics["retrieval"] == other["retrieval"]
        assert metrics["few_shot"] == other["few_shot"]


@pytest.mark.slow
def test_the_demo_prints_both_tables_and_the_work_directory(demo):
    root, _, output = demo
    assert "Cross-domain retrieval (trained / untrained)" in output
    assert "Few-shot classification (trained / untrained)" in output
    assert output.count("P → V") == 2
    assert f"work directory: {root}/runs/demo" in output


@pytest.mark.slow
def test_metrics_have_the_promised_keys(demo):
    root, _, _ = demo
    for step in (0, 12):
        metrics = json.loads((root / f"runs/demo/eval/{step}/metrics.json").read_text())
        directions = {"p2v", "v2p", "p2l", "l2p", "v2l", "l2v"}
        assert metrics["retrieval"].keys() == metrics["few_shot"].keys() == directions
        for direction in directions:
            assert metrics["retrieval"][direction].keys() == {
                "r1",
                "r5",
                "r10",
                "map",
                "ndcg10",
                "median_rank",
                "queries",
                "left_out",
                "gallery",
            }
            assert {"accuracy", "ci95", "ways", "shots"} <= metrics["few_shot"][direction].keys()


@pytest.mark.slow
def test_a_second_demo_recomputes_nothing(run_sh, demo):
    root, _, first = demo
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    done = run_sh("demo", f"--root={root}", *TINY_DEMO)
    assert done.returncode == 0, done.stderr
    assert "already has all 12 steps" in done.stdout
    changed = [path for path in root.rglob("*") if path.is_file() and files.get(path) != path.stat().st_mtime_ns]
    assert changed == [root / "runs/demo/.lock"]  # it names the last process that held it
    table = first[first.index("Cross-domain") :]
    assert done.stdout.endswith(table)


@pytest.mark.slow
def test_a_moved_work_directory_still_evaluates(run_sh, demo, tmp_path):
    root, _, _ = demo
    moved = tmp_path / "elsewhere"
    subprocess.run(["cp", "-r", root / "runs/demo", moved], check=True)
    done = run_sh("eval", f"--workdir={moved}", "--nobaseline")
    assert done.returncode == 0, done.stderr
    old, new = (json.loads((place / "eval/12/metrics.json").read_text()) for place in (root / "runs/demo", moved))
    assert old["retrieval"] == new["retrieval"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grocery"], "run.sh: grocery needs the path of a checkout of GroceryStoreDataset"),
        (["grocery", "/nowhere"], "run.sh: no folder /nowhere"),
        (["demonstrate"], "run.sh: unknown command 'demonstrate'"),
        (["tfds", "convert_format"], "run.sh: of TFDS's commands only 'build' works without TensorFlow"),
        (["eval", "--workdir=/nowhere"], "evaluate: no /nowhere/config.json: --workdir must name the folder"),
        (["eval", "--zero_shot=google/siglip2-base-patch16-224"], "evaluate: --data_dir is missing"),
        (
            ["train", "--config=configs/demo.py", "--workdir={tmp}/run", "--config.data.data_dir=/nowhere"],
            "train: no array records in /nowhere/rope/page",
        ),
        (
            ["train", "--config=configs/demo.py", "--workdir={tmp}/run", "--config.train.steps=0"],
            "config.train.steps is 0; expected an integer >= 1",
        ),
        (["build", "--release=/nowhere", "--data_dir={tmp}/data"], "/nowhere"),
    ],
)  # fmt: skip
def test_user_errors_are_reported_in_one_sentence(run_sh, words, message, tmp_path):
    done = run_sh(*(word.format(tmp=tmp_path) for word in words))
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_unknown_field_of_the_config_suggests_a_similar_one(run_sh, tmp_path):
    done = run_sh("train", "--config=configs/demo.py", f"--workdir={tmp_path}", "--config.train.batch_sise=3")
    assert done.returncode != 0
    assert 'Did you mean "batch_size" instead of "batch_sise"?' in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_the_same_commands_as_cope(run_sh):
    listed = {line.split()[1] for line in run_sh("help").stdout.splitlines() if line.startswith("./run.sh ")}
    assert listed == {name.split()[0] for name in COMMANDS} | {
        "lint",
        "test",
        "docs",
        "results",
        "setup",
        "lock",
        "wheelhouse",
        "tensorboard",
    }


# Used as Python: records its arguments, copies itself into a new environment, and takes a while to install nothing.
FAKE_PYTHON = """#!/bin/sh
echo "$@${PIP_DEST:+ to $PIP_DEST}${PIP_NO_INDEX:+ from $PIP_FIND_LINKS}" >>"$CALLS"
case "$*" in
  *"-m venv"*) for venv; do :; done; mkdir -p "$venv/bin"; cp "$0" "$venv/bin/python" ;;
  *"pip install -r"*) sleep "${INSTALL_SECONDS:-0}" ;;
esac
"""


@pytest.fixture
def start_fresh(tmp_path):
    """A function that starts run.sh of a checkout without .venv, on a machine with a GPU, and installs nothing."""
    for path in (ROOT / "run.sh", *ROOT.glob("requirements*.txt")):
        shutil.copy(path, tmp_path)
    (tmp_path / "bin").mkdir()
    for name, content in (("python3", FAKE_PYTHON), ("nvidia-smi", "#!/bin/sh\n")):
        (tmp_path / "bin" / name).write_text(content)
        (tmp_path / "bin" / name).chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COPE_")}

    def start(*words: str, cwd: Path = tmp_path, **environment: str) -> subprocess.Popen:
        variables = kept | {"PATH": f"{tmp_path}/bin:{kept['PATH']}", "CALLS": f"{tmp_path}/calls"} | environment
        return subprocess.Popen(
            ["bash", tmp_path / "run.sh", *words], cwd=cwd, env=variables, stdout=subprocess.PIPE, text=True
        )

    return start


def recorded_calls(checkout: Path) -> list[str]:
    """Returns the arguments of each call of Python in a fresh checkout."""
    return (checkout / "calls").read_text().splitlines() if (checkout / "calls").exists() else []


def installed(checkout: Path) -> list[str]:
    """Returns what pip was asked to install in addition to the locked packages, one string per call."""
    return [
        line.partition("pip install ")[2].removesuffix(" --no-compile --disable-pip-version-check")
        for line in recorded_calls(checkout)
        if "pip install -r" in line
    ]


def locked_packages(checkout: Path) -> set[str]:
    """Returns the names of the packages that pip was last asked to install with their hashes."""
    lines = (checkout / ".cache/locked.txt").read_text().splitlines()
    assert all("--hash=sha256:" in line for line in lines)
    return {line.partition("==")[0] for line in lines}


def test_one_of_several_simultaneous_calls_installs(start_fresh, tmp_path):
    calls = [start_fresh("eval", INSTALL_SECONDS="1")]
    while not installed(tmp_path):
        time.sleep(0.01)
    calls += [start_fresh("compare"), start_fresh("embed")]
    outputs = [call.communicate(timeout=60)[0] for call in calls]
    assert [call.returncode for call in calls] == [0, 0, 0], outputs
    assert installed(tmp_path) == ["-rrequirements.txt jax[cuda13]"]
    ran = sorted(line for line in recorded_calls(tmp_path) if line.startswith("-m cope_jax"))
    assert ran == ["-m cope_jax compare", "-m cope_jax embed", "-m cope_jax eval"]


def test_the_build_of_jax_can_be_chosen(start_fresh, tmp_path):
    call = start_fresh("eval", COPE_JAX="jax[cuda12]")
    assert f"installing requirements.txt and jax[cuda12] into {tmp_path}/.venv" in call.communicate(timeout=60)[0]
    assert call.returncode == 0
    assert installed(tmp_path) == ["-rrequirements.txt jax[cuda12]"]
    assert not {"jax-cuda13-plugin", "libtpu"} & locked_packages(tmp_path)


def test_the_checkout_gets_the_installation_wherever_it_is_called_from(start_fresh, tmp_path):
    (tmp_path / "a folder").mkdir()
    call = start_fresh("eval", cwd=tmp_path / "a folder")
    call.communicate(timeout=60)
    assert call.returncode == 0
    assert list((tmp_path / "a folder").iterdir()) == []
    assert (tmp_path / ".venv/bin/python").exists()
    assert (tmp_path / ".cache/install.log").exists()


@pytest.fixture
def user_folder(tmp_path):
    """A folder with a link to run.sh, and with modules that no command may import."""
    folder = tmp_path / "a folder"
    (folder / "configs").mkdir(parents=True)
    (folder / "link to run.sh").symlink_to(ROOT / "run.sh")
    for name in ("json", "re", "numpy", "jax", "torch", "cope_jax", "configs/default"):
        (folder / f"{name}.py").write_text("raise SystemExit('a module of the user')")
    return folder


@pytest.mark.slow
def test_paths_are_relative_to_the_folder_of_the_user(run_sh, user_folder):
    program = user_folder / "link to run.sh"
    words = ("--train_products=8", "--test_products=8", "--image_side=32")
    written = run_sh("synthetic", "--out=my release", *words, program=program, cwd=user_folder)
    assert written.returncode == 0, written.stderr
    assert any((user_folder / "my release").iterdir())
    words = ("--config=configs/demo.py", "--workdir=run", "--config.data.data_dir=data")
    done = run_sh("train", *words, program=program, cwd=user_folder)  # with the config of the checkout
    assert done.returncode == 1
    assert f"train: no array records in {user_folder}/data/rope/page" in done.stderr
    assert (user_folder / "run").exists()


def test_a_config_of_the_user_that_fails_is_named_with_its_line(run_sh, user_folder):
    (user_folder / "configs/own.py").write_text(
        "from configs import demo\n\ndef get_config():\n    return demo.get_config() | undefined\n"
    )
    done = run_sh("train", "--config=configs/own.py", "--workdir=run", cwd=user_folder)
    assert done.returncode == 1
    assert done.stderr == "train: configs/own.py, line 4: NameError: name 'undefined' is not defined\n"


def test_every_command_gets_its_arguments(start_fresh, tmp_path):
    python = str(tmp_path / "bin/python3")
    words = [[*name.split(), str(tmp_path), "--a b"] for name in COMMANDS]
    for call in [start_fresh(*each, COPE_PYTHON=python) for each in words]:
        call.communicate(timeout=60)
        assert call.returncode == 0
    assert sorted(recorded_calls(tmp_path)) == sorted(f"-m cope_jax {' '.join(each)}" for each in words)


def test_a_command_installs_its_optional_requirements(start_fresh, tmp_path):
    found = []
    for words in (["download", "--out=images"], ["search", "serve"], ["eval"], ["download"]):
        call = start_fresh(*words)
        call.communicate(timeout=60)
        assert call.returncode == 0
        found.append(locked_packages(tmp_path))
    assert installed(tmp_path) == [
        "-rrequirements.txt -rrequirements-download.txt jax[cuda13]",
        "-rrequirements.txt -rrequirements-search.txt -rrequirements-serve.txt -rrequirements-video.txt jax[cuda13]",
        "-rrequirements.txt jax[cuda13]",
    ]
    download, search, evaluation, again = found
    assert evaluation == again == download & search
    assert evaluation >= {"jax", "flax", "transformers", "jax-cuda13-plugin"}
    assert download >= {"aiohttp", "multidict"}  # also what aiohttp needs
    assert search >= {"faiss-cpu", "uvicorn", "av"}
    assert not {"torch", "pytest", "libtpu"} & (download | search)


def test_the_newest_versions_can_be_installed(start_fresh, tmp_path):
    start_fresh("eval", COPE_NEWEST="1").communicate(timeout=60)
    assert [line for line in recorded_calls(tmp_path) if "pip install" in line] == [
        "-m pip install -rrequirements.txt jax[cuda13] --no-compile --disable-pip-version-check"
    ]


def test_a_wheelhouse_has_what_a_command_then_installs_offline(start_fresh, tmp_path):
    wheels = tmp_path / "a wheelhouse"
    start_fresh("wheelhouse", str(wheels)).communicate(timeout=60)
    locked = f"--no-deps --require-hashes -r {tmp_path}/.cache/locked.txt --disable-pip-version-check"
    assert f"-m pip download {locked} to {wheels}" in recorded_calls(tmp_path)
    wanted = {"jax", "faiss-cpu", "uvicorn", "av", "aiohttp", "qdrant-client", "tensorboard", "wandb"}
    assert locked_packages(tmp_path) >= wanted
    call = start_fresh("compare", "--offline", "runs/a b", COPE_WHEELHOUSE=str(wheels))
    call.communicate(timeout=60)
    assert call.returncode == 0
    # The wheelhouse's own call has set up the environment.
    assert recorded_calls(tmp_path)[-1] == f"-m cope_jax compare runs/a b from file://{tmp_path}/a%20wheelhouse"
    missing = start_fresh("compare", "--offline", COPE_WHEELHOUSE="/nowhere")
    missing.communicate(timeout=60)
    assert missing.returncode == 1


def test_quick_tests_skip_the_slow_ones(start_fresh, tmp_path):
    start_fresh("test", "--quick", "tests/x.py").communicate(timeout=60)
    call = recorded_calls(tmp_path)[-1]
    assert call == "-m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder -m not slow tests/x.py"


@pytest.mark.parametrize("command", ["demo", "grocery", "lint"])
def test_help_is_printed_before_anything_is_installed(start_fresh, tmp_path, command):
    call = start_fresh(command, "--help")
    assert "--train_products=N" in call.communicate(timeout=60)[0]
    assert call.returncode == 0
    assert not (tmp_path / "calls").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "has_begun"),
    [
        (["eval", "--workdir=nowhere"], lambda pid, out: "jaxlib" in Path(f"/proc/{pid}/maps").read_text()),  # imports
        (["synthetic", "--train_products=3000"], lambda pid, out: any(out.parent.rglob("*.jpg"))),  # in workers
    ],
)
def test_ctrl_c_ends_a_command_with_one_line(start_run_sh, tmp_path, words, has_begun):
    """The terminal sends SIGINT to all processes of the command."""
    out = tmp_path / "release"
    process = start_run_sh(*words, *([f"--out={out}"] if words[0] == "synthetic" else []))
    deadline = time.monotonic() + 60
    while not has_begun(process.pid, out):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert errors.strip().endswith(": interrupted")
    assert process.returncode in (130, -signal.SIGINT)  # both are 130 to a shell


@pytest.mark.slow
def test_kill_ends_the_program(start_run_sh, tmp_path):
    """Even if the signal reaches run.sh alone, as from a service manager."""
    process = start_run_sh("synthetic", "--train_products=3000", f"--out={tmp_path / 'release'}")
    while not any(tmp_path.rglob("*.jpg")):
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    process.communicate(timeout=60)  # until no process has its output open
    assert process.returncode == -signal.SIGTERM
    assert not (tmp_path / "release").exists()  # as it would if the program had gone on to its end
