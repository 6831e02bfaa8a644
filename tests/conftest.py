"""Settings of every test: strict JAX, eight fake devices, parsed flags, a compilation cache between runs."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

# Before the first import of jax.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    # Models this small take time only to compile: quickly then, rather than well.
    + " --xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"
    + " --xla_force_host_platform_device_count=8"
)
# One cache for all of pytest's workers and the commands that they start. JAX locks it where its size is limited;
# otherwise one could read what another has half written.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(
    os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.abspath(".cache/jax")), "tests"
)
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(4 << 30)

import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# Tracing makes objects by the million, and collecting them takes longer the more programs are kept: seldom, then.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees what a file's tests have compiled: a worker that keeps all of it gets slower and slower."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def parsed_flags():
    """Absl flags as after the start of a command."""
    flags.FLAGS(["tests"])


@pytest.fixture(scope="session")
def synthetic_data_dir(tmp_path_factory):
    """Array records of a tiny synthetic release, made by the same code as the demo's."""
    from data_prep.build import build
    from data_prep.records.inputs import inputs_from_release
    from data_prep.synthetic.release import write_release

    folder = tmp_path_factory.mktemp("synthetic")
    release = write_release(folder / "release", train_products=24, test_products=12, image_side=32, seed=0, processes=1)
    build(inputs_from_release(release, folder / "data"), folder / "data", processes=1, report=lambda line: None)
    return folder / "data"


@pytest.fixture(scope="session")
def data_dir(synthetic_data_dir):
    """The array records that tests use if they do not need special ones."""
    return synthetic_data_dir


@pytest.fixture(scope="session")
def make_tiny_config(data_dir):
    """A function that makes the config of a run of six steps, which compiles in seconds; takes changes of fields."""
    from configs import default
    from cope_jax.runs.config_validation import resolve_config

    def make(changes=MappingProxyType({})):
        return resolve_config(default.get_config(), TINY | {"data.data_dir": str(data_dir)} | changes)

    return make


@pytest.fixture(scope="session")
def tiny_config(make_tiny_config):
    """The tiny config itself."""
    return make_tiny_config()


TINY = {
    "data.image_size": 16,
    "eval.frames.video": 3,
    "eval.frames.live": 3,
    "data.frames.video": 2,
    "data.frames.live": 2,
    "data.vocab_size": 300,
    "data.text_length": 12,
    "data.threads": 1,
    "model.embedding": 16,
    "model.head_norm": "batch",
    "model.vision.patch_size": 8,
    "model.vision.width": 16,
    "model.vision.depth": 1,
    "model.vision.heads": 2,
    "model.vision.integration_heads": 2,
    "model.vision.output_width": 16,
    "model.vision.drop_path": 0.1,
    "model.text.width": 16,
    "model.text.depth": 1,
    "model.text.heads": 2,
    "model.fusion.width": 16,
    "model.fusion.heads": 2,
    "optimizer.warmup_steps": 2,
    "train.batch_size": 8,
    "train.steps": 6,
    "train.log_every": 2,
    "train.checkpoint_every": 2,
    "train.keep_checkpoints": 2,
    "eval.batch_size": 8,
    "eval.ways": 3,
    "eval.episodes": 10,
    "mesh.data": 2,  # of the eight: on two cores, eight that wait for each other take a second a step
}


ROOT = Path(__file__).parents[1]
# One device a process, as users have it; and no fake ones from here.
ENVIRONMENT = os.environ | {
    "COPE_PYTHON": sys.executable,
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", ""),
}


@pytest.fixture(scope="session")
def start_run_sh():
    """A function that starts run.sh with some words, in this environment and a process group of its own."""

    def start(*words: str, **kwargs) -> subprocess.Popen:
        command = ["bash", "run.sh", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs
        return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, text=True, start_new_session=True, **pipes)

    return start


@pytest.fixture(scope="session")
def run_sh(start_run_sh):
    """A function that runs run.sh with some words to its end."""

    def run(*words: str) -> subprocess.CompletedProcess:
        process = start_run_sh(*words)
        output, errors = process.communicate(timeout=600)
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    return run
