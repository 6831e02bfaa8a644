"""States of a model and of training."""

from typing import NamedTuple

import jax
from flax import struct
from jaxtyping import PyTree


class ModelState(NamedTuple):
    """Values of a model.

    Attributes:
        params: Tree of float32 arrays that the optimizer changes.
        statistics: Tree of float32 arrays that training batches change; empty if no layer keeps any.
    """

    params: PyTree
    statistics: PyTree


class TrainState(struct.PyTreeNode):
    """All that changes during training, and all that a checkpoint contains.

    Attributes:
        step: int32[], number of steps taken. Together with the seed it determines the next batch and random draws.
        params: {"model": …, "loss": …}, trees of float32 arrays.
        statistics: Running statistics of the model.
        opt_state: State of the optax optimizer.
        average: Moving average of the model over the steps; None if the config does not ask for one.
    """

    step: jax.Array
    params: PyTree
    statistics: PyTree
    opt_state: PyTree
    average: ModelState | None = None
