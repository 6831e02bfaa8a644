"""AdamW with linear warm-up, cosine decay, clipping and a rate factor per parameter path."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from cope_jax.training.rules import apply_rules

# Only matrices decay; biases, norms, positions and the loss's scalars do not.
DECAY_RULES = ((r"/(kernel|embedding)$", True), (r"", False))


def rate_schedule(*, rate: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Linear from 0 to `rate` over `warmup_steps`, then a cosine to 0 at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, rate, warmup_steps, steps)


def make_optimizer(
    params: Any,
    *,
    rate: float,
    rate_factors: Sequence[tuple[str, float]],
    warmup_steps: int,
    steps: int,
    b1: float,
    b2: float,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """The optimiser for a tree of parameters (arrays or shapes).

    Args:
        rate: peak learning rate.
        rate_factors: (regex over parameter paths, factor on the rate); () leaves all at 1. Must cover every
            parameter otherwise.
        clip_norm: bound on the global norm of the gradient; 0 means none.

    Raises:
        ValueError: `rate_factors` leaves a parameter uncovered or has a rule that matches none.
    """
    decay = apply_rules(
        DECAY_RULES, params, what="DECAY_RULES in training/optimizer.py", require_all_used=False
    )
    schedule = rate_schedule(rate=rate, warmup_steps=warmup_steps, steps=steps)
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    parts.append(optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decay))
    if rate_factors:
        factors = apply_rules(rate_factors, params, what="config.optimizer.rate_factors")
        # Behind AdamW, whose step does not change with the gradient's scale.
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors)))
    return optax.chain(*parts)
