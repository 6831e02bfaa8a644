"""The training state."""

from typing import Any

import jax
from flax import struct

from cope_jax.runs.model import ModelState


@struct.dataclass
class TrainState:
    """All that changes while training, and all that a checkpoint holds.

    Attributes:
        step: int32[], steps taken; with the seed it also fixes the next batch and the next random draws.
        params: {"model": …, "loss": …}, float32 leaves.
        statistics: the model's running statistics.
        opt_state: of optax.
        average: a moving average of the model over the steps; None where the config asks for none.
    """

    step: jax.Array
    params: Any
    statistics: Any
    opt_state: Any
    average: ModelState | None = None
