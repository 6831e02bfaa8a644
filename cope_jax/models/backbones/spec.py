"""The description of a checkpoint's encoder: which tensors fill which parameters, and what the model must agree in.

Paths of parameters are relative to the encoder. In names of tensors, "{}" stands for the number of the layer.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cope_jax.models.backbones.layouts import COPY, LINEAR, OUT_KERNEL, QKV_BIAS, QKV_KERNEL, Layout

Config = Any  # of transformers; its attributes depend on the model
Requirements = Mapping[str, tuple[str, Any]]  # setting of the model → the field of config.json that it must equal


@dataclass(frozen=True)
class Tensor:
    """A tensor, or a part of one, in a safetensors file."""

    file: Path
    name: str  # in the file
    shape: tuple[int, ...]  # of the part
    dtype: str  # as in the file: "F32", "BF16", "I64", …
    index: Any = ...  # of the part along the first axis
    followed_by: str = ""  # name of a tensor that is appended along the first axis before


@dataclass(frozen=True)
class Source:
    """Names of the tensors that fill a parameter, and their layout."""

    tensors: tuple[str, ...]
    layout: Layout

    @property
    def stacked(self) -> bool:
        """Whether the parameter has a leading axis for layers."""
        return "{}" in self.tensors[0]

    def layers(self, depth: int) -> tuple[tuple[str, ...], ...]:
        """Names of the tensors of each layer; `depth` is 1 if the parameter is not stacked."""
        return tuple(tuple(name.format(layer) for name in self.tensors) for layer in range(depth))


Sources = dict[str, Source]  # by path of the parameter


@dataclass(frozen=True)
class EncoderSpec:
    """Description of one encoder in a checkpoint."""

    sources: Sources  # tensors of each parameter
    depths: Mapping[str, int]  # number of layers in the checkpoint by path of the stack
    requirements: Requirements  # settings that the model must share
    own: tuple[str, ...]  # regexes of its tensors: all of them must be known; others, such as heads, are not used
    unsupported: tuple[str, ...] = ()  # properties of the checkpoint that our blocks do not support, as messages
    optional: tuple[str, ...] = ()  # regexes of parameters that are initialized randomly if the checkpoint lacks them
    # Settings that a run takes over with `config.model.init_from`, and may change.
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Returns the settings of an encoder like the checkpoint's."""
        required = {key: value for key, (_, value) in self.requirements.items()}
        return {**self.defaults, **required, "depth": self.depths["blocks"]}


def linear(path: str, tensor: str) -> Sources:
    """Sources of a linear layer with a bias."""
    return {f"{path}/kernel": Source((f"{tensor}.weight",), LINEAR), f"{path}/bias": Source((f"{tensor}.bias",), COPY)}


def norm(path: str, tensor: str) -> Sources:
    """Sources of a LayerNorm."""
    return {f"{path}/scale": Source((f"{tensor}.weight",), COPY), f"{path}/bias": Source((f"{tensor}.bias",), COPY)}


def attention(path: str, inputs: Collection[str], output: str) -> Sources:
    """Sources of attention whose queries, keys and values are separate layers in torch, and one here."""
    return {
        f"{path}/qkv/kernel": Source(tuple(f"{tensor}.weight" for tensor in inputs), QKV_KERNEL),
        f"{path}/qkv/bias": Source(tuple(f"{tensor}.bias" for tensor in inputs), QKV_BIAS),
        **attention_output(path, output),
    }


def attention_output(path: str, tensor: str) -> Sources:
    """Sources of the last layer of attention."""
    return {
        f"{path}/out/kernel": Source((f"{tensor}.weight",), OUT_KERNEL),
        f"{path}/out/bias": Source((f"{tensor}.bias",), COPY),
    }


def unsupported_sizes(config: Config, *, epsilon: float, prefix: str = "", any_mlp: bool = False) -> tuple[str, ...]:
    """Lists what is fixed in our blocks and differs in the checkpoint; `prefix` is that of the size fields."""
    found, hidden = [], getattr(config, f"{prefix}intermediate_size")
    if not any_mlp and hidden != (expected := 4 * getattr(config, f"{prefix}hidden_size")):
        found.append(f"its {prefix}intermediate_size is {hidden}, but only 4 times the width, {expected}, is supported")
    if config.layer_norm_eps != epsilon:
        found.append(f"its layer_norm_eps is {config.layer_norm_eps}, but only {epsilon} is supported")
    return tuple(found)


def prefix_of(names: Collection[str], tensor: str) -> str:
    """Returns what precedes the names of an encoder's tensors, of which one is given: "bert.", "0.auto_model.", "".

    Raises:
        ValueError: There are several such encoders.
    """
    found = sorted(name.removesuffix(tensor) for name in names if name == tensor or name.endswith(f".{tensor}"))
    if len(found) > 1:
        raise ValueError(f"has several encoders, {' and '.join(map(repr, found))}; keep the tensors of one")
    return found[0] if found else ""


def own_tensors(prefix: str, parts: str) -> str:
    """Returns the regex of an encoder's tensors: all below its name, or its parts below the name of a wrapper."""
    named = prefix.endswith(("bert.", "text_model.", "vision_model.", "auto_model."))
    return f"^{re.escape(prefix)}" + ("" if named else rf"({parts})\.")
