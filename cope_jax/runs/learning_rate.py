"""The learning rate of a run by step."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


def make_schedule(*, rate: float, warmup_steps: int, cosine_steps: int, steps: int) -> optax.Schedule:
    """Returns the learning rate: a linear rise from 0 to `rate` in `warmup_steps`, then a cosine.

    The cosine reaches 0 at `cosine_steps`, or at `steps` if that is 0. Later steps see it rise again.
    """
    if not cosine_steps:
        return optax.warmup_cosine_decay_schedule(0.0, rate, warmup_steps, steps)

    def cosine(step: ArrayLike) -> jax.Array:
        return rate * (1 + jnp.cos(jnp.pi * jnp.asarray(step) / (cosine_steps - warmup_steps))) / 2

    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup_steps), cosine], [warmup_steps])
