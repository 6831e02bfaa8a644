"""A run that hangs is ended and reports what it was waiting for."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from cope_jax.parallel.monitor import EXIT_RETRY
from cope_jax.training.watchdog import Watchdog

HANGING = """
import time
from cope_jax.runs.checkpoints import SavedStep
from cope_jax.training.watchdog import Watchdog

def wait_forever():
    time.sleep(600)

with Watchdog(0.5) as watchdog:
    watchdog.finished, watchdog.saved = 7, SavedStep(5, time.monotonic() - 130)
    watchdog.reset("the batch of step 8")
    wait_forever()
"""


def test_a_hanging_run_ends_with_its_stacks_and_what_it_waited_for():
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=100)
    assert ended.returncode == EXIT_RETRY
    assert "in wait_forever" in ended.stderr
    message = "while waiting for the batch of step 8; last finished step: 7, last saved step: 5, 02:1"
    assert message in ended.stderr


@pytest.mark.slow
def test_a_hanging_run_whose_log_hangs_too_is_killed():
    """The log is a full pipe that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(1 << 12))
    os.set_blocking(writer, True)
    code = "from cope_jax.training import watchdog\nwatchdog.REPORT_TIMEOUT = 1\n" + HANGING
    ended = subprocess.run([sys.executable, "-c", code], stderr=writer, timeout=100)
    assert ended.returncode == -signal.SIGALRM
    for end in (reader, writer):
        os.close(end)


def test_a_run_that_makes_progress_is_not_ended():
    """Each activity takes less than the limit, all together more."""
    with Watchdog(1.0) as watchdog:
        for step in range(4):
            watchdog.reset(f"step {step}")
            time.sleep(0.3)


def test_zero_seconds_disable_the_watchdog():
    with Watchdog(0) as watchdog:
        watchdog.reset("nothing")
