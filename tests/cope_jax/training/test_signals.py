"""Signals that ask a run to stop."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cope_jax.training.signals import StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.agreed(1)
        assert not stop.interrupts()
        os.kill(os.getpid(), number)
        assert stop.agreed(2)
        assert stop.interrupts()
    assert signal.getsignal(number) == before


# In C for minutes, like a compiler, so that no Python handler runs.
BUSY = """
import hashlib
from cope_jax.training.signals import StopSignal

with StopSignal():
    print("listening", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)
"""


def test_the_second_signal_ends_the_process_at_once():
    busy = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    with busy:
        assert busy.stdout.readline() == "listening\n"
        for _ in range(2):
            assert busy.poll() is None
            busy.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        try:
            assert busy.wait(10) == 128 + signal.SIGTERM
        finally:
            busy.kill()
