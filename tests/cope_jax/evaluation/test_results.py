"""Stored metrics and the best step."""

import math
import re
import shutil

import pytest

from cope_jax.evaluation.results import (
    ResultFiles,
    best_step,
    evaluation_settings,
    find_step,
    other_data,
    remove_results_after,
)
from cope_jax.runs.config_validation import replace_fields


def test_metrics_are_written_and_read_and_an_old_report_removed(tmp_path):
    files = ResultFiles(tmp_path / "eval/300")
    assert files.read() is None
    files.create_folder()
    files.write({"step": 1})
    files.report.write_text("of these metrics")
    files.write({"step": 300, "retrieval": {"p2v": {"r1": 0.5}}})
    assert files.read() == {"step": 300, "retrieval": {"p2v": {"r1": 0.5}}}
    assert [file.name for file in files.folder.iterdir()] == ["metrics.json"]


def test_error_for_metrics_that_were_cut_off(tmp_path):
    (tmp_path / "metrics.json").write_text('{"step": 1, "retr')
    with pytest.raises(ValueError, match=r"metrics.json is not valid JSON .*: remove it and evaluate again"):
        ResultFiles(tmp_path).read()


def test_error_for_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/6 cannot be written \(Not a directory\); choose .* with --out"):
        ResultFiles(tmp_path / "file/6").create_folder()


def test_file_names(tmp_path):
    assert ResultFiles(tmp_path, 200).metrics == tmp_path / "metrics-of-200.json"
    assert ResultFiles(tmp_path, average=True).report == tmp_path / "average-report.html"


def test_nan_is_an_error_and_keeps_the_old_files(tmp_path):
    files = ResultFiles(tmp_path)
    files.write({"step": 1})
    files.report.write_text("of these metrics")
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write({"step": math.nan})
    assert files.read() == {"step": 1}
    assert files.report.exists()


def test_the_seed_is_a_setting_of_evaluation_only_if_it_draws_the_products(tiny_config):
    config = replace_fields(tiny_config, {"seed": 3})
    assert evaluation_settings(config, 7)["seed"] == 3
    assert evaluation_settings(config, None) == evaluation_settings(tiny_config, None)


def test_results_of_later_steps_are_removed(tmp_path):
    remove_results_after(tmp_path, 0)
    for name in ("0", "4", "10/data-test-12345678"):
        (tmp_path / "eval" / name).mkdir(parents=True)
    remove_results_after(tmp_path, 4)
    assert {path.name for path in (tmp_path / "eval").iterdir()} == {"0", "4"}


def test_only_other_data_have_folders_of_their_own(tiny_config, data_dir, tmp_path):
    assert other_data(tiny_config, None, "test") == ""
    assert other_data(tiny_config, data_dir, "test") == ""
    copy = shutil.copytree(data_dir, tmp_path / "copy")
    assert other_data(tiny_config, copy, "test") == ""
    file = next((copy / "rope/page").glob("*/*test*array_record*"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    name = other_data(tiny_config, copy, "test")
    assert re.fullmatch(r"copy-test-[0-9a-f]{8}", name)
    moved = replace_fields(tiny_config, {"data.data_dir": str(tmp_path / "gone")})
    assert other_data(moved, copy, "test") == name


def test_best_step_has_the_highest_mean_on_the_same_items(tmp_path):
    evaluated = {"data": "d1", "split": "test", "subset": None}

    def put(step: int, mean: float, **changes) -> None:
        files = ResultFiles(tmp_path / "eval" / str(step))
        files.create_folder()
        files.write({"retrieval_mean": {"mean_r1": mean}, "evaluated": evaluated | changes})

    with pytest.raises(
        FileNotFoundError, match=r"no step of .* was evaluated on split 'test' of the run's own data.*--step=N"
    ):
        best_step(tmp_path, evaluated)
    put(0, 0.9)  # the untrained model does not count
    put(4, 0.5)
    put(6, 0.5, data_dir="moved")
    put(8, 0.8, data="d2")
    put(10, 0.3)
    assert best_step(tmp_path, evaluated) == 6


def test_the_best_step_is_found_without_the_data(tiny_config, tmp_path):
    config = replace_fields(tiny_config, {"data.data_dir": str(tmp_path / "gone")})
    for step, mean in ((2, 0.4), (4, 0.7)):
        evaluated = {"data": "d1", "split": "test", "subset": None}
        files = ResultFiles(tmp_path / "eval" / str(step))
        files.create_folder()
        files.write({"retrieval_mean": {"mean_r1": mean}, "evaluated": evaluated})
    assert find_step(tmp_path, "best", config) == 4
