"""Low-rank adaptation of linear layers (LoRA, arXiv 2106.09685)."""

import math
import re

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from cope_jax.models.layers import Linear

ENCODERS, NAMES = ("vision", "text"), ("lora_a", "lora_b")


def add_lora(model: nnx.Module, *, rank: int, alpha: float, targets: str, rngs: nnx.Rngs) -> None:
    """Adds low-rank matrices to the linear layers of the encoders whose path matches the regex `targets`.

    Their product starts at 0. Layers that are stacked have stacked matrices.

    Raises:
        ValueError: There are no such layers.
    """
    found = [
        module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, Linear) and path[0] in ENCODERS and re.search(targets, "/".join(map(str, path)))
    ]
    for layer in found:
        stack = layer.kernel.shape[: layer.kernel.ndim - len(layer.in_features) - len(layer.out_features)]
        size = math.prod(layer.in_features)
        layer.lora_a = nnx.LoRAParam(jax.random.normal(rngs.params(), (*stack, size, rank)) / math.sqrt(size))
        layer.lora_b = nnx.LoRAParam(jnp.zeros((*stack, rank, *layer.out_features)))
        layer.lora_scale = alpha / rank
    if not found:
        raise ValueError(f"config.finetune.targets is {targets!r}, which matches no linear layer of the encoders")


def drop_lora(params: PyTree) -> PyTree:
    """Returns nested dictionaries of parameters without low-rank matrices."""
    if not isinstance(params, dict):
        return params
    return {key: drop_lora(value) for key, value in params.items() if key not in NAMES}


def merge_lora(params: PyTree, scale: float) -> PyTree:
    """Returns the parameters of a model without low-rank matrices that computes the same.

    Args:
        params: Nested dictionaries of parameters.
        scale: alpha / rank.
    """
    if not isinstance(params, dict):
        return params
    merged = {key: merge_lora(value, scale) for key, value in params.items() if key not in NAMES}
    if "lora_a" in params:
        a, b, kernel = params["lora_a"], params["lora_b"], params["kernel"]
        change = jnp.matmul(a, b.reshape(*a.shape[:-2], a.shape[-1], -1), precision="highest")
        merged["kernel"] = kernel + scale * change.reshape(kernel.shape)
    return merged
