"""Profiler traces of chosen steps; `test_loop.py` writes a real one."""

import jax
import pytest

from cope_jax.training.supervision.tracing import Profiler, parse_steps


def test_a_resumed_run_traces_the_remaining_steps(tmp_path, monkeypatch, capsys):
    events = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    profiler = Profiler(tmp_path, (4, 6))
    for step in (5, 6, 7):
        profiler.before_step(step)
        events.append(step)
        profiler.after_step(step, None)
    assert events == ["start", 5, 6, "stop", 7]
    assert f"trace of steps 4 to 6 in {tmp_path}: tensorboard --logdir={tmp_path}" in capsys.readouterr().out


def test_steps_are_parsed():
    assert parse_steps("10:15") == (10, 15)
    assert parse_steps("7:7") == (7, 7)
    assert parse_steps("") is None


@pytest.mark.parametrize("text", ["10", "10:", ":15", "15:10", "0:3", "a:b", "1:2:3"])
def test_invalid_steps_are_errors(text):
    with pytest.raises(ValueError, match=f"--profile_steps is '{text}'; it must be FIRST:LAST, such as 10:15"):
        parse_steps(text)
