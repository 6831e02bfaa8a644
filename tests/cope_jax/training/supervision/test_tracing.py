"""Steps whose trace is asked for; `test_loop.py` has one written."""

import jax
import pytest

from cope_jax.training.supervision.tracing import Profile, parse_steps


def test_steps_are_told_by_their_first_and_last():
    assert parse_steps("10:15") == (10, 15)
    assert parse_steps("7:7") == (7, 7)
    assert parse_steps("") is None


def test_a_run_that_goes_on_in_between_traces_what_is_left(tmp_path, monkeypatch, capsys):
    done = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: done.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: done.append("stop"))
    profile = Profile(tmp_path, (4, 6))
    for step in (5, 6, 7):
        profile.before(step)
        done.append(step)
        profile.behind(step, None)
    assert done == ["start", 5, 6, "stop", 7]
    assert f"trace of steps 4 to 6 in {tmp_path}: tensorboard --logdir={tmp_path}" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["10", "10:", ":15", "15:10", "0:3", "a:b", "1:2:3"])
def test_steps_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=f"--profile_steps is '{text}'; it must be FIRST:LAST, such as 10:15"):
        parse_steps(text)
