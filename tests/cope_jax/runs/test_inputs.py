"""Inputs of a run: its tokenizer, and data without texts."""

import csv
import shutil
from contextlib import closing

import jax
import numpy as np
import pytest
from PIL import Image

from cope_jax.evaluation.evaluate_run import evaluate
from cope_jax.export import export_run
from cope_jax.exported import load
from cope_jax.runs.inputs import batch_bytes, run_tokenizer, training_batches
from cope_jax.training.loop import train
from data_prep.build import build
from data_prep.common.domains import DOMAINS
from data_prep.records.inputs import Inputs
from data_prep.table import build_table_catalog


@pytest.fixture(scope="module")
def textless_data(tmp_path_factory):
    """Array records of a table without the optional column of texts."""
    folder = tmp_path_factory.mktemp("textless")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    with (folder / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["product", "domain", "item", "images", "split"])
        for split, products in (("train", 10), ("test", 5)):
            for product in range(products):
                for domain in DOMAINS:
                    item = f"{split}-{product}-{domain}"
                    Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(folder / f"images/{item}.png")
                    writer.writerow([f"{split}-{product}", domain, item, f"{item}.png", split])
    build_table_catalog(folder / "items.csv", folder / "images", folder / "catalog", report=lambda line: None)
    inputs = Inputs(catalog=folder / "catalog", images=(folder / "images",))
    build(inputs, folder / "data", processes=1, report=lambda line: None)
    return folder / "data"


@pytest.mark.slow
@pytest.mark.parametrize("domains", [("page", "video", "live"), ()])
def test_data_without_texts_are_trained_on_evaluated_and_exported(
    make_quick_config, textless_data, tmp_path, capsys, domains
):
    fields = {"data.data_dir": str(textless_data), "model.text_domains": domains, "train.steps": 3, "eval.ways": 2}
    train(make_quick_config(**fields), tmp_path / "run")
    warned = "no item in split 'train' has a text: the model learns from images alone" in capsys.readouterr().out
    assert warned == bool(domains)
    assert np.isfinite(evaluate(tmp_path / "run").metrics["retrieval_mean"]["mean_r1"])
    export_run(tmp_path / "run", tmp_path / "export")
    vectors = load(tmp_path / "export").embed("page", np.zeros((1, 1, 16, 16, 3), np.uint8), [""])
    assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-3)


def test_the_start_of_a_run_reports_how_the_tokenizer_suits_the_texts(tiny_config, tmp_path, capsys):
    run_tokenizer(tiny_config, tmp_path)
    first, *warnings = capsys.readouterr().out.splitlines()
    assert first.startswith("texts: ")
    assert first.endswith(f"of the texts are longer than {tiny_config.data.text_length} tokens")
    assert any("increase config.data.text_length" in warning for warning in warnings)


def test_the_size_of_a_batch_is_that_of_its_arrays(tiny_config, tmp_path):
    with closing(training_batches(tiny_config, run_tokenizer(tiny_config, tmp_path), start_step=0)) as batches:
        assert batch_bytes(tiny_config) == sum(array.nbytes for array in jax.tree.leaves(next(batches)))


def test_the_tokenizer_of_a_run_with_checkpoints_is_not_replaced(tiny_config, tmp_path):
    run_tokenizer(tiny_config, tmp_path)
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(FileNotFoundError, match=r"tokenizer is missing, but the model in .*: copy it back"):
        run_tokenizer(tiny_config, tmp_path)
    assert not (tmp_path / "tokenizer").exists()
