"""The training step: a pure function of the state and a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from flax import nnx, struct
from jax.sharding import Mesh

from cope_jax.training.gradients import batch_gradients, cached_gradients
from cope_jax.training.losses import LossFunction
from cope_jax.training.metrics import Mean
from cope_jax.training.optimizer import Groups, hold_frozen


@struct.dataclass
class TrainState:
    """All that changes while training, and all that a checkpoint holds.

    Attributes:
        step: int32[], steps taken; with the seed it also fixes the next batch and the next random draws.
        params: {"model": …, "loss": …}, float32 leaves.
        statistics: the model's running statistics.
        opt_state: of optax.
    """

    step: jax.Array
    params: Any
    statistics: Any
    opt_state: Any


StepFunction = Callable[[TrainState, Any], tuple[TrainState, dict[str, Mean]]]


def make_train_step(
    *,
    graphdef: nnx.GraphDef,
    loss_of: LossFunction,
    optimizer: optax.GradientTransformation,
    groups: Groups,
    seed: int,
    parts: int,
    mesh: Mesh,
) -> StepFunction:
    """The function to jit.

    Args:
        graphdef: of the `CopeModel`, split once outside.
        loss_of: what is minimised.
        optimizer: whose state `TrainState.opt_state` is.
        groups: its groups, to leave out the gradients of frozen parameters.
        seed: of dropout, stochastic depth and sampled classes.
        parts: micro-batches that a batch is embedded in; 1 is all at once.
        mesh: that batches are cut over.
    """

    def embed(model: Any, statistics: Any, batch: Any, key: jax.Array) -> Any:
        merged = nnx.merge(graphdef, hold_frozen({"model": model}, groups)["model"], statistics)
        embeddings = merged(batch, rngs=nnx.Rngs(dropout=key))
        return embeddings, nnx.to_pure_dict(nnx.state(merged, nnx.BatchStat))

    gradients_of = batch_gradients if parts == 1 else partial(cached_gradients, parts=parts, mesh=mesh)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Mean]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        found = gradients_of(embed, loss_of, state.params, state.statistics, batch, key)
        updates, opt_state = optimizer.update(found.params, state.opt_state, state.params)
        metrics = found.metrics | {
            "loss": Mean.of(found.loss),
            "gradient_norm": Mean.of(optax.tree.norm(found.params)),
        }
        params = optax.apply_updates(state.params, updates)
        state = TrainState(step=state.step + 1, params=params, statistics=found.statistics, opt_state=opt_state)
        return state, metrics

    return train_step
