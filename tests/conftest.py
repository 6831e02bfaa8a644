"""Settings of all tests: strict JAX, eight simulated devices, parsed flags, and a compilation cache shared by runs."""

import gc
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

# Set before jax is imported for the first time. COPE_TEST_PLATFORM=gpu or tpu runs the tests on such a device, with the
# CPU next to it; tests of meshes need eight devices.
os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}[
    os.environ.setdefault("COPE_TEST_PLATFORM", "cpu")
]
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # pytest's workers share a GPU
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    # For models this small, compiling takes longer than running: compile quickly. XLA's newer code generator for
    # fusions doubles the time; jaxlib 0.11 has no other and ends with an error about this flag.
    + " --xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10.")
    + " --xla_force_host_platform_device_count=8"
)
# All compiled programs are shared by pytest's workers, the commands that they start, and later runs. Without a limit,
# JAX takes no lock and does not scan the cache for every program. A program that is read while it is written is only
# compiled again (see filterwarnings in pyproject.toml).
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(
    os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.abspath(".cache/jax")), "tests"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Modules are compiled once, not at each start of a process.
os.environ["PYTHONDONTWRITEBYTECODE"] = ""

# No hub: some settings depend on what is in its cache or can be downloaded.
os.environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": os.path.abspath(".cache/hub")}

import jax
import pytest
from absl import flags
from filelock import FileLock
from jaxtyping import install_import_hook

# Check shapes and types in each call to these packages. Installed before they are imported for the first time.
install_import_hook(["cope_jax.models", "cope_jax.losses", "cope_jax.evaluation.metrics"], "beartype.beartype")

sys.dont_write_bytecode = False
jax.config.update("jax_numpy_rank_promotion", "raise")
if os.environ["COPE_TEST_PLATFORM"] != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")  # otherwise products of float32 are less precise
CACHE_SIZE = 2 << 30  # bytes of compiled programs to keep

# Tracing creates millions of objects, and each collection takes longer the more programs are kept: collect rarely.
gc.set_threshold(100_000, 50, 100)


def pytest_sessionstart(session):
    """Removes the oldest compiled programs if the cache is too large."""
    if hasattr(session.config, "workerinput"):  # a worker of pytest-xdist
        return
    entries = [(path, path.stat()) for path in Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("*")]
    entries.sort(key=lambda entry: entry[1].st_mtime, reverse=True)
    sizes = itertools.accumulate(stat.st_size for _, stat in entries)
    for (path, _), size in zip(entries, sizes, strict=True):
        if size > CACHE_SIZE:
            path.unlink(missing_ok=True)


def pytest_collection_modifyitems(items):
    """Moves the files with the most slow tests to the front, so that none is left for a single worker at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish():
    """Exempts what was imported until now from garbage collection."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees the programs of a test file after it: a worker that keeps all of them slows down."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def parsed_flags():
    """Parses absl flags, as the start of a command does."""
    flags.FLAGS(["tests"])


def build_synthetic(folder: Path, *, train_products: int, test_products: int, seed: int) -> Path:
    """Builds array records of a tiny synthetic release."""
    from data_prep.build import build
    from data_prep.records.inputs import inputs_from_release
    from data_prep.synthetic.release import write_release

    sizes = {"train_products": train_products, "test_products": test_products, "image_side": 32}
    release = write_release(folder / "release", **sizes, seed=seed, processes=1)
    build(inputs_from_release(release, folder / "data"), folder / "data", processes=1, report=lambda line: None)
    return folder / "data"


@pytest.fixture(scope="session")
def synthetic_data_dir(tmp_path_factory):
    """Array records of a tiny synthetic release."""
    return build_synthetic(tmp_path_factory.mktemp("synthetic"), train_products=24, test_products=12, seed=0)


@pytest.fixture(scope="session")
def other_data_dir(tmp_path_factory):
    """Array records of other products."""
    return build_synthetic(tmp_path_factory.mktemp("other"), train_products=8, test_products=8, seed=1)


def rename_domains(data_dir: Path, folder: Path, name: str, sources: Mapping[str, tuple[str, int, int]]) -> Path:
    """Builds a data set with other domains, texts as ids and further columns from that of `build_synthetic`.

    `sources` has for each domain a synthetic one and which of its items to take: (page, 1, 2) is every second.
    """
    from data_prep.build import build
    from data_prep.catalog.files import Catalog
    from data_prep.records.inputs import Inputs
    from data_prep.table import build_table_catalog

    catalog, images = Catalog(data_dir / "catalog"), data_dir.parent / "release/images"
    folder.mkdir(parents=True)
    with (folder / "items.jsonl").open("w") as file:
        for split, (domain, (source, start, step)) in itertools.product(("train", "test"), sources.items()):
            for item in itertools.islice(catalog.items(split, source), start, None, step):
                row = {"domain": domain, "item": f"I{item.item_id}", "text": item.text, "split": split}
                row |= {"images": [frame.name for frame in item.frames], "Unit price": item.item_id % 10}
                file.writelines(json.dumps(row | {"product": f"P{product}"}) + "\n" for product in item.product_ids)
    quiet = {"report": lambda line: None}
    build_table_catalog(folder / "items.jsonl", images, folder / "catalog", **quiet)
    build(Inputs(folder / "catalog", (images,)), folder / "data", name=name, processes=1, **quiet)
    return folder / "data"


SIGLIP2_WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyz"]


def write_siglip2(folder: Path):
    """Writes a small random model to a folder like that of a SigLIP 2 on the hub; returns transformers' model."""
    import torch
    from transformers import GemmaTokenizer, SiglipConfig, SiglipModel

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(SIGLIP2_WORDS), "max_position_embeddings": 12, "projection_size": 16}
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=sizes | {"image_size": 16, "patch_size": 8}))
    for parameter in model.parameters():  # larger than transformers' initial values, so that embeddings differ
        torch.nn.init.normal_(parameter, std=0.3)
    words = {word: i for i, word in enumerate(SIGLIP2_WORDS)}
    GemmaTokenizer(words, [], add_eos_token=True, add_bos_token=False).save_pretrained(folder)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="session")
def data_dir(synthetic_data_dir):
    """The array records of tests that need no special ones; test folders can override this."""
    return synthetic_data_dir


@pytest.fixture(scope="session")
def make_tiny_config(data_dir):
    """A function that returns the config of a small run of six steps, with changes of fields."""
    from configs import default
    from cope_jax.runs.config_validation import resolve_config

    def make(changes=MappingProxyType({})):
        return resolve_config(default.get_config(), TINY | {"data.data_dir": str(data_dir)} | changes)

    return make


@pytest.fixture(scope="session")
def tiny_config(make_tiny_config):
    """The config of a small run of six steps."""
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
    "model.principal_axes": True,
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
    "mesh.data": 2,  # of eight devices, which would take a second per step on two cores
}


# Flags of a run of three steps by command.
TINY_RUN = [
    "--config.data.image_size=32",
    "--config.data.vocab_size=60",  # of all data sets, so that runs share compiled programs
    "--config.data.tokenizer=",
    "--config.model.dtype=float32",  # for a close comparison of runs; bfloat16 rounds at the third digit
    "--config.model.vision.init_from=",
    "--config.model.text.init_from=",
    "--config.model.vision.width=32",
    "--config.model.vision.depth=1",
    "--config.model.vision.heads=2",
    "--config.model.vision.output_width=32",
    "--config.model.vision.integration_heads=2",
    "--config.model.vision.integration_depth=1",
    "--config.model.vision.stem_widths=(8,16,32)",
    "--config.data.frames.video=2",
    "--config.data.frames.live=2",
    "--config.eval.frames.video=2",
    "--config.eval.frames.live=2",
    "--config.model.text.width=24",
    "--config.model.text.depth=1",
    "--config.model.text.heads=2",
    "--config.train.batch_size=4",
    "--config.train.microbatch=0",
    "--config.train.steps=3",
    "--config.optimizer.warmup_steps=1",
    "--config.eval.batch_size=16",
    "--config.eval.ways=3",
    "--config.eval.episodes=10",
]
# A demo of twelve steps; those of all tests share compiled programs.
TINY_DEMO = [
    "--train_products=24",
    "--test_products=12",
    "--image_side=32",
    *TINY_RUN,
    "--config.train.steps=12",
    "--config.train.checkpoint_every=3",
    "--config.train.log_every=3",
    "--config.optimizer.warmup_steps=2",
]


ROOT = Path(__file__).parents[1]
# The environment of commands: one device, as on users' machines.
ENVIRONMENT = os.environ | {
    "COPE_PYTHON": sys.executable,
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", ""),
}


@pytest.fixture(scope="session")
def start_run_sh():
    """A function that starts run.sh with arguments, in a process group of its own."""

    def start(*words: str, program: Path = ROOT / "run.sh", **kwargs) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT, "env": ENVIRONMENT} | kwargs
        return subprocess.Popen(["bash", program, *words], text=True, start_new_session=True, **pipes)

    return start


@pytest.fixture(scope="session")
def run_sh(start_run_sh):
    """A function that runs run.sh with arguments to its end."""

    def run(*words: str, **kwargs) -> subprocess.CompletedProcess:
        process = start_run_sh(*words, **kwargs)
        output, errors = process.communicate(timeout=600)
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    return run


@pytest.fixture(scope="session")
def make_once(tmp_path_factory, worker_id):
    """A function that returns a folder, not to be changed, which the first of pytest's workers to need it makes."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "shared"

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        with FileLock(shared.with_name(f"{name}.lock")):
            if not (shared / name).exists():
                make(shared / name)
        return shared / name

    return folder_of


@pytest.fixture(scope="session")
def demo_root(run_sh, make_once):
    """The folder of a tiny demo that ran to its end; it must not be changed."""

    def run(root: Path) -> None:
        done = run_sh("demo", f"--root={root}", *TINY_DEMO)
        assert done.returncode == 0, done.stdout + done.stderr

    return make_once("demo", run)


@pytest.fixture
def full_disk():
    """A function that limits files to a number of bytes, as a full disk would; the limit ends with the test.

    What pytest captures with `capfd` is in a file, too; what it captures with `capsys` is not.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
