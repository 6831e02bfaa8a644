"""Reports of a run's metrics, and logs of a run that resumes or fills its disk."""

import json
import os
import resource
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from configs import default
from cope_jax.data.records import InvalidItems
from cope_jax.runs.config_validation import resolve_config
from cope_jax.runs.log_files import read_json_lines
from cope_jax.training.objective import Mean
from cope_jax.training.progress import TrainingProgress
from cope_jax.training.reporting import EventFile, MetricsLog, Reporter, WandbRun

PRODUCTS = np.array([3, 5])


def mean(total: float, count: float) -> Mean:
    return Mean(np.float32(total), np.float32(count))


def step_metrics(loss, skipped=0, bad=0):
    return {"loss": mean(loss, 1), "skipped": mean(skipped, 1), "bad_items": mean(bad, 10)}


def make_reporter(log, *, steps, every=2, window=(), max_skipped=0, invalid=()):
    changes = {"train.steps": steps, "train.log_every": every, "train.max_skipped": max_skipped}
    config = resolve_config(default.get_config(), changes | {"optimizer.warmup_steps": 1, "data.max_bad_fraction": 0.1})
    return Reporter(config, log, TrainingProgress(steps=steps, batch_size=2), invalid or InvalidItems(), dict(window))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_windows_are_reported_one_step_late_and_when_flushed(tmp_path):
    reporter = make_reporter(MetricsLog(tmp_path, step=0), steps=5)
    for step, loss in enumerate([1.0, 3.0, 5.0, 9.0, 4.0], start=1):
        reporter.add(step, step_metrics(loss), PRODUCTS)
        assert [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [2, 4][: (step - 1) // 2]
    reporter.flush()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 2, "loss": 2.0, "skipped": 0.0, "bad_items": 0.0},
        {"step": 4, "loss": 7.0, "skipped": 0.0, "bad_items": 0.0},
        {"step": 5, "loss": 4.0, "skipped": 0.0, "bad_items": 0.0},
    ]


def test_a_window_continues_in_another_process_to_the_last_bit(tmp_path):
    """Sums of thirds depend on their order."""
    values = [1 / 3, 1e4 / 3, 1e-3 / 3]
    for name, stops in (("whole", ()), ("stopped", (1, 2))):
        window = {}
        (tmp_path / name).mkdir()
        log = MetricsLog(tmp_path / name, step=0)
        reporter = make_reporter(log, steps=3, every=3)
        for step, loss in enumerate(values, start=1):
            reporter.add(step, step_metrics(loss), PRODUCTS)
            if step in stops:
                reporter.flush()
                window = json.loads(json.dumps(reporter.open_window()))
                reporter = make_reporter(log, steps=3, every=3, window=window)
        reporter.flush()
    assert window["loss"][1] == 2
    assert lines(tmp_path / "whole/metrics.jsonl") == lines(tmp_path / "stopped/metrics.jsonl") != []


def test_a_window_that_another_version_opened_continues_with_the_metrics_of_this_one(tmp_path):
    window = {"loss": (5.0, 2.0), "former": (3.0, 2.0)}
    reporter = make_reporter(MetricsLog(tmp_path, step=2), steps=3, every=3, window=window)
    reporter.add(3, step_metrics(1.0), PRODUCTS)
    reporter.flush()
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 3, "loss": 2.0, "skipped": 0.0, "bad_items": 0.0}]


def test_skipped_steps_are_reported_and_too_many_in_a_row_are_an_error(capsys):
    reporter = make_reporter(None, steps=9, max_skipped=1)
    for step, skipped in enumerate([1, 0, 1], start=1):
        reporter.add(step, step_metrics(1.0, skipped), PRODUCTS)
    reporter.add(4, step_metrics(1.0, 1), np.array([8, 9]))
    output = capsys.readouterr().out
    assert output.count("skipped: loss or gradients not finite; products in the batch: 3, 5") == 2
    with pytest.raises(ValueError, match=r"steps 3 to 4 were skipped .*at most 1 in a row may be"):
        reporter.flush()
    assert "step 4 skipped" in capsys.readouterr().out


def test_the_last_step_must_not_be_skipped():
    reporter = make_reporter(None, steps=2, max_skipped=5)
    reporter.add(2, step_metrics(1.0, 1), PRODUCTS)
    with pytest.raises(ValueError, match=r"step 2 was skipped because .*; the last step of a run must not be"):
        reporter.flush()


def test_too_many_unreadable_items_are_an_error_that_names_them():
    invalid = InvalidItems()
    invalid.add(ValueError("record 3 of page-file"))
    reporter = make_reporter(None, steps=9, invalid=invalid)
    for step, bad in enumerate([0, 2, 1], start=1):  # a tenth of the first window's items: just allowed
        reporter.add(step, step_metrics(1.0, bad=bad), PRODUCTS)
    reporter.add(4, step_metrics(1.0, bad=2), PRODUCTS)
    with pytest.raises(ValueError, match=r"15.00% of the items .* until 4 .* allows 10.00%.* record 3 of page-file"):
        reporter.flush()


def test_a_resumed_log_drops_lines_that_will_be_written_again(tmp_path):
    metrics, speed = tmp_path / "metrics.jsonl", tmp_path / "speed.jsonl"
    metrics.write_text('{"step": 2, "loss": 1}\n{"step": 4, "loss": 2}\n', encoding="utf-8")
    speed.write_text('{"step": 2, "step_s": 1}\n{"step": 4, "step', encoding="utf-8")
    MetricsLog(tmp_path, step=3).write_metrics(4, {"loss": 0.5, "empty": float("nan")}, {"step_s": 3.0}, 0.1)
    assert lines(metrics) == [{"step": 2, "loss": 1}, {"step": 4, "loss": 0.5, "empty": None}]
    assert lines(speed) == [{"step": 2, "step_s": 1}, {"step": 4, "step_s": 3.0}]


def test_a_full_disk_loses_no_line_and_no_event(tmp_path, full_disk, read_records, capsys):
    """It is reported once for each file, blocks nobody, and everything is written when there is space again."""
    log = MetricsLog(tmp_path, step=0)
    (events,) = (tmp_path / "tensorboard").iterdir()
    for step in range(1, 40):
        full_disk({7: 250, 33: resource.RLIM_INFINITY}.get(step, resource.getrlimit(resource.RLIMIT_FSIZE)[0]))
        log.write_metrics(step, {"loss": step / 2}, {"step_s": 0.5}, 0.1)
        if step == 20:
            log.write_evaluation(step, {"mean_r1": 0.25} | {f"r{k}": 0.5 for k in range(20)}, {})
            with pytest.raises(OSError, match=r"metrics.jsonl cannot be written \(File too large\)"):
                log.sync()
        # There may be an incomplete line at the end.
        assert [line["step"] for line in read_json_lines(log.metrics.path)][:6] == [*range(1, min(step, 6) + 1)]
    log.sync()
    warnings = capsys.readouterr().err.splitlines()
    assert sorted(Path(line.split()[0]).name for line in warnings if line) == [
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
    assert [step for step, tag in shown if tag == "losses/loss"] == [*range(1, 40)]
    assert (20, "retrieval/mean_r1") in shown


def test_metrics_and_evaluations_are_synced_to_the_disk(tmp_path, monkeypatch):
    """A file is on disk once `sync` has returned: a machine that stops loses the rest."""
    on_disk = {}

    def fsync(handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        on_disk[path.name] = path.read_text()

    monkeypatch.setattr(os, "fsync", fsync)
    log = MetricsLog(tmp_path, step=0)
    log.sync()
    assert on_disk == {}
    log.write_metrics(1, {"loss": 0.5}, {}, 0.1)
    log.write_evaluation(1, {"mean_r1": 0.25}, {})
    log.sync()
    assert on_disk == {
        "metrics.jsonl": '{"step": 1, "loss": 0.5}\n',
        "evaluations.jsonl": '{"step": 1, "mean_r1": 0.25}\n',
    }


def test_means_of_a_window_are_weighted_by_count(tmp_path):
    reporter = make_reporter(MetricsLog(tmp_path, step=0), steps=2)
    for step, total, count in ((1, 3.0, 1), (2, 5.0, 3)):
        reporter.add(step, step_metrics(1.0) | {"x": mean(total, count)}, PRODUCTS)
    reporter.flush()
    assert lines(tmp_path / "metrics.jsonl")[0]["x"] == 2.0


def test_curves_are_grouped_and_show_the_learning_rate_of_the_step(tmp_path, read_records):
    """The schedule begins with 0, which is the rate of step 1, and rises to its peak, 1e-3, in step 2."""
    log = MetricsLog(tmp_path, step=0)
    reporter = make_reporter(log, steps=3, every=2)
    own = {"sigmoid/t": mean(3.0, 1), "gradient_norm": mean(4.0, 1), "infonce/accuracy/page_live": mean(1.0, 1)}
    for step in (1, 2, 3):
        reporter.add(step, step_metrics(2.0) | own, PRODUCTS)
    reporter.flush()
    log.write_evaluation(3, {"mean_r1": 0.75}, {})
    (path,) = (tmp_path / "tensorboard").iterdir()
    events = map(Event.FromString, read_records(path))
    shown = {(value.tag, event.step): value.simple_value for event in events for value in event.summary.value}
    rates = [shown.pop(("optimization/learning_rate", step)) for step in (2, 3)]
    assert rates == pytest.approx([1e-3, 5e-4])
    assert {tag for tag, _ in shown if not tag.startswith("speed/")} == {
        "losses/loss",
        "losses/sigmoid/t",
        "optimization/gradient_norm",
        "optimization/skipped",
        "pair_accuracy/infonce/page_live",
        "data/bad_items",
        "retrieval/mean_r1",
    }


def test_events_are_records_as_tensorboardx_writes_them(tmp_path, read_records):
    """The session start hides later steps of earlier files."""
    EventFile(tmp_path / "events", step=3).add_scalars(4, {"loss": 0.5, "rate": 0.25})
    (path,) = (tmp_path / "events").iterdir()
    records = [*read_records(path)]
    writer = RecordWriter(str(tmp_path / "reference"))
    for record in records:
        writer.write(record)
    writer.close()
    assert path.read_bytes() == (tmp_path / "reference").read_bytes()
    version, start, scalars = map(Event.FromString, records)
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (SessionLog.START, 4)
    assert {value.tag: value.simple_value for value in scalars.summary.value} == {"loss": 0.5, "rate": 0.25}


def test_numbers_that_are_not_finite_are_left_out_without_a_warning(tmp_path, read_records, caplog):
    log = MetricsLog(tmp_path, step=0)
    log.write_evaluation(1, {"loss": float("nan"), "rate": 0.25}, {"scores": np.array([0.5, np.inf])})
    assert "NaN" not in caplog.text
    (path,) = (tmp_path / "tensorboard").iterdir()
    *_, scalars, _ = map(Event.FromString, read_records(path))
    assert [value.tag for value in scalars.summary.value] == ["retrieval/rate"]


def read_wandb(path):
    """Returns names and values from the file of an offline run of W&B: a header, and a log like LevelDB's."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, record, logged = path.read_bytes(), 7, b"", []
    while position < len(content):
        if (left := 2**15 - position % 2**15) < 7:  # of a block
            position += left
            continue
        if len(content) < position + 7:  # it is being written
            break
        _, size, part = struct.unpack_from("<IHB", content, position)
        if len(content) < position + 7 + size:
            break
        record += content[position + 7 : position + 7 + size]
        position += 7 + size
        if part in (1, 4):  # a whole record, or the last part of one
            items, record = Record.FromString(record).history.item, b""
            logged += [(item.key or "/".join(item.nested_key), json.loads(item.value_json)) for item in items]
    return logged


def test_weights_and_biases_gets_the_same_and_continues_its_curves(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = MetricsLog(tmp_path, step=0, wandb=WandbRun("shop", tmp_path, {"seed": 3}))
    log.write_examples(1, {"product_id": np.array([7]), "page": {"frames": np.zeros((1, 1, 4, 6, 3), np.uint8)}})
    log.write_metrics(2, {"loss": 0.5, "empty": float("nan")}, {}, 0.25)
    log.write_evaluation(2, {"mean_r1": 0.75}, {"scores": np.array([0.5, np.inf, 1.5])})
    log.close()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while sum(name == "step" for name, _ in read_wandb(path)) < 4:
        assert time.monotonic() < deadline  # W&B writes the file in a process of its own
        time.sleep(0.02)
    logged = read_wandb(path)
    assert [value for name, value in logged if name == "step"] == [1, 2, 2, 2]
    shown = dict(logged)
    assert {name: shown[name] for name in ("losses/loss", "optimization/learning_rate", "retrieval/mean_r1")} == {
        "losses/loss": 0.5,
        "optimization/learning_rate": 0.25,
        "retrieval/mean_r1": 0.75,
    }
    assert "losses/empty" not in shown
    assert (len(shown["scores/values"]), sum(shown["scores/values"])) == (64, 2)
    assert (shown["batch/product 7: page/width"], shown["batch/product 7: page/height"]) == (6, 4)
    started, ignore = [], lambda *_, **__: None
    monkeypatch.setattr("wandb.init", lambda **own: started.append(own) or SimpleNamespace(define_metric=ignore))
    WandbRun("shop", tmp_path, {"seed": 3})
    assert (f"run-{started[0]['id']}", started[0]["resume"]) == (path.stem, "allow")


def test_a_missing_wandb_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match=r"config.train.wandb needs the package wandb: pip install 'cope-jax\[wandb\]'"
    ):
        WandbRun("shop", tmp_path, {})
