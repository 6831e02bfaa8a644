"""Evaluating a work directory."""

import json

import pytest

from cope_jax.evaluation.run import evaluate, known_metrics, metrics_path
from cope_jax.training.loop import train


@pytest.fixture(scope="module")
def workdir(make_tiny_config, tmp_path_factory):
    """A work directory of a tiny run."""
    folder = tmp_path_factory.mktemp("run")
    train(make_tiny_config(), folder)
    return folder


def test_the_newest_checkpoint_is_evaluated_and_written(workdir):
    metrics = evaluate(workdir)
    assert metrics["step"] == 6
    assert json.loads(metrics_path(workdir, 6).read_text()) == metrics
    assert metrics["retrieval"]["p2v"]["gallery"] >= 12


def test_the_untrained_model_differs_from_the_trained_one(workdir):
    untrained, trained = (evaluate(workdir, step=step) for step in (0, 6))
    assert untrained["retrieval"] != trained["retrieval"]


def test_evaluation_repeats_itself_and_knows_what_it_was_of(workdir, make_tiny_config):
    first = evaluate(workdir)
    path = metrics_path(workdir, 6)
    before = path.stat().st_mtime_ns
    assert evaluate(workdir, reuse=True) == first
    assert path.stat().st_mtime_ns == before
    assert evaluate(workdir) == first
    path.write_text(json.dumps(first | {"evaluated": {"data_dir": "elsewhere"}}))
    assert evaluate(workdir, reuse=True) == first  # of other data: done again
    assert known_metrics(workdir, 6) == first


def test_the_batch_size_does_not_matter(workdir):
    first = evaluate(workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["eval"]["batch_size"] = 24
    (workdir / "config.json").write_text(json.dumps(config))
    assert evaluate(workdir)["retrieval"] == first["retrieval"]


def test_a_missing_checkpoint_is_named_with_those_there_are(workdir):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5 .*there are \[4, 6\]"):
        evaluate(workdir, step=5)


def test_a_run_without_a_checkpoint_says_what_to_do(workdir, tmp_path):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="train first, or ask for --step=0"):
        evaluate(tmp_path)
