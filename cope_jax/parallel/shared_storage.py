"""The work directory of a run: held by one run at a time, and seen by all its hosts."""

import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

SHARED_SECONDS = 30.0  # shared file systems may show a new file that late


def check_shared(workdir: Path) -> None:
    """Finds out in seconds whether all processes see the same work directory.

    Raises:
        ValueError: some do not; names them.
    """
    if jax.process_count() == 1:
        return
    path = workdir / ".shared"
    token = str(multihost_utils.broadcast_one_to_all(np.uint32(time.time_ns() & 0xFFFFFFFF)))
    if jax.process_index() == 0:
        path.write_text(token, encoding="utf-8")
    if blind := blind_processes(lambda: path.exists() and path.read_text(encoding="utf-8") == token):
        raise ValueError(
            f"process {blind} of {jax.process_count()} does not see what process 0 writes in {workdir.absolute()}: "
            "--workdir must be on storage that all hosts share, under the same path"
        )


def blind_processes(look: Callable[[], bool]) -> str:
    """The numbers of the processes, "1, 3", in which a look at the storage does not succeed in time; "" of none."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not (seen := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return ", ".join(map(str, np.flatnonzero(~multihost_utils.process_allgather(np.array(seen)))))
