"""Means that merge, and a log that goes on where a run does."""

import json
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from cope_jax.data.bad_items import Faults
from cope_jax.runs.log_lines import keep_lines_until, read_lines
from cope_jax.runs.progress import Progress, Saved, clock
from cope_jax.training.metrics import Mean, MetricsLog, Reporter, merge_all


def mean(total: float, count: float) -> Mean:
    return Mean(np.float32(total), np.float32(count))


PRODUCTS = np.array([3, 5])


def step_metrics(loss, skipped=0, bad=0):
    return {"loss": mean(loss, 1), "skipped": mean(skipped, 1), "bad_items": mean(bad, 10)}


def report_to(log, *, steps, every=2, window=(), **changes):
    values = {"every": every, "last": steps, "max_skipped": 0, "max_bad_fraction": 0.1, "faults": Faults()}
    progress = Progress(steps=steps, batch_size=2)
    return Reporter(log, progress, window=dict(window), **values | changes)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_merging_weighs_by_count():
    assert merge_all([{"x": mean(3, 1)}, {"x": mean(5, 3)}]) == {"x": pytest.approx(2.0)}
    assert np.isnan(mean(0, 0).compute())


def test_windows_are_reported_a_step_late_and_flushed(tmp_path):
    reporter = report_to(MetricsLog(tmp_path, step=0), steps=5)
    for step, loss in enumerate([1.0, 3.0, 5.0, 9.0, 4.0], start=1):
        reporter.add(step, step_metrics(loss), PRODUCTS)
        assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [2, 4][: (step - 1) // 2]
    reporter.flush()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 2, "loss": 2.0, "skipped": 0.0, "bad_items": 0.0},
        {"step": 4, "loss": 7.0, "skipped": 0.0, "bad_items": 0.0},
        {"step": 5, "loss": 4.0, "skipped": 0.0, "bad_items": 0.0},
    ]


def test_a_window_goes_on_in_another_process_to_the_last_bit(tmp_path):
    """Thirds, whose sums depend on their order."""
    values = [1 / 3, 1e4 / 3, 1e-3 / 3]
    for name, cut in (("whole", ()), ("stopped", (1, 2))):
        window = {}
        (tmp_path / name).mkdir()
        log = MetricsLog(tmp_path / name, step=0)
        reporter = report_to(log, steps=3, every=3)
        for step, loss in enumerate(values, start=1):
            reporter.add(step, step_metrics(loss), PRODUCTS)
            if step in cut:
                reporter.flush()
                window = json.loads(json.dumps(reporter.open_window()))
                reporter = report_to(log, steps=3, every=3, window=window)
        reporter.flush()
    assert window["loss"][1] == 2
    assert lines(tmp_path / "whole/metrics.jsonl") == lines(tmp_path / "stopped/metrics.jsonl") != []


def test_skipped_steps_are_told_and_too_many_in_a_row_end_the_run(capsys):
    reporter = report_to(None, steps=9, max_skipped=1)
    for step, skipped in enumerate([1, 0, 1], start=1):
        reporter.add(step, step_metrics(1.0, skipped), PRODUCTS)
    reporter.add(4, step_metrics(1.0, 1), np.array([8, 9]))
    assert (
        capsys.readouterr().out.count("skipped: its loss or gradients were not finite; products of the batch: 3, 5")
        == 2
    )
    with pytest.raises(ValueError, match=r"2 steps .* the last one step 4; config.train.max_skipped .* change nothing"):
        reporter.flush()
    assert "step 4 skipped" in capsys.readouterr().out


def test_too_many_bad_items_end_the_run_and_are_named():
    faults = Faults()
    faults.add(ValueError("record 3 of page-file"))
    reporter = report_to(None, steps=9, faults=faults)
    for step, bad in enumerate([0, 2, 1], start=1):  # a tenth of the first window's items: just allowed
        reporter.add(step, step_metrics(1.0, bad=bad), PRODUCTS)
    reporter.add(4, step_metrics(1.0, bad=2), PRODUCTS)
    with pytest.raises(ValueError, match=r"15.00% of the items .* until 4 .* allows 10.00%.* record 3 of page-file"):
        reporter.flush()


def test_a_resumed_log_drops_what_will_be_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1}\n{"step": 4, "loss": 2}\n{"step": 6, "lo', encoding="utf-8")
    keep_lines_until(path, 3)
    assert lines(path) == [{"step": 2, "loss": 1}]
    speeds = tmp_path / "speed.jsonl"
    speeds.write_text('{"step": 2, "step_s": 1}\n{"step": 4, "step', encoding="utf-8")
    MetricsLog(tmp_path, step=3).write(4, {"loss": 0.5, "empty": float("nan")}, {"step_s": 3.0})
    assert lines(path)[1] == {"step": 4, "loss": 0.5, "empty": None}
    assert lines(speeds) == [{"step": 2, "step_s": 1}, {"step": 4, "step_s": 3.0}]


def test_a_cut_off_line_goes_even_when_its_step_may_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1}\n{"step": 4, "lo', encoding="utf-8")
    keep_lines_until(path, 9)
    assert lines(path) == [{"step": 2, "loss": 1}]


def test_a_full_disk_costs_no_line_and_no_event(tmp_path, full_disk, read_records, capsys):
    """It is told once for each file, nobody waits, and all is there when there is space again."""
    log = MetricsLog(tmp_path, step=0)
    (events,) = (tmp_path / "tensorboard").iterdir()
    for step in range(1, 40):
        full_disk({7: 250, 33: resource.RLIM_INFINITY}.get(step, resource.getrlimit(resource.RLIMIT_FSIZE)[0]))
        log.write(step, {"loss": step / 2}, {"step_s": 0.5})
        if step == 20:
            log.write_evaluation(step, {"mean_r1": 0.25} | {f"r{k}": 0.5 for k in range(20)}, {})
            with pytest.raises(OSError, match=r"metrics.jsonl cannot be written \(File too large\)"):
                log.sync()
        # A line that is cut off may stand at the end.
        assert [line["step"] for line in read_lines(log.reports.path)][:6] == [*range(1, min(step, 6) + 1)]
    log.sync()
    told = capsys.readouterr().err.splitlines()
    assert sorted(Path(line.split()[0]).name for line in told if line) == [
        "evaluations.jsonl",
        events.name,
        "metrics.jsonl",
        "speed.jsonl",
    ]
    assert lines(tmp_path / "metrics.jsonl") == [{"step": step, "loss": step / 2} for step in range(1, 40)]
    assert lines(tmp_path / "speed.jsonl") == [{"step": step, "step_s": 0.5} for step in range(1, 40)]
    assert [line["step"] for line in lines(tmp_path / "evaluations.jsonl")] == [20]
    found = [Event.FromString(record) for record in read_records(events)]
    shown = [(event.step, value.tag) for event in found for value in event.summary.value]
    assert [step for step, tag in shown if tag == "loss"] == [*range(1, 40)]
    assert (20, "eval/mean_r1") in shown


def test_reports_and_evaluations_are_brought_to_the_disk(tmp_path, monkeypatch):
    """For what a machine has in memory goes with it."""
    on_disk = {}

    def fsync(handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        on_disk[path.name] = path.read_text()

    monkeypatch.setattr(os, "fsync", fsync)
    log = MetricsLog(tmp_path, step=0)
    log.sync()
    assert on_disk == {}
    log.write(1, {"loss": 0.5}, {})
    log.write_evaluation(1, {"mean_r1": 0.25}, {})
    log.sync()
    assert on_disk == {
        "metrics.jsonl": '{"step": 1, "loss": 0.5}\n',
        "evaluations.jsonl": '{"step": 1, "mean_r1": 0.25}\n',
    }


def test_events_are_records_as_the_library_writes_them(tmp_path, read_records):
    """And those of a start hide what earlier ones tell of later steps."""
    log = MetricsLog(tmp_path, step=3)
    log.write(4, {"loss": 0.5}, {})
    (path,) = (tmp_path / "tensorboard").iterdir()
    records = [*read_records(path)]
    writer = RecordWriter(str(tmp_path / "reference"))
    for record in records:
        writer.write(record)
    writer.close()
    assert path.read_bytes() == (tmp_path / "reference").read_bytes()
    version, start, report = map(Event.FromString, records)
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (SessionLog.START, 4)
    assert report.summary.value[0].simple_value == 0.5


@pytest.fixture
def clock_hand(monkeypatch):
    """A clock that stands still but for what a test adds to its time."""
    hand = SimpleNamespace(now=100.0)
    monkeypatch.setattr("time.monotonic", lambda: hand.now)
    return hand


def test_progress_tells_speed_waits_and_time_left(capsys, clock_hand):
    """Four steps of 16 examples in 40 s behind the first one, 10 of them spent waiting, and four to go.

    What is no training, does not count.
    """
    progress = Progress(steps=9, batch_size=16, peak_seconds=2.5)
    progress.update(1, 0.25)
    with progress.waiting():
        clock_hand.now += 10
    clock_hand.now += 30
    with progress.standing():
        clock_hand.now += 1000
    progress.saved = Saved(4, clock_hand.now - 12)
    progress.update(5, 0.25)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["step", "1/9", "loss", "0.2500", "–", "examples/s", "–", "left"]
    told = ["1.6 examples/s", "10 s/step", "data 25%", "MFU 25%", "0:40 left", "saved 4, 0:12 ago"]
    assert second.split("  ")[-6:] == told
    assert progress.lap(5)["step_s"] == 10


def test_a_run_that_waits_for_data_is_told_so_once(capsys, clock_hand):
    progress = Progress(steps=9, batch_size=16)
    progress.update(1, 0.25)
    for step in (2, 3, 4):
        with progress.waiting():
            clock_hand.now += 30
        clock_hand.now += 10
        progress.update(step, 0.25)
    assert capsys.readouterr().out.count("the input pipeline is the bottleneck: 75% of the time") == 1


def test_clock():
    assert (clock(245.9), clock(3723)) == ("4:05", "1:02:03")
