"""The progress line of a training run."""

from types import SimpleNamespace

import pytest

from cope_jax.runs.checkpoints import SavedStep
from cope_jax.training.progress import TrainingProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr("tqdm.std.time", lambda: clock.now)
    return clock


def test_the_line_shows_speed_waiting_time_and_time_left(capsys, clock):
    """Four steps of 16 examples in 40 s after the first one, 10 s of them waiting, and four to go.

    A pause does not count.
    """
    progress = TrainingProgress(steps=9, batch_size=16, peak_seconds=2.5)
    progress.update(1, 0.25)
    assert capsys.readouterr().out == "step 1/9, loss 0.2500\n"
    with progress.waiting_for_data():
        clock.now += 10
    clock.now += 30
    with progress.paused():
        clock.now += 1000
    progress.saved = SavedStep(4, clock.now - 12)
    progress.update(5, 0.125)
    speed = "1.6 examples/s, 10 s/step, data wait 25%, MFU 25%, 00:40 left"
    assert capsys.readouterr().out == f"step 5/9, loss 0.1250, {speed}, saved 4, 00:12 ago\n"
    assert progress.lap(5)["step_s"] == 10


def test_closing_shows_the_last_step(capsys, clock):
    progress = TrainingProgress(steps=9, batch_size=16)
    progress.update(1, 0.25)
    clock.now += 2
    progress.update(2, 0.5)
    assert capsys.readouterr().out == "step 1/9, loss 0.2500\n"
    progress.bar.close()
    speed = "8.0 examples/s, 2 s/step, data wait 0%, 00:14 left"
    assert capsys.readouterr().out == f"step 2/9, loss 0.5000, {speed}\n"


def test_a_run_that_waits_for_data_is_warned_once(capsys, clock):
    progress = TrainingProgress(steps=9, batch_size=16)
    progress.update(1, 0.25)
    for step in (2, 3, 4):
        with progress.waiting_for_data():
            clock.now += 30
        clock.now += 10
        progress.update(step, 0.25)
    assert capsys.readouterr().out.count("the input pipeline is the bottleneck: 75% of the time") == 1
