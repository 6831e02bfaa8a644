"""The training step: a pure function of a state and a batch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from cope_jax.models.dropout import DropoutRngs
from cope_jax.runs.checkpoints import ModelState, TrainState
from cope_jax.runs.config import RunConfig
from cope_jax.training.gradients import batch_gradients, cached_gradients, embed_in_parts
from cope_jax.training.objective import Mean, make_loss
from cope_jax.training.optimizer import stop_frozen_gradients
from data_prep.common.domains import sort_domains

StepFunction = Callable[[TrainState, Any], tuple[TrainState, dict[str, Mean]]]


def make_train_step(
    config: RunConfig, graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, mesh: Mesh
) -> StepFunction:
    """Returns the training step of a config, to be jitted.

    A step whose loss or gradient is not finite is skipped: only the number of steps changes.

    Args:
        config: Config of the run. Gradients of parameters in frozen groups are not computed.
        graphdef: Static structure of the model, from `nnx.split`.
        optimizer: Optimizer of all parameters.
        mesh: Mesh that batches are sharded over.
    """
    train, groups, loss_of = config.train, config.groups, make_loss(config, mesh)
    parts = train.batch_size // (train.microbatch or train.batch_size)  # 1 embeds a batch at once

    def embed(model: PyTree, statistics: PyTree, batch: Any, keys: jax.Array) -> Any:
        params = stop_frozen_gradients({"model": model}, groups)["model"]
        merged = nnx.merge(graphdef, params, statistics)
        embeddings = merged(batch, rngs=DropoutRngs(keys))
        return embeddings, nnx.to_pure_dict(nnx.state(merged, nnx.BatchStat))

    gradients_of = partial(batch_gradients if parts == 1 else partial(cached_gradients, parts=parts), mesh=mesh)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Mean]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        inputs = batch
        if state.teacher is not None:
            inputs = {
                **batch,
                "teacher": embed_in_parts(nnx.merge(graphdef, *state.teacher), batch, parts=parts, mesh=mesh),
            }
        found = gradients_of(embed, loss_of, state.params, state.statistics, inputs, key)
        updates, opt_state = optimizer.update(found.params, state.opt_state, state.params)
        gradient_norm = optax.tree.norm(found.params)
        metrics = found.metrics | {
            "loss": Mean.of(found.loss),
            "gradient_norm": Mean.of(gradient_norm),
            "bad_items": share_of_bad_items(batch),
        }
        params = optax.apply_updates(state.params, updates)
        changed = state.replace(params=params, statistics=found.statistics, opt_state=opt_state)
        if state.average is not None:
            average = update_average(state.average, changed.model, step=state.step, decay=train.average_decay)
            changed = changed.replace(average=average)
        # One such batch would turn every parameter into NaN. The loss is global, so all devices skip the step or none.
        finite = jnp.isfinite(found.loss) & jnp.isfinite(gradient_norm)
        state = jax.tree.map(partial(jnp.where, finite), changed, state)
        metrics = {name: mean.where(finite) for name, mean in metrics.items()}
        return state.replace(step=state.step + 1), metrics | {"skipped": Mean.of(1 - finite.astype(jnp.float32))}

    return train_step


def update_average(average: ModelState, model: ModelState, *, step: jax.Array, decay: float) -> ModelState:
    """Returns the exponential moving average with one more model.

    The first models weigh more: the decay is at most (1 + step) / (10 + step), or the random initial values would stay
    in the average for thousands of steps. Values that do not change stay the same to the last bit.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - kept) * (new - old), average, model)


def share_of_bad_items(batch: Any) -> Mean:
    """Returns the share of the batch's items that could not be read and were replaced."""
    bad = jnp.sum(batch["bad_items"])
    entries = sort_domains(name for name, entry in batch.items() if isinstance(entry, Mapping))
    found = sum(jnp.sum(batch[entry]["present"]) for entry in entries)
    return Mean(bad.astype(jnp.float32), (bad + found).astype(jnp.float32))
