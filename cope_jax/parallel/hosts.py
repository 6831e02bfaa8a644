"""What the processes of a run tell each other beside the model's own computation."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def from_all(array: np.ndarray) -> np.ndarray:
    """An array of the same shape from every process, stacked in their order: [processes, …].

    Bit for bit: devices would make 32 bits of 64.
    """
    if jax.process_count() == 1:
        return array[None]
    raw = multihost_utils.process_allgather(np.frombuffer(array.tobytes(), np.uint8))
    return np.ascontiguousarray(raw).view(array.dtype).reshape(-1, *array.shape)


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
