"""Evaluation of a work directory."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest

from cope_jax.data.records import InvalidItemError, InvalidItems, ProductRecords, open_records
from cope_jax.evaluation import evaluate_run
from cope_jax.evaluation.embed_items import evaluation_mesh
from cope_jax.evaluation.evaluate_run import draw_products, rows_by_domain
from cope_jax.evaluation.report.report import write_report
from cope_jax.evaluation.result_tables import format_tables
from cope_jax.evaluation.results import read_metrics
from cope_jax.runs.config_file import load_config
from cope_jax.search.embedding_store import embed_to_parquet
from tests.conftest import ENVIRONMENT

ROOT = Path(__file__).parents[3]
DIRECTIONS = {"p2v", "v2p", "p2l", "l2p", "v2l", "l2v"}


def evaluate(workdir, **options):
    return evaluate_run.evaluate(workdir, **options).metrics


def test_newest_checkpoint_is_evaluated_and_written(workdir):
    metrics = evaluate(workdir)
    assert metrics["step"] == 6
    assert read_metrics(workdir, 6) == metrics
    assert metrics["retrieval"]["p2v"]["gallery"] >= 12


@pytest.mark.slow
def test_untrained_and_trained_model_differ(workdir):
    untrained, trained = (evaluate(workdir, step=step) for step in (0, 6))
    assert untrained["retrieval"] != trained["retrieval"]


@pytest.mark.slow
def test_evaluation_is_repeatable_and_reused_only_for_the_same_data(workdir):
    first = evaluate(workdir)
    path = workdir / "eval/6/metrics.json"
    before = path.stat().st_mtime_ns
    assert evaluate(workdir, reuse=True) == first
    assert path.stat().st_mtime_ns == before
    assert evaluate(workdir) == first
    path.write_text(json.dumps(first | {"evaluated": {"data_dir": "elsewhere"}}))
    assert evaluate(workdir, reuse=True) == first
    assert read_metrics(workdir, 6) == first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "batch_size", "expected"),
    [
        ({"data": 2}, 24, {"data": 2, "fsdp": 1}),
        ({"data": 3}, 8, {"data": 3, "fsdp": 1}),
        ({"data": 1, "fsdp": 2}, 7, {"data": 1, "fsdp": 2}),
        ({"data": 4, "fsdp": 16}, 5, {"data": 8, "fsdp": 1}),
        ({"data": -1, "tensor": 3}, 8, {"data": 8, "fsdp": 1}),
    ],
)
def test_results_do_not_depend_on_batch_size_and_mesh(workdir, tmp_path, mesh, batch_size, expected):
    """On eight devices, some meshes of training do not fit, and some batches must be larger."""
    first = evaluate(workdir, reuse=True)
    shutil.copytree(workdir, tmp_path / "copy")
    config = json.loads((workdir / "config.json").read_text())
    config["eval"]["batch_size"] = batch_size
    config["train"]["batch_size"] = 7
    config["mesh"] |= mesh
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    assert expected.items() <= evaluation_mesh(load_config(tmp_path / "copy")).shape.items()
    assert evaluate(tmp_path / "copy")["retrieval"] == first["retrieval"]


def test_breakdowns_and_other_galleries_are_consistent(workdir):
    metrics = evaluate(workdir, reuse=True)
    for name, values in metrics["retrieval"].items():
        low, high = metrics["intervals"]["retrieval"][name]["map"]
        assert low <= values["map"] <= high
        for parts in (metrics["by_frames"][name], metrics["by_text"][name]):
            assert sum(part["queries"] for part in parts.values()) == values["queries"]
        assert list(metrics["by_frames"][name]) == ["1"] or name[0] != "p"  # pages have one image
    assert any("without" in parts for parts in metrics["by_text"].values())
    sizes = {domain: metrics["retrieval"][f"v2{domain[0]}"]["gallery"] for domain in ("page", "live")}
    sizes["video"] = metrics["retrieval"]["p2v"]["gallery"]
    assert {domain: part["gallery"] + 1 for domain, part in metrics["same_domain"].items()} == sizes
    assert {part["gallery"] + 1 for part in metrics["all_domains"].values()} == {sum(sizes.values())}
    modalities, queries = metrics["modalities"], {name: own["queries"] for name, own in metrics["retrieval"].items()}
    assert {name: modalities["frames"][name]["queries"] for name in DIRECTIONS} == queries  # all items have frames
    for name, parts in metrics["by_text"].items():
        assert modalities["both"][name] == modalities["both"][name] | parts["with"] | {"left_out": mock.ANY}
        assert modalities["text"][name]["queries"] == parts["with"]["queries"]
    assert 0 < modalities["text"]["mean_r1"] <= 1
    sources = [("page", "p"), ("video", "v"), ("live", "l")]
    for domain, found in metrics["text"].items():  # texts of other domains, as in the directions, and of the domain
        others = sum(modalities["text"][f"{short}2{domain[0]}"]["queries"] for name, short in sources if name != domain)
        assert others <= found["queries"] <= others + sizes[domain]
        low, high = metrics["intervals"]["text"][domain]["r1"]
        assert low <= found["r1"] <= high
    assert metrics["text"].keys() == sizes.keys()
    assert list(metrics["prefixes"].values())[-1] == metrics["retrieval_mean"]
    assert metrics["macro"].keys() == metrics["few_shot_all"]["1"].keys() == DIRECTIONS
    assert metrics["few_shot_all"]["1"]["p2v"]["ways"] > metrics["few_shot"]["p2v"]["ways"] == 3


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"page": [{}, {"category": " hat, sale"}], "live": []}, {"page": ["", "hat"], "live": []}),
        ({"page": [{}, {"price": "5"}], "live": []}, {}),
    ],
)
def test_categories_are_read_even_if_the_first_item_has_none(tiny_config, monkeypatch, columns, expected):
    records = {domain: [SimpleNamespace(columns=each) for each in own] for domain, own in columns.items()}
    monkeypatch.setattr(evaluate_run, "open_records", lambda *_: SimpleNamespace(items=records))
    items = {domain: SimpleNamespace(rows=np.arange(len(own))) for domain, own in columns.items()}
    found = evaluate_run.read_categories(tiny_config, items)
    assert {domain: own.tolist() for domain, own in found.items()} == expected


def test_report_is_written_and_reused(workdir):
    options = {"step": 6, "needs_report": True}
    first = evaluate_run.evaluate(workdir, reuse=True, **options)
    write_report(workdir, first, first.embedded)
    path = workdir / "eval/6/report.html"
    assert "step 6" in path.read_text(encoding="utf-8")
    assert path.stat().st_size > 100_000
    assert evaluate_run.evaluate(workdir, reuse=True, **options).embedded is None
    path.unlink()
    assert evaluate_run.evaluate(workdir, reuse=True, **options).embedded is not None
    path.write_text("of an earlier evaluation")
    evaluate(workdir, reuse=False, **options)
    assert not path.exists()


def test_subset_has_all_items_of_some_products(workdir):
    config = load_config(workdir)
    records = open_records(config.data.data_dir, "test")
    rows = rows_by_domain(draw_products(config, 7), config.data.domains)
    owners = {product for row in rows["live"] for product in records.items["live"][int(row)].product_ids}
    drawn = [p for p in (records.products[i] for i in range(12)) if p.product_id in owners]
    assert len(drawn) >= 5
    metrics = evaluate(workdir, subset=7)
    assert metrics["retrieval"]["p2l"]["gallery"] == len(rows["live"]) < len(records.items["live"])
    assert metrics["evaluated"]["subset"] == 7
    assert json.loads((workdir / "eval/6/metrics-of-7.json").read_text()) == metrics
    with pytest.raises(ValueError, match="--subset is 13; the split 'test' has 12 products"):
        evaluate(workdir, subset=13)


@pytest.mark.slow
def test_a_single_product_is_evaluated_as_far_as_possible(workdir):
    """There are no negatives and no classes to choose among."""
    found = evaluate_run.evaluate(workdir, subset=1)
    metrics = json.loads(found.files.metrics.read_text())
    assert {own["r1"] for own in metrics["retrieval"].values()} == {1.0}
    assert metrics["few_shot"] == {}
    assert metrics["empty"]["few_shot"].keys() == DIRECTIONS
    expected = "needs 2 products with a query item and 1 support items (config.eval.shots), found 1"
    assert metrics["empty"]["few_shot"]["p2v"] == expected
    write_report(workdir, found, found.embedded, metrics)
    assert "too few items" in found.files.report.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("empty", [("live",), ("page", "live")])
def test_directions_without_results_are_left_out_and_explained(workdir, monkeypatch, empty, capsys):
    """One domain has no items, or two: then no direction has results."""
    drawn = evaluate_run.rows_by_domain

    def without(products, domains):
        return drawn(products, domains) | {domain: np.zeros(0, np.int64) for domain in empty}

    monkeypatch.setattr(evaluate_run, "rows_by_domain", without)
    found = evaluate_run.evaluate(workdir, subset=6)
    metrics = json.loads(found.files.metrics.read_text())
    expected = {"p2v", "v2p"} if empty == ("live",) else set()
    assert metrics["retrieval"].keys() == metrics["few_shot"].keys() == metrics["macro"].keys() == expected
    assert metrics["empty"]["retrieval"].keys() == DIRECTIONS - expected
    assert metrics["empty"]["retrieval"]["v2l"] == "no video has a product in common with a live"
    assert bool(metrics["retrieval_mean"]) == bool(expected)
    tables = format_tables(metrics, metrics)
    assert "V → L: no video has a product in common with a live" in tables
    assert "V → L: needs 2 products" in tables
    write_report(workdir, found, found.embedded, metrics)
    report = found.files.report.read_text(encoding="utf-8")
    assert "video → live has no results: no video has a product in common with a live." in report


@pytest.mark.slow
def test_results_on_other_data_leave_those_of_the_run(workdir, other_data_dir):
    own = evaluate_run.evaluate(workdir, step=6)
    own.files.report.write_text("of the run's own data")
    best = evaluate(workdir, step="best", reuse=True)["step"]
    other = evaluate_run.evaluate(workdir, step="best", data_dir=other_data_dir)
    assert (other.step, other.metrics["retrieval"] == own.metrics["retrieval"]) == (best, False)
    assert other.files.folder.parent == workdir / "eval" / str(best)
    assert other.files.read() == other.metrics
    assert read_metrics(workdir, 6) == own.metrics
    assert own.files.report.read_text() == "of the run's own data"
    again = evaluate_run.evaluate(workdir, step=6, data_dir=Path(own.config.data.data_dir), reuse=True)
    assert again.files == own.files


@pytest.mark.slow
def test_another_split_has_results_of_its_own(workdir):
    own = evaluate_run.evaluate(workdir, step=6)
    other = evaluate_run.evaluate(workdir, step=6, split="train")
    assert other.files.metrics == workdir / "eval/6/train/metrics.json"
    assert other.metrics["evaluated"]["split"] == "train"
    assert other.metrics["retrieval"]["p2v"]["gallery"] > own.metrics["retrieval"]["p2v"]["gallery"]
    assert read_metrics(workdir, 6) == own.metrics
    assert evaluate_run.evaluate(workdir, step=6, split="test", reuse=True).files == own.files


@pytest.mark.slow
def test_results_can_be_written_elsewhere(workdir, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    found = evaluate_run.evaluate(workdir, step=4, out=tmp_path / "results")
    assert found.files.metrics == tmp_path / "results/4/metrics.json"
    assert found.files.read() == found.metrics
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


@pytest.mark.slow
def test_best_step_is_one_of_the_evaluated_steps(workdir):
    evaluate(workdir, step=4)
    evaluate(workdir, step=6)
    assert evaluate(workdir, step="best", reuse=True)["step"] in (4, 6)


TWO = """
import sys
from pathlib import Path
import jax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from cope_jax.search.embedding_store import embed_to_parquet
from cope_jax.evaluation.evaluate_run import evaluate
evaluate(Path(sys.argv[3]))
embed_to_parquet(Path(sys.argv[3]), Path(sys.argv[4]), split="test", rows=7)
"""


@pytest.mark.slow
def test_two_processes_evaluate_and_embed_as_one(workdir, tmp_path):
    """Each embeds half of every batch, counts every other block, and writes every other file."""
    alone = evaluate(workdir, reuse=True)
    embed_to_parquet(workdir, tmp_path / "one", split="test", rows=7)
    shutil.copytree(workdir, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "eval")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, "-c", TWO, port]
    processes = [
        subprocess.Popen(
            [*words, str(i), tmp_path / "copy", tmp_path / "two"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENVIRONMENT,
            cwd=ROOT,
        )
        for i in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    together = read_metrics(tmp_path / "copy", 6)
    assert together["retrieval"] == alone["retrieval"]
    assert together["all_domains"] == alone["all_domains"]
    for path in (tmp_path / "one").rglob("*.parquet"):
        one, two = pq.read_table(path), pq.read_table(tmp_path / "two" / path.relative_to(tmp_path / "one"))
        assert one.drop_columns("embedding").equals(two.drop_columns("embedding"))
        vectors = [np.array(table["embedding"].to_pylist()) for table in (one, two)]
        np.testing.assert_allclose(*vectors, atol=1e-5)


def test_error_for_a_missing_checkpoint_lists_the_existing_ones(workdir):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5 .*there are \[4, 6\]"):
        evaluate(workdir, step=5)


@pytest.mark.parametrize(
    ("field", "value", "difference"),
    [
        ("embedding", 32, r"params/model/fusion/page/\S+: float32\[16.*\] in the checkpoint, float32\[32.*\] by the"),
        ("head_norm", "none", r"statistics/\S+: float32\[16\] in the checkpoint, nothing by the config"),
    ],
)
def test_error_for_a_config_of_another_model(workdir, tmp_path, field, value, difference):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["model"][field] = value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"(?s)is of another model or optimizer than the config:.*{difference}"):
        evaluate(copy)


def test_error_for_a_run_without_checkpoints_says_what_to_do(workdir, tmp_path):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="train first, or use --step=0"):
        evaluate(tmp_path)


def test_invalid_products_are_skipped_and_reported(tiny_config, monkeypatch):
    read = ProductRecords.__getitem__

    def fail_on_record_3(self, index):
        if index == 3:
            raise InvalidItemError("record 3 is invalid")
        return read(self, index)

    every = draw_products(tiny_config, 12)
    monkeypatch.setattr(ProductRecords, "__getitem__", fail_on_record_3)
    invalid_items = InvalidItems()
    found = [product.product_id for product in draw_products(tiny_config, 12, invalid_items)]
    assert found == [product.product_id for number, product in enumerate(every) if number != 3]
    assert list(invalid_items.last) == ["record 3 is invalid"]
    with pytest.raises(InvalidItemError, match="record 3 is invalid"):
        draw_products(tiny_config, 12)
