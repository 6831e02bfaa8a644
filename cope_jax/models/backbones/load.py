"""Initializes encoders from published weights.

Each tensor of the checkpoint is used or explicitly ignored, and each parameter is filled or explicitly initialized
randomly. Anything else is an error before a tensor is read.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Array, PyTree

from cope_jax.models.backbones import bert, clip, siglip, xclip
from cope_jax.models.backbones.files import Weights, open_weights
from cope_jax.models.backbones.layouts import Shape
from cope_jax.models.backbones.spec import Config, EncoderSpec, Source

# For each encoder, `model_type` in config.json → (config as transformers parses it, names of tensors) → description.
MODEL_TYPES: dict[str, dict[str, Callable[[Config, Collection[str]], EncoderSpec]]] = {
    "vision": {
        "xclip": xclip.xclip,
        "xclip_vision_model": xclip.xclip_vision,
        "clip": clip.clip,
        "clip_vision_model": clip.clip,
        "chinese_clip": clip.clip,
        "chinese_clip_vision_model": clip.clip,
        "siglip": siglip.siglip_vision,
        "siglip_vision_model": siglip.siglip_vision,
    },
    "text": {
        "bert": bert.bert,
        "chinese_clip": bert.bert,
        "chinese_clip_text_model": bert.bert,
        "clip": clip.clip_text,
        "clip_text_model": clip.clip_text,
        "siglip": siglip.siglip_text,
        "siglip_text_model": siglip.siglip_text,
    },
}
# Vocabularies are padded to multiples of 8 to 128. With its own tokenizer, a model may have more rows without a token.
PADDING = 128
LORA = ("/lora_a", "/lora_b")  # parameters that are always initialized as at the start of a run
FLOATS = ("F64", "F32", "F16", "BF16")
# Parameters that a model may lack by its settings, whatever the checkpoint has.
OPTIONAL = (r"^blocks/message_", r"^integration/", r"^pooler/", r"^project/", r"^head/")


class Filling(NamedTuple):
    """The tensors that fill a parameter, or its first `depth` layers; `depth` is 1 if it has no layers."""

    source: Source
    depth: int

    def names(self) -> set[str]:
        """The names of all tensors."""
        return {name for names in self.source.layers(self.depth) for name in names}

    def read(self, weights: Weights, shape: Shape) -> np.ndarray:
        """Reads the value of a parameter, or of its first layers."""
        convert, stacked = self.source.layout.convert, self.source.stacked
        layer_shape = shape[1:] if stacked else shape
        layers = [[weights.read(name) for name in names] for names in self.source.layers(self.depth)]
        values = [convert(tensors, layer_shape) for tensors in layers]
        return np.stack(values) if stacked else values[0]

    def problems(self, path: str, weights: Weights, shape: Shape) -> Iterator[str]:
        """Lists the tensors that are missing or do not fit."""
        expected = self.source.layout.source_shape(shape[1:] if self.source.stacked else shape)
        for name in self.names():
            if (tensor := weights.tensors.get(name)) is None:
                yield f"parameter {path} {shape}: tensor {name} is missing"
            elif tensor.shape != expected:
                yield f"tensor {name} {tensor.shape}: parameter {path} {shape} needs {expected}"
            elif tensor.dtype not in FLOATS:
                yield f"tensor {name} is {tensor.dtype}: parameter {path} needs one of {', '.join(FLOATS)}"


@dataclass(frozen=True)
class Pretrained:
    """Weights that fit an encoder and are ready to be read."""

    weights: Weights  # the checkpoint
    fillings: Mapping[str, Filling]  # tensors by path of the parameter that they fill
    fresh: tuple[str, ...]  # parts that are initialized randomly: "blocks/message_fc", "integration/blocks[1:]"
    unused: tuple[str, ...]  # tensors that are not used, as intended
    notes: tuple[str, ...] = ()  # what the user should know, for the report

    def load(self, params: PyTree) -> PyTree:
        """Replaces an encoder's parameters, one at a time, keeping their shardings.

        Each process reads all tensors and keeps its shards.
        """

        def fill(path: Any, fresh: Array) -> Array:
            filling = self.fillings.get(_name_of(path))
            return fresh if filling is None else _overwrite(fresh, filling.read(self.weights, fresh.shape))

        return jax.tree.map_with_path(fill, params)

    def report(self) -> str:
        """Summarizes which tensors are used."""
        used = sum(len(filling.names()) for filling in self.fillings.values())
        parts = [f"{len(self.fillings)} parameters from {used} tensors of {self.weights.name}"]
        if self.fresh:
            parts.append(f"initialized randomly: {', '.join(self.fresh)}")
        if self.unused:
            counts = sorted(Counter(map(_group_of, self.unused)).items())
            parts.append("unused: " + ", ".join(f"{group} ({count})" for group, count in counts))
        return "\n".join(["; ".join(parts), *(f"WARNING: {note}" for note in self.notes)])


def _overwrite(fresh: Array, value: np.ndarray) -> Array:
    """Returns `value` sharded like `fresh`; additional layers of `fresh` stay."""
    loaded = jax.make_array_from_callback(value.shape, fresh.sharding, lambda index: value[index])
    if value.shape == fresh.shape:
        return loaded
    into = jax.jit(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, 0, axis=0), out_shardings=fresh.sharding)
    return into(fresh, loaded)


def prepare(
    name: str, encoder: str, shapes: PyTree, *, settings: Mapping[str, Any], cut: bool, own_tokenizer: bool = False
) -> Pretrained:
    """Finds weights and checks that they fit an encoder.

    Args:
        name: Local folder or hub repository.
        encoder: "vision" or "text".
        shapes: Parameters of the encoder, as arrays or shapes.
        settings: Fields of `VisionSettings` or `TextSettings`.
        cut: Take the first layers of a deeper checkpoint.
        own_tokenizer: Whether the tokenizer is that of the weights, so that rows beyond its vocabulary are padding.

    Raises:
        FileNotFoundError: The weights are not available; the message says what to do.
        ValueError: The weights do not fit; the message lists all reasons.
    """
    section = f"config.model.{encoder}"
    key = f"{section}.init_from"
    weights = open_weights(name, key=key)
    spec = find_spec(encoder, weights, what=f"{key} is {name!r}")
    padding = sys.maxsize if own_tokenizer else PADDING
    if mismatches := list(_mismatches(spec, weights, settings, cut=cut, section=section, padding=padding)):
        raise ValueError(f"{key} is {name!r}, which is another model:\n" + "\n".join(f"  {m}" for m in mismatches))
    targets = {_name_of(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(shapes)}
    matched = _match(spec, weights, targets, key=key)
    if encoder == "text" and weights.pooling not in (None, settings["pooling"]):
        note = (
            f"sentence-transformers pools the vectors of {name!r} by {weights.pooling!r}, but {section}.pooling is "
            f"{settings['pooling']!r}"
        )
        return replace(matched, notes=(note,))
    return matched


def find_spec(encoder: str, weights: Weights, *, what: str) -> EncoderSpec:
    """Describes what a checkpoint has for an encoder; `what` is the subject of error messages."""
    # Not at the top: it imports torch if that is installed.
    from transformers import AutoConfig, logging

    settings, supported = dict(weights.config), MODEL_TYPES[encoder]
    kind = settings.pop("model_type", None)
    if kind not in supported:
        raise ValueError(f"{what}, whose model_type is {kind!r}; the {encoder} encoder supports {', '.join(supported)}")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns about its own default values for SigLIP
    try:
        config = AutoConfig.for_model(kind, **settings)  # adds the values that config.json leaves out
    except StrictDataclassError as error:
        raise ValueError(f"{what}, whose config.json is invalid: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    try:
        return supported[kind](config, weights.tensors)
    except (TypeError, ArithmeticError) as error:  # sizes that are 0, or several where one is expected
        raise ValueError(f"{what}, whose config.json is invalid: {error}") from error
    except ValueError as error:
        raise ValueError(f"{what}, which {error}") from error


def _mismatches(
    spec: EncoderSpec, weights: Weights, settings: Mapping[str, Any], *, cut: bool, section: str, padding: int
) -> Iterator[str]:
    """Lists how the model and the checkpoint differ, with the keys to change."""
    for key, (field, theirs) in spec.requirements.items():
        if settings[key] != theirs and not _is_unimportant(key, settings):
            name = "config.data.text_length" if key == "max_length" else f"{section}.{key}"
            yield f"{name} is {settings[key]!r}; its {field} is {theirs!r}"
    yield from spec.unsupported
    for stack, key in (("blocks", "depth"), ("integration/blocks", "integration_depth")):
        ours, theirs = settings.get(key, 0), spec.depths.get(stack, 0)
        if 0 < ours < theirs and not cut:
            yield f"{section}.{key} is {ours}, but it has {theirs}: {section}.init_cut=True takes the first {ours}"
        if ours > theirs and stack == "blocks":
            yield f"{section}.{key} is {ours}, but it has only {theirs}"
        if theirs > len(weights.tensors):
            yield f"its config.json has {theirs} layers, but it has only {len(weights.tensors)} tensors"
    if "vocab_size" not in settings:
        return
    words, positions = (weights.tensors.get(spec.sources[path].tensors[0]) for path in ("words/embedding", "position"))
    if words is not None and not 0 <= words.shape[0] - settings["vocab_size"] < padding:
        yield (
            f"the run's tokenizer has {settings['vocab_size']} entries, but it has vectors for {words.shape[0]}: set "
            "config.data.tokenizer to that of the weights"
        )
    if positions is not None and settings["max_length"] > positions.shape[0]:
        yield f"config.data.text_length is {settings['max_length']}, but it has only {positions.shape[0]} positions"


def _is_unimportant(key: str, settings: Mapping[str, Any]) -> bool:
    """Returns whether a setting may differ from the checkpoint, because the model does not have what it describes."""
    across_frames = settings.get("cross_frame") or settings.get("integration_depth")
    return (
        (key == "integration_heads" and not settings["integration_depth"])
        or (key == "across_frames" and not across_frames)
        or (key == "max_length" and settings["pooling"] != "last")
    )


def _match(spec: EncoderSpec, weights: Weights, targets: Mapping[str, Shape], *, key: str) -> Pretrained:
    """Matches tensors and parameters.

    Raises:
        ValueError: Tensors or parameters are left over or have other shapes; the message lists all of them.
    """
    fillings: dict[str, Filling] = {}
    fresh: set[str] = set()
    unused: set[str] = set()
    problems: list[str] = []
    for path, source in spec.sources.items():
        depth = spec.depths[_stack_of(path)] if source.stacked else 1
        present = Filling(source, depth).names() & weights.tensors.keys()
        if path not in targets:
            unused |= present if _matches(OPTIONAL, path) else set()
        elif not present and _matches(spec.optional, path):
            fresh.add(_part_of(path))
        else:
            shape = targets[path]
            fillings[path] = Filling(source, min(shape[0], depth) if source.stacked else 1)
            problems += fillings[path].problems(path, weights, shape)
            if source.stacked and depth < shape[0]:
                fresh.add(f"{_stack_of(path)}[{depth}:]")
            unused |= present - fillings[path].names()
    for path, shape in targets.items():
        if path.endswith(LORA):
            continue
        if path not in spec.sources and _matches(spec.optional, path):
            fresh.add(_part_of(path))
        elif path not in spec.sources:
            problems.append(f"parameter {path} {shape}: no tensor of this model fills it")
    used = {name for filling in fillings.values() for name in filling.names()}
    for name in weights.tensors.keys() - used - unused:
        if _matches(spec.own, name) and not name.endswith("embeddings.position_ids"):
            problems.append(f"tensor {name} {weights.tensors[name].shape}: unknown")
        else:
            unused.add(name)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in sorted(problems))
        raise ValueError(f"{key} is {weights.name!r}, which does not fit the model:\n{listed}")
    return Pretrained(weights, fillings, tuple(sorted(fresh)), tuple(sorted(unused)))


def _name_of(path: Any) -> str:
    """The keys of a leaf joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _stack_of(path: str) -> str:
    """The stack of a parameter: "integration/blocks" or "blocks"."""
    return path[: path.index("blocks") + len("blocks")]


def _part_of(path: str) -> str:
    """The part of the model that a parameter belongs to, for messages: "blocks/message_attention"."""
    return "/".join(path.split("/")[:-1][:2])


def _group_of(name: str) -> str:
    """The group of a tensor in reports: "encoder.layer.*" for encoder.layer.7.output.dense.bias."""
    head = re.split(r"\.\d+\.", name)[0]
    return name.split(".")[0] if head == name else f"{head}.*"


def _matches(patterns: Iterable[str], text: str) -> bool:
    return any(re.search(pattern, text) for pattern in patterns)
