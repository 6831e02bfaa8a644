"""AdamW with warm-up, cosine decay, clipping and a learning rate factor per parameter group."""

import operator
import re
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from cope_jax.parallel.path_rules import apply_rules, leaf_paths
from cope_jax.runs.config import OptimizerConfig
from cope_jax.runs.learning_rate import make_schedule

STACK = r"^model/(vision|text)/blocks/"  # parameters of the layers of an encoder, stacked
INPUTS = r"^model/(vision|text)/(stem|class_token|position|pre_norm|words|segment|norm)(/|$)"  # those before them

# Rules (regex over parameter paths, factor on the learning rate), first match wins. Factor 0 freezes parameters: they
# get no update, decay, moments or gradient.
Groups = Sequence[tuple[str, float]]


def rate_factors(groups: Groups, params: PyTree) -> PyTree:
    """Returns the factor on the learning rate of each parameter (arrays or shapes); 0 if it is frozen.

    Raises:
        ValueError: Parameters without a group, or groups without a parameter. Lists all of them.
    """
    return apply_rules(groups, params, name="config.optimizer.groups")


def layer_factors(decay: float, params: PyTree) -> PyTree:
    """Returns the factors on the learning rate by layer: 1 for an encoder's last layer, decay, decay² … below.

    The parameters before the first layer have one factor more, and those of other parts 1. The factors of stacked
    layers are an array [depth, 1, …].
    """
    depths = {}
    for path, leaf in zip(jax.tree.leaves(leaf_paths(params)), jax.tree.leaves(params), strict=True):
        if found := re.match(STACK, path):
            depths[found[1]] = leaf.shape[0]

    def factor(path: str, leaf: PyTree) -> float | np.ndarray:
        if re.match(STACK, path):
            return (decay ** np.arange(leaf.shape[0])[::-1]).reshape(-1, *[1] * (leaf.ndim - 1)).astype(np.float32)
        found = re.match(INPUTS, path)
        return decay ** depths[found[1]] if found else 1.0

    return jax.tree.map(factor, leaf_paths(params), params)


def matches(pattern: str, params: PyTree) -> PyTree:
    """Returns for each parameter whether a regex is found in its path."""
    return jax.tree.map(lambda path: re.search(pattern, path) is not None, leaf_paths(params))


def stop_frozen_gradients(params: PyTree, groups: Groups) -> PyTree:
    """Returns some parameters with frozen ones as constants, which saves their gradients and those below them."""
    factors = apply_rules(groups, params, name="config.optimizer.groups", require_all_used=False)
    return jax.tree.map(lambda param, factor: param if factor else jax.lax.stop_gradient(param), params, factors)


def make_optimizer(
    params: PyTree, settings: OptimizerConfig, *, groups: Groups, steps: int, layer_decay: float = 1.0
) -> optax.GradientTransformation:
    """Returns the optimizer of parameters (arrays or shapes).

    Args:
        params: Parameters.
        settings: Settings, except for the groups.
        groups: Parameter groups.
        steps: Number of steps of the run.
        layer_decay: See `layer_factors`; 1 has no effect.

    Raises:
        ValueError: Groups do not fit the parameters, see `rate_factors`.
    """
    factors = trained = rate_factors(groups, params)
    if layer_decay != 1:
        factors = jax.tree.map(operator.mul, factors, layer_factors(layer_decay, params))
    parts = (
        _clipping(settings),  # Frozen parameters do not count.
        optax.adamw(
            make_schedule(settings, steps),
            b1=settings.b1,
            b2=settings.b2,
            weight_decay=settings.weight_decay,
            mask=matches(settings.decayed, params),
        ),
    )

    def scale(updates: PyTree, _: PyTree) -> PyTree:
        # `optax.masked` passes gradients of frozen parameters unchanged: they are dropped here, whatever they are.
        return jax.tree.map(
            lambda u, keep, factor: factor * u if keep else jnp.zeros_like(u), updates, trained, factors
        )

    # Factors apply after AdamW, whose updates do not depend on the scale of gradients.
    return optax.chain(optax.masked(optax.chain(*parts), jax.tree.map(bool, trained)), optax.stateless(scale))


def _clipping(settings: OptimizerConfig) -> optax.GradientTransformation:
    """Returns the clipping of gradients. Its state is always `EmptyState`: a run may resume with other settings."""
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    if not settings.clipped:
        return clip
    masked = optax.masked(clip, partial(matches, settings.clipped))
    return optax.stateless(lambda updates, _: masked.update(updates, masked.init(updates))[0])
