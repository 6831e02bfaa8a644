"""One run at a time in a work directory."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from cope_jax.runs.lock import locked

HOLD = "import sys, time; from pathlib import Path; from cope_jax.runs.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


def test_a_second_run_is_refused_until_the_first_one_dies(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=rf"process {holder.pid} on .* trains in .*: wait for it"),
            locked(tmp_path),
        ):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_storage_without_locks_is_told(tmp_path, monkeypatch, number):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.raises(ValueError, match=rf"{tmp_path} cannot be locked \({os.strerror(number)}\): .* --workdir"),
        locked(tmp_path),
    ):
        pass
