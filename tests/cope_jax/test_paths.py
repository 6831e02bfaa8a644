"""Tests that the commands of cope_jax work in folders of any name, with data in folders of any name."""

import shutil
import tempfile
from pathlib import Path

import pytest

from cope_jax import exported
from cope_jax.checkpoints import checkpoint_folders
from cope_jax.evaluation.comparison import compare, read_step
from cope_jax.evaluation.evaluate_run import evaluate
from cope_jax.export import export_run
from cope_jax.runs.manifest import find_problems
from cope_jax.search.embedding_store import embed_to_parquet, read_item_ids, read_vectors
from cope_jax.search.library import open_library
from cope_jax.training.loop import train
from data_prep.common.domains import DOMAINS

NAMES = ["item_id=1", "[v2]*{a,b}?c=1 a\\b, \"c' %20#\n\u00e9e\u0301 \U0001f600", "~", "gs:"]


@pytest.fixture(scope="module")
def workdir(make_quick_config, data_dir, tmp_path_factory) -> Path:
    """A run in a folder that has all names at once, as its data have."""
    root = tmp_path_factory.mktemp("paths") / " ".join(NAMES)
    data = shutil.copytree(data_dir, root / "data ?*[x]")
    train(make_quick_config(**{"data.data_dir": str(data), "train.steps": 3}), root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def metrics(workdir) -> dict:
    return evaluate(workdir, step="latest").metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_commands_work_in_a_folder_of_any_name(workdir, metrics, tmp_path, monkeypatch, name):
    temporary, root = tmp_path / "temporary", tmp_path / name
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    own = shutil.copytree(workdir, root / name)
    shutil.rmtree(own / "eval")
    assert evaluate(own, step="latest").metrics == metrics
    assert [find_problems(folder) for folder in checkpoint_folders(own)] == [[]] * 2
    monkeypatch.chdir(root)
    embeddings = Path("~root")  # which is not the home of this user
    counts = embed_to_parquet(own, embeddings, split="test")
    for domain in DOMAINS:
        (file,) = read_vectors(embeddings, domain)
        assert read_item_ids(embeddings, domain).tolist() == file[0].tolist()
        assert len(file[1]) == counts[domain]
    library = open_library(own, split="test", report=str)
    (query, *_) = library.samples(1)
    assert library.search_item(*query).hits
    assert export_run(own, root / "export") < 1e-5
    assert exported.load(root / "export").programs.keys() == {*DOMAINS}
    assert compare([read_step(own, "latest"), read_step(workdir, "latest")])
    assert {path.name for path in tmp_path.iterdir()} == {name, temporary.name}
    assert list(temporary.iterdir()) == []
