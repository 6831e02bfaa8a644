"""AdamW with warm-up, cosine decay, clipping and a learning rate factor per parameter group."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from cope_jax.parallel.path_rules import apply_rules

# Rules (regex over parameter paths, factor on the learning rate), first match wins. Factor 0 freezes parameters: they
# get no update, decay, moments or gradient.
Groups = Sequence[tuple[str, float]]

# Weight decay applies to matrices and word vectors, but not to biases, norms, positions, segments, tokens and the
# scalars of the loss.
DECAY_RULES = ((r"/(kernel|embedding)$", True), (r"", False))


def rate_factors(groups: Groups, params: PyTree) -> PyTree:
    """Returns the factor on the learning rate of each parameter (arrays or shapes); 0 if it is frozen.

    Raises:
        ValueError: Parameters without a group, or groups without a parameter. Lists all of them.
    """
    return apply_rules(groups, params, name="config.optimizer.groups")


def decays(params: PyTree) -> PyTree:
    """Returns for each parameter whether weight decay applies, unless it is frozen."""
    return apply_rules(DECAY_RULES, params, name="DECAY_RULES", require_all_used=False)


def stop_frozen_gradients(params: PyTree, groups: Groups) -> PyTree:
    """Returns the parameters with frozen ones as constants, which saves their gradients and those below them."""
    factors = rate_factors(groups, params)
    return jax.tree.map(lambda param, factor: param if factor else jax.lax.stop_gradient(param), params, factors)


def make_optimizer(
    params: PyTree,
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
    """Returns the optimizer of parameters (arrays or shapes) with the settings of config.optimizer.

    Args:
        rate: Peak learning rate, after `warmup_steps`; it is 0 at first and at `steps`.
        clip_norm: Bound on the global norm of the gradient of parameters that are not frozen; 0 means no bound.

    Raises:
        ValueError: Groups do not fit the parameters, see `rate_factors`.
    """
    factors = rate_factors(groups, params)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup_steps, steps)
    parts = (
        # A part in any case, so that the state does not depend on it: a run may resume with another bound.
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decays(params)),
    )

    def scale(updates: PyTree, _: PyTree) -> PyTree:
        # `optax.masked` passes gradients of frozen parameters unchanged: they are dropped here, whatever they are.
        return jax.tree.map(lambda u, factor: factor * u if factor else jnp.zeros_like(u), updates, factors)

    # Factors apply after AdamW, whose updates do not depend on the scale of gradients.
    return optax.chain(optax.masked(optax.chain(*parts), jax.tree.map(bool, factors)), optax.stateless(scale))
