"""The training step: a pure function of the state and a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct

from cope_jax.domains import DOMAINS
from cope_jax.losses.domain_pairs import domain_pairs_loss
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
    *, graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, groups: Groups, seed: int
) -> StepFunction:
    """The function to jit.

    Args:
        graphdef: of the `CopeModel`, split once outside.
        optimizer: whose state `TrainState.opt_state` is.
        groups: its groups, to leave out the gradients of frozen parameters.
        seed: of dropout and stochastic depth.
    """

    def loss_and_metrics(params: Any, statistics: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        params = hold_frozen(params, groups)
        model = nnx.merge(graphdef, params["model"], statistics)
        embeddings = model(batch, rngs=nnx.Rngs(dropout=key))
        loss, watched = domain_pairs_loss(
            {domain: embeddings[domain].fused for domain in DOMAINS},
            {domain: batch[domain]["products"] for domain in DOMAINS},
            {domain: batch[domain]["present"] for domain in DOMAINS},
            params["loss"],
        )
        moved = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return loss, (moved, {name: Mean(*value) for name, value in watched.items()})

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Mean]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, (statistics, metrics)), gradients = jax.value_and_grad(loss_and_metrics, has_aux=True)(
            state.params, state.statistics, batch, key
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics |= {
            "loss": Mean.of(loss),
            "gradient_norm": Mean.of(optax.tree.norm(gradients)),
            "t": Mean.of(jnp.exp(state.params["loss"]["log_t"])),
            "bias": Mean.of(state.params["loss"]["bias"]),
        }
        params = optax.apply_updates(state.params, updates)
        state = TrainState(step=state.step + 1, params=params, statistics=statistics, opt_state=opt_state)
        return state, metrics

    return train_step
