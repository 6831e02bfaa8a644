"""A run that stands still ends, and says where."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from cope_jax.parallel.cluster import LOST
from cope_jax.training.supervision.watchdog import Watchdog

STUCK = """
import time
from cope_jax.runs.progress import Saved
from cope_jax.training.supervision.watchdog import Watchdog

def wait_for_ever():
    time.sleep(600)

with Watchdog(0.5) as watchdog:
    watchdog.finished, watchdog.saved = 7, Saved(5, time.monotonic() - 130)
    watchdog.begin("the batch of step 8")
    wait_for_ever()
"""


def test_a_stuck_run_ends_with_its_stacks_and_what_it_waited_for():
    ended = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=100)
    assert ended.returncode == LOST
    assert "in wait_for_ever" in ended.stderr
    told = "while waiting for the batch of step 8; the last finished step is 7, the last one saved 5, 2:1"
    assert told in ended.stderr


def test_a_message_that_cannot_be_written_does_not_keep_it():
    """As where the log lies on what stands still: a pipe that is full and that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(1 << 12))
    os.set_blocking(writer, True)
    code = "from cope_jax.training.supervision import watchdog\nwatchdog.LAST_WORDS = 1\n" + STUCK
    ended = subprocess.run([sys.executable, "-c", code], stderr=writer, timeout=100)
    assert ended.returncode == -signal.SIGALRM
    for end in (reader, writer):
        os.close(end)


def test_a_run_that_moves_is_left_alone():
    """Each part takes less than the limit, all of them more."""
    with Watchdog(1.0) as watchdog:
        for step in range(4):
            watchdog.begin(f"step {step}")
            time.sleep(0.3)


def test_without_a_limit_nothing_is_watched():
    with Watchdog(0) as watchdog:
        watchdog.begin("nothing")
