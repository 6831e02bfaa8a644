"""The learning rate of a run by step."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cope_jax.runs.config import OptimizerConfig


def make_schedule(settings: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate: a linear rise from 0 to `rate` in `warmup_steps`, then a cosine.

    The cosine reaches 0 at `cosine_steps`, or at `steps`, the end of the run, if that is 0. Later steps see it rise
    again.
    """
    rate, warmup_steps = settings.rate, settings.warmup_steps
    if not settings.cosine_steps:
        return optax.warmup_cosine_decay_schedule(0.0, rate, warmup_steps, steps)

    def cosine(step: ArrayLike) -> jax.Array:
        return rate * (1 + jnp.cos(jnp.pi * jnp.asarray(step) / (settings.cosine_steps - warmup_steps))) / 2

    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup_steps), cosine], [warmup_steps])
