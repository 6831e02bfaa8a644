"""AdamW with linear warm-up, cosine decay and clipping, in groups of parameters with a rate factor each.

A group is a rule over parameter paths; factor 0 freezes it: no update, no decay, no moments, no gradient.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cope_jax.parallel.path_rules import apply_rules
from cope_jax.runs.schedule import rate_schedule

Groups = Sequence[tuple[str, float]]

# Only matrices and word vectors decay; biases, norms, positions, segments, tokens and the loss's scalars do not.
DECAY_RULES = ((r"/(kernel|embedding)$", True), (r"", False))


def rate_factors(groups: Groups, params: Any) -> Any:
    """The factor on the learning rate of each parameter (a tree of arrays or shapes); 0 where it is frozen.

    Raises:
        ValueError: a parameter in no group, or a group without parameters; all are listed.
    """
    return apply_rules(groups, params, name="config.optimizer.groups")


def decays(params: Any) -> Any:
    """Whether weight decay applies to each parameter (that is not frozen)."""
    return apply_rules(DECAY_RULES, params, name="DECAY_RULES", require_all_used=False)


def hold_frozen(params: Any, groups: Groups) -> Any:
    """The same values; frozen ones as constants, so that no gradient is computed for them nor, if all are, below."""
    return jax.tree.map(
        lambda param, factor: param if factor else jax.lax.stop_gradient(param),
        params,
        rate_factors(groups, params),
    )


def make_optimizer(
    params: Any,
    *,
    rate: float,
    groups: Groups,
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
        groups: (regex over parameter paths, factor on the rate), first match wins; together they cover every
            parameter.
        clip_norm: bound on the global norm of the gradient of what is not frozen; 0 means none.

    Raises:
        ValueError: from `rate_factors`.
    """
    factors = rate_factors(groups, params)
    schedule = rate_schedule(rate=rate, warmup_steps=warmup_steps, steps=steps)
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    parts.append(optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decays(params)))

    def scale(updates: Any, _: Any) -> Any:
        # A frozen parameter's gradient passes the mask unchanged: dropped here, whatever it is.
        return jax.tree.map(lambda u, factor: factor * u if factor else jnp.zeros_like(u), updates, factors)

    # Factors behind AdamW, whose step does not change with the gradient's scale.
    return optax.chain(optax.masked(optax.chain(*parts), jax.tree.map(bool, factors)), optax.stateless(scale))
