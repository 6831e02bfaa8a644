"""Means that merge, and a log that goes on where a run does."""

import json

import numpy as np
import pytest

from cope_jax.training.metrics import Mean, MetricsLog, Reporter, keep_lines_until, merge_all
from cope_jax.training.progress import Progress, clock


def mean(total: float, count: float) -> Mean:
    return Mean(np.float32(total), np.float32(count))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_merging_weighs_by_count():
    assert merge_all([{"x": mean(3, 1)}, {"x": mean(5, 3)}]) == {"x": pytest.approx(2.0)}
    assert np.isnan(mean(0, 0).compute())


def test_windows_are_reported_a_step_late_and_flushed(tmp_path):
    with MetricsLog(tmp_path, step=0) as log:
        reporter = Reporter(log, Progress(start=0, steps=5, batch_size=2), every=2, last=5)
        for step, loss in enumerate([1.0, 3.0, 5.0, 9.0, 4.0], start=1):
            reporter.add(step, {"loss": mean(loss, 1)})
            assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [2, 4][: (step - 1) // 2]
        reporter.flush()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 2, "loss": 2.0},
        {"step": 4, "loss": 7.0},
        {"step": 5, "loss": 4.0},
    ]


def test_a_resumed_log_drops_what_will_be_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1}\n{"step": 4, "loss": 2}\n{"step": 6, "lo', encoding="utf-8")
    keep_lines_until(path, 3)
    assert lines(path) == [{"step": 2, "loss": 1}]
    with MetricsLog(tmp_path, step=3) as log:
        log.write(4, {"loss": 0.5, "empty": float("nan")})
    assert lines(path)[1] == {"step": 4, "loss": 0.5, "empty": None}


def test_a_cut_off_line_goes_even_when_its_step_may_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1}\n{"step": 4, "lo', encoding="utf-8")
    keep_lines_until(path, 9)
    assert lines(path) == [{"step": 2, "loss": 1}]


def test_progress_tells_rate_and_time_left(capsys, monkeypatch):
    seconds = iter([100.0, 140.0, 160.0])
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    progress = Progress(start=0, steps=9, batch_size=16)
    for step in (1, 5, 9):
        progress.update(step, 0.25)
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["step", "1/9", "loss", "0.2500", "–", "examples/s", "–", "left"]
    assert second.split()[-4:] == ["1.6", "examples/s", "0:40", "left"]  # 4 steps of 16 in 40 s, 4 to go
    assert last.split()[-2:] == ["0:00", "left"]


def test_clock():
    assert (clock(245.9), clock(3723)) == ("4:05", "1:02:03")
