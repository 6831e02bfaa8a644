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
        stop.unsaved = True
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

with StopSignal() as stop:
    stop.unsaved = UNSAVED
    print("listening", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)
"""


@pytest.mark.parametrize(
    ("unsaved", "signals", "code", "message"),
    [
        (True, 2, 128 + signal.SIGINT, "stopping after this step; a second signal stops at once"),
        (False, 1, 75, "stopped with nothing to save; run the same command again to continue"),
    ],
)
def test_a_busy_process_ends_at_the_second_signal_or_if_it_has_nothing_to_save(unsaved, signals, code, message):
    program = BUSY.replace("UNSAVED", str(unsaved))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as busy:
        try:
            assert busy.stdout.readline() == "listening\n"
            for _ in range(signals):
                assert busy.poll() is None
                busy.send_signal(signal.SIGINT)
                time.sleep(0.5)
            assert busy.wait(10) == code
            assert busy.stderr.read() == f"\n{message}\n"
        finally:
            busy.kill()
