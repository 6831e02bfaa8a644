"""How a model is computed, not what: nothing in here changes its parameters or, but for rounding, its results."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

ATTENTIONS = ("auto", "xla", "cudnn")
REMATS = ("none", "block", "dots")


@dataclass(frozen=True)
class Compute:
    """Settings that every part of a model is given.

    Attributes:
        dtype: of the computation; parameters, norms, softmax and embeddings are float32.
        attention: "xla", "cudnn" (flash attention; an error where the device, the type or the head size does not
            fit it) or "auto" (cuDNN where it fits).
        scan_layers: whether the layers of a stack run as one compiled block in a loop, instead of one after another:
            compiles faster the deeper the stack, and may run a little slower.
        remat: what is computed again in the backward pass instead of kept: "none", "block" (all but the blocks'
            inputs: least memory) or "dots" (all but matrix products with parameters).
    """

    dtype: jnp.dtype
    attention: str = "auto"
    scan_layers: bool = True
    remat: str = "none"

    def __post_init__(self):
        for name, choices in (("attention", ATTENTIONS), ("remat", REMATS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")

    def attention_implementation(self, head_size: int, *, masked: bool) -> str:
        """What `jax.nn.dot_product_attention` is to use, "xla" or "cudnn".

        Masked attention (texts, messages between a few frames) is short and stays with XLA in any case: cuDNN wants
        masks in full, and even lengths with them.
        """
        if self.attention == "xla" or masked:
            return "xla"
        fits = jax.default_backend() == "gpu" and self.dtype.itemsize == 2 and head_size % 8 == 0 and head_size <= 128
        return "cudnn" if self.attention == "cudnn" or fits else "xla"
