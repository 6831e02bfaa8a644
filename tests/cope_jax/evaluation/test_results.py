"""Stored metrics and the best step."""

import json
import math

import pytest

from cope_jax.evaluation.results import best_step, metrics_path, read_metrics, report_path, write_metrics


def test_metrics_are_written_and_read(tmp_path):
    assert read_metrics(tmp_path, 300) is None
    path = metrics_path(tmp_path, 300)
    write_metrics(path, {"step": 1})
    write_metrics(path, {"step": 300, "retrieval": {"p2v": {"r1": 0.5}}})
    assert read_metrics(tmp_path, 300) == {"step": 300, "retrieval": {"p2v": {"r1": 0.5}}}
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]


def test_file_names(tmp_path):
    assert metrics_path(tmp_path, 4, 200) == tmp_path / "eval/4/metrics-of-200.json"
    assert report_path(tmp_path, 4, average=True) == tmp_path / "eval/4/average-report.html"


def test_nan_is_an_error_and_keeps_the_old_file(tmp_path):
    path = metrics_path(tmp_path, 4)
    write_metrics(path, {"step": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(path, {"step": math.nan})
    assert read_metrics(tmp_path, 4) == {"step": 1}


def test_best_step_has_the_highest_mean_on_the_same_items(tmp_path):
    evaluated = {"data": "d1", "split": "test", "subset": None, "data_dir": "data"}

    def put(step: int, mean: float, **changes) -> None:
        path = metrics_path(tmp_path, step)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"retrieval_mean": {"mean_r1": mean}, "evaluated": evaluated | changes}))

    with pytest.raises(FileNotFoundError, match=r"no step of .* was evaluated on split 'test' of data.*--step=N"):
        best_step(tmp_path, evaluated)
    put(0, 0.9)  # the untrained model does not count
    put(4, 0.5)
    put(6, 0.5, data_dir="moved")
    put(8, 0.8, data="d2")
    put(10, 0.3)
    assert best_step(tmp_path, evaluated) == 6
