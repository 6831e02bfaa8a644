"""The training step: a pure function of the state and a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from cope_jax.domains import DOMAINS
from cope_jax.runs.model import ModelState
from cope_jax.runs.state import TrainState
from cope_jax.training.gradients import batch_gradients, cached_gradients
from cope_jax.training.metrics import Mean
from cope_jax.training.objective import LossFunction
from cope_jax.training.optimizer import Groups, hold_frozen

StepFunction = Callable[[TrainState, Any], tuple[TrainState, dict[str, Mean]]]


def make_train_step(
    *,
    graphdef: nnx.GraphDef,
    loss_of: LossFunction,
    optimizer: optax.GradientTransformation,
    groups: Groups,
    seed: int,
    parts: int,
    average_decay: float,
    mesh: Mesh,
) -> StepFunction:
    """The function to jit. A step whose loss or gradient is not finite changes nothing but its number.

    Args:
        graphdef: of the `CopeModel`, split once outside.
        loss_of: what is minimised.
        optimizer: whose state `TrainState.opt_state` is.
        groups: its groups, to leave out the gradients of frozen parameters.
        seed: of dropout, stochastic depth and sampled classes.
        parts: micro-batches that a batch is embedded in; 1 is all at once.
        average_decay: of `TrainState.average`, where the state has one.
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
        gradient_norm = optax.tree.norm(found.params)
        metrics = found.metrics | {
            "loss": Mean.of(found.loss),
            "gradient_norm": Mean.of(gradient_norm),
            "update_norm": Mean.of(optax.tree.norm(updates)),
            "bad_items": share_of_bad_items(batch),
        }
        params = optax.apply_updates(state.params, updates)
        changed = state.replace(params=params, statistics=found.statistics, opt_state=opt_state)
        if state.average is not None:
            model = ModelState(params["model"], found.statistics)
            changed = changed.replace(average=moved(state.average, model, step=state.step, decay=average_decay))
        # One bad batch would make every parameter NaN for good. The loss is of all devices, so all skip it or none.
        finite = jnp.isfinite(found.loss) & jnp.isfinite(gradient_norm)
        state = jax.tree.map(partial(jnp.where, finite), changed, state)
        metrics = {name: mean.where(finite) for name, mean in metrics.items()}
        return state.replace(step=state.step + 1), metrics | {"skipped": Mean.of(1 - finite.astype(jnp.float32))}

    return train_step


def moved(average: ModelState, model: ModelState, *, step: jax.Array, decay: float) -> ModelState:
    """The exponential moving average with one more model.

    The first steps weigh more, (1 + step) / (10 + step) in place of `decay` as long as that is less: or the random
    start would stay in the average for thousands of steps. What does not change, stays as it is to the last bit.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - kept) * (new - old), average, model)


def share_of_bad_items(batch: Any) -> Mean:
    """The share of the items tried for a batch that could not be read."""
    bad = jnp.sum(batch["bad_items"])
    found = sum(jnp.sum(batch[domain]["present"]) for domain in DOMAINS)
    return Mean(bad.astype(jnp.float32), (bad + found).astype(jnp.float32))
