"""Collective operations between the processes of a run, and checks that they share their storage."""

import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

STORAGE_TIMEOUT = 30.0  # seconds that a shared file system may take to show a new file


def allgather(array: np.ndarray) -> np.ndarray:
    """Returns an array of the same shape from every process, stacked in their order: [processes, …].

    Sends bytes, as JAX would turn 64 bits into 32.
    """
    if jax.process_count() == 1:
        return array[None]
    raw = multihost_utils.process_allgather(np.frombuffer(array.tobytes(), np.uint8))
    return np.ascontiguousarray(raw).view(array.dtype).reshape(jax.process_count(), *array.shape)


def barrier(name: str) -> None:
    """Waits until every process has reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_shared_storage(workdir: Path) -> None:
    """Raises ValueError, naming the processes, if some do not see the work directory of process 0."""
    if jax.process_count() == 1:
        return
    path = workdir / ".shared"
    token = str(multihost_utils.broadcast_one_to_all(np.uint32(time.time_ns() & 0xFFFFFFFF)))
    if jax.process_index() == 0:
        path.write_text(token, encoding="utf-8")
    if failing := processes_failing(lambda: path.exists() and path.read_text(encoding="utf-8") == token):
        raise ValueError(
            f"process {failing} of {jax.process_count()} does not see what process 0 writes to {workdir.absolute()}: "
            "--workdir must be on storage that all hosts share, under the same path"
        )


def processes_failing(check: Callable[[], bool]) -> str:
    """Returns the processes in which a check of the storage does not succeed in time, as "1, 3"; "" if there are none.

    All processes must call this.
    """
    deadline = time.monotonic() + STORAGE_TIMEOUT
    while not (passed := check()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return ", ".join(map(str, np.flatnonzero(~multihost_utils.process_allgather(np.array(passed)))))
