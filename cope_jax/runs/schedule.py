"""The learning-rate schedule."""

import optax


def rate_schedule(*, rate: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Linear from 0 to `rate` over `warmup_steps`, then a cosine to 0 at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, rate, warmup_steps, steps)
