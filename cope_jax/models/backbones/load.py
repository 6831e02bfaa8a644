"""Encoders that start from published weights: X-CLIP, CLIP and Chinese-CLIP vision, BERT-family text.

Every tensor of the checkpoint is used, or ignored by intent; every parameter is filled, or starts fresh by intent.
Anything else is an error before a single tensor is read.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from cope_jax.models.backbones.families import OPTIONAL, Fill, Source, find_source
from cope_jax.models.backbones.files import Tensor, Weights, open_weights
from cope_jax.models.backbones.layouts import Layout, Shape

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Step:
    """How one parameter is filled.

    Attributes:
        layers: the names of the tensors of each layer; of the parameter, where it is not stacked.
        layout: of a layer.
        stacked: whether layers lie along a leading axis; it may be longer than `layers`, and what is beyond them
            starts fresh.
    """

    layers: tuple[tuple[str, ...], ...]
    layout: Layout
    stacked: bool


@dataclass(frozen=True)
class Pretrained:
    """Weights that fit an encoder and are ready to be read.

    Attributes:
        weights: the checkpoint.
        steps: path of a parameter → how it is filled.
        fresh: the parts that start fresh: "blocks/message_fc", "integration/blocks[1:]".
        unused: tensors that are not used, by intent.
    """

    weights: Weights
    steps: Mapping[str, Step]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def load(self, params: Any) -> Any:
        """Puts the weights in the place of an encoder's fresh parameters, one after another.

        Args:
            params: tree of float32 arrays, as sharded as they like; each process reads all, and keeps its part.

        Returns:
            The same tree with the same shardings.
        """

        def fill(path: Any, fresh: jax.Array) -> jax.Array:
            step = self.steps.get(name_of(path))
            return fresh if step is None else overlay(fresh, self.value(step, fresh.shape))

        return jax.tree.map_with_path(fill, params)

    def value(self, step: Step, shape: Shape) -> np.ndarray:
        """The value of a parameter, or of as many of its layers as the checkpoint has."""
        layer_shape = shape[1:] if step.stacked else shape
        layers = [step.layout.convert([self.weights.read(n) for n in names], layer_shape) for names in step.layers]
        return np.stack(layers) if step.stacked else layers[0]

    def report(self) -> str:
        """What was taken from where, in a few lines."""
        taken = sum(len(names) for step in self.steps.values() for names in step.layers)
        lines = [f"{len(self.steps)} parameters from {taken} tensors of {self.weights.name}"]
        if self.fresh:
            lines.append(f"starting fresh: {', '.join(self.fresh)}")
        if self.unused:
            parts = Counter(map(group_of, self.unused))
            lines.append("not used: " + ", ".join(f"{part} ({count})" for part, count in sorted(parts.items())))
        return "; ".join(lines)


def overlay(fresh: jax.Array, value: np.ndarray) -> jax.Array:
    """`value`, laid out over the devices as `fresh` is; layers at the end that it lacks stay."""
    loaded = jax.make_array_from_callback(value.shape, fresh.sharding, lambda index: value[index])
    if value.shape == fresh.shape:
        return loaded
    into = jax.jit(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, 0, axis=0), out_shardings=fresh.sharding)
    return into(fresh, loaded)


def prepare(
    name: str, encoder: str, shapes: Any, *, settings: Mapping[str, Any], cut: bool, section: str
) -> Pretrained:
    """Finds weights and checks that they fit an encoder.

    Args:
        name: a local folder or a hub repository.
        encoder: "vision" or "text".
        shapes: tree of the encoder's parameters, arrays or shapes.
        settings: the arguments of `VisionEncoder` or `TextEncoder`.
        cut: whether a deeper source gives its first layers.
        section: of the config, which has `settings`, `init_from` and `init_cut`; for the errors.

    Raises:
        FileNotFoundError: there are no such weights here; says what to do.
        ValueError: they do not fit; lists all the reasons.
    """
    key = f"{section}.init_from"
    weights = open_weights(name, key=key)
    source = find_source(encoder, weights.config, weights.tensors, what=f"{key} is {name!r}")
    if faults := list(setting_faults(source, weights, settings, cut=cut, section=section)):
        raise ValueError(f"{key} is {name!r}, which is another model:\n" + "\n".join(f"  {f}" for f in faults))
    targets = {name_of(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(shapes)}
    return plan(source, weights, targets, key=key)


def setting_faults(
    source: Source, weights: Weights, settings: Mapping[str, Any], *, cut: bool, section: str
) -> Iterator[str]:
    """Settings in which the model and its source differ, each with the key to change."""
    for setting in source.settings:
        if (ours := settings[setting.key]) != setting.value and (
            setting.key != "integration_heads" or settings["integration_depth"]
        ):
            yield f"{section}.{setting.key} is {ours!r}; its {setting.field} is {setting.value!r}"
    yield from (f"{odd}; it cannot be used" for odd in source.odd)
    for stack, key in (("blocks", "depth"), ("integration/blocks", "integration_depth")):
        ours, theirs = settings.get(key, 0), source.depths.get(stack, 0)
        if 0 < ours < theirs and not cut:
            yield f"{section}.{key} is {ours}, and it has {theirs}: {section}.init_cut=True takes the first {ours}"
        if ours > theirs and stack == "blocks":
            yield f"{section}.{key} is {ours}, and it has only {theirs}"
    if "vocab_size" in settings:
        yield from text_faults(source, weights, settings)


def text_faults(source: Source, weights: Weights, settings: Mapping[str, Any]) -> Iterator[str]:
    """Whether the tokenizer and the longest text fit the weights."""
    words, positions = (
        weights.tensors[name].shape[0] if (name := source.fills[path].tensors[0]) in weights.tensors else None
        for path in ("words/embedding", "position")
    )
    if words is not None and settings["vocab_size"] != words:
        yield (
            f"the run's tokenizer has {settings['vocab_size']} entries, and it has vectors for {words}: set "
            "config.data.tokenizer to the weights' own"
        )
    if positions is not None and settings["max_length"] > positions:
        yield f"config.data.text_length is {settings['max_length']}; it has positions for {positions}"


def plan(source: Source, weights: Weights, targets: Mapping[str, Shape], *, key: str) -> Pretrained:
    """Matches tensors and parameters.

    Raises:
        ValueError: some tensors or parameters are left over, or have another shape; all of them are listed.
    """
    steps, fresh, problems = {}, [], []
    left_out: set[str] = set()
    for path, fill in source.fills.items():
        present = [name for name in every_name(path, fill, source) if name in weights.tensors]
        if path not in targets and matches(OPTIONAL, path):
            left_out.update(present)
        elif path in targets and not present and matches(source.fresh, path):
            fresh.append(part_of(path))
        elif path in targets:
            step = make_step(path, fill, source, targets[path])
            problems += tensor_problems(path, step, weights.tensors, targets[path])
            if step.stacked and len(step.layers) < targets[path][0]:
                fresh.append(f"{stack_of(path)}[{len(step.layers)}:]")
            steps[path] = step
            left_out.update(set(present) - set(sum(step.layers, ())))
    for path, shape in targets.items():
        if path not in source.fills and matches(source.fresh, path):
            fresh.append(part_of(path))
        elif path not in source.fills:
            problems.append(f"parameter {path} {shape}: nothing in this source fills it")
    used = {name for step in steps.values() for names in step.layers for name in names}
    for name in weights.tensors.keys() - used - left_out:
        if matches(source.ignored, name):
            left_out.add(name)
        else:
            problems.append(f"tensor {name} {weights.tensors[name].shape}: unknown")
    if problems:
        listed = "\n".join(f"  {problem}" for problem in sorted(problems))
        raise ValueError(f"{key} is {weights.name!r}, which does not fit the model:\n{listed}")
    return Pretrained(weights, steps, tuple(sorted(set(fresh))), tuple(sorted(left_out)))


def every_name(path: str, fill: Fill, source: Source) -> list[str]:
    """The names of a parameter's tensors, of all the layers that the source has."""
    layers = range(source.depths[stack_of(path)]) if is_stacked(fill) else (0,)
    return [name.format(layer) for layer in layers for name in fill.tensors]


def make_step(path: str, fill: Fill, source: Source, shape: Shape) -> Step:
    """How a parameter is filled: with as many layers as both sides have."""
    stacked = is_stacked(fill)
    depth = min(shape[0], source.depths[stack_of(path)]) if stacked else 1
    layers = tuple(tuple(name.format(layer) for name in fill.tensors) for layer in range(depth))
    return Step(layers, fill.layout, stacked)


def tensor_problems(path: str, step: Step, tensors: Mapping[str, Tensor], shape: Shape) -> Iterator[str]:
    """What is wrong with the tensors of a parameter."""
    wanted = step.layout.source_shape(shape[1:] if step.stacked else shape)
    for name in (name for names in step.layers for name in names):
        if name not in tensors:
            yield f"parameter {path} {shape}: there is no tensor {name}"
        elif tensors[name].shape != wanted:
            yield f"tensor {name} {tensors[name].shape}: parameter {path} {shape} needs {wanted}"
        elif tensors[name].dtype not in FLOATS:
            yield f"tensor {name} is {tensors[name].dtype}: parameter {path} needs one of {', '.join(FLOATS)}"


def name_of(path: Any) -> str:
    """The name of a leaf: its keys joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_stacked(fill: Fill) -> bool:
    """Whether a parameter has a leading axis for layers."""
    return "{}" in fill.tensors[0]


def stack_of(path: str) -> str:
    """The stack that a parameter is in: "integration/blocks" or "blocks"."""
    return path[: path.index("blocks") + len("blocks")]


def part_of(path: str) -> str:
    """The part that a parameter belongs to, for people to read: "blocks/message_attention"."""
    return "/".join(path.split("/")[:-1][:2])


def group_of(name: str) -> str:
    """What a tensor is counted under: "encoder.layer.*" for encoder.layer.7.output.dense.bias, else its first word."""
    head = re.split(r"\.\d+\.", name)[0]
    return name.split(".")[0] if head == name else f"{head}.*"


def matches(patterns: Iterable[str], text: str) -> bool:
    """Whether one of the regexes is found in a text."""
    return any(re.search(pattern, text) for pattern in patterns)
