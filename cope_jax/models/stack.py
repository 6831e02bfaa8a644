"""Stacks of equal layers: one set of parameters with a leading layer axis, scanned or unrolled."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cope_jax.models.compute import Compute

# Attention's products have batch axes and grow with the square of the length: they are not worth keeping.
REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def make_stack(make_block: Callable[[nnx.Rngs], nnx.Module], depth: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """A block whose parameters are those of `depth` blocks, stacked along a new leading axis.

    Args:
        make_block: makes one block from its own `rngs`; its initial values differ from layer to layer.
        depth: number of layers.
        rngs: holds the stream `params`.

    Returns:
        The module to hand to `run_stack`. Called directly it would not work: its parameters are [depth, …].
    """
    keys = jax.random.split(rngs.params(), depth)
    return nnx.vmap(lambda key: make_block(nnx.Rngs(params=key)))(keys)


def run_stack(
    blocks: nnx.Module,
    x: jax.Array,
    *context: Any,
    compute: Compute,
    layerwise: Mapping[str, jax.Array] | None = None,
    rngs: nnx.Rngs | None = None,
) -> jax.Array:
    """Runs the layers of a stack one after another: `block(x, *context, **layerwise[i], rngs=…)`.

    Args:
        blocks: of `make_stack`.
        x: the first layer's input; every layer's output has the same shape and dtype.
        context: arguments that are the same for all layers: masks.
        compute: says whether to scan, and what to compute again in the backward pass.
        layerwise: keyword arguments that differ from layer to layer, [depth, …] each.
        rngs: holds the stream `dropout`, of which each layer gets its own; None means evaluation.
    """
    graphdef, params = nnx.split(blocks, nnx.Param)
    depth = len(jax.tree.leaves(params)[0])
    dropout_key = None if rngs is None else rngs.dropout()

    def run_layer(x: jax.Array, layer: Any) -> jax.Array:
        params, options, index = layer
        layer_rngs = None if rngs is None else nnx.Rngs(dropout=jax.random.fold_in(dropout_key, index))
        return nnx.merge(graphdef, params)(x, *context, **options, rngs=layer_rngs)

    if compute.remat != "none":
        # The body of a loop cannot be merged with its own recomputation: a scan needs no barrier against that.
        policy = REMAT_POLICIES[compute.remat]
        run_layer = jax.checkpoint(run_layer, policy=policy, prevent_cse=not compute.scan_layers)
    layers = (params, dict(layerwise or {}), jnp.arange(depth))
    if compute.scan_layers:
        return jax.lax.scan(lambda x, layer: (run_layer(x, layer), None), x, layers)[0]
    # Unstacked at once, the layers' gradients are stacked at once; a slice for each layer would instead add up
    # `depth` arrays of the whole stack's size.
    leaves, structure = jax.tree.flatten(layers)
    for layer in zip(*map(jnp.unstack, leaves), strict=True):
        x = run_layer(x, structure.unflatten(layer))
    return x
