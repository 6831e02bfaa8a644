"""Signals that ask a run to stop."""

import os
import signal

import pytest

from cope_jax.training.stop import StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_one_kills(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.behind(1)
        assert not stop.now()
        os.kill(os.getpid(), number)
        assert stop.behind(2)
        assert stop.now()
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) == before
