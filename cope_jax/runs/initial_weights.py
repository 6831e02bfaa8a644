"""Initial parameters of a run that come from other models: published ones, another run, or an export."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from safetensors import safe_open

from cope_jax import exported
from cope_jax.data.tokenizer import load_tokenizer
from cope_jax.models.backbones.load import prepare
from cope_jax.models.lora import drop_lora
from cope_jax.parallel.path_rules import leaf_paths
from cope_jax.runs.checkpoints import Checkpoints, ModelState, shapes_by_path
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_file import load_config
from cope_jax.runs.config_validation import add_missing_fields, resolve_config
from data_prep.common.differences import describe_differences

Loader = Callable[[ModelState], ModelState]  # replaces values of a model, with the same shardings
# Fields of an encoder that may differ between a run and the model that it starts from.
FREE = {"init_from", "init_cut", "drop_path", "dropout", "attention_dropout"}


def prepare_weights(config: RunConfig, shapes: ModelState, settings: dict[str, dict[str, Any]]) -> Loader:
    """Finds and checks the weights that `init_from` of the encoders name; returns a function that loads them.

    Args:
        shapes: The model, as arrays or shapes.
        settings: Settings of the encoders, from `encoder_settings`.

    Raises:
        FileNotFoundError: Weights are missing. Names the download.
        ValueError: Weights are those of another model. Lists all differences.
    """
    loaders: list[Loader] = []
    parts: dict[str, list[str]] = {}  # folder of a run or an export → encoders that start from it
    for encoder, section in (("vision", config.model.vision), ("text", config.model.text)):
        if section.init_from and is_run_or_export(section.init_from):
            parts.setdefault(section.init_from, []).append(encoder)
        elif section.init_from:
            loaders.append(_prepare_published(config, encoder, shapes.params[encoder], settings[encoder]))
    loaders += [_prepare_own(config, name, encoders, shapes) for name, encoders in parts.items()]
    return lambda model: reduce(lambda loaded, load: load(loaded), loaders, model)


def _prepare_published(config: RunConfig, encoder: str, shapes: PyTree, settings: dict[str, Any]) -> Loader:
    """Returns a function that loads published weights into an encoder."""
    section = getattr(config.model, encoder)
    if encoder == "vision":
        _check_published_vision(config)
    weights = prepare(
        section.init_from,
        encoder,
        shapes,
        settings=settings,
        cut=section.init_cut,
        own_tokenizer=section.init_from == config.data.tokenizer,
    )

    def load(model: ModelState) -> ModelState:
        _print_once(f"{encoder} encoder: {weights.report()}")
        return model._replace(params=model.params | {encoder: weights.load(model.params[encoder])})

    return load


def _check_published_vision(config: RunConfig) -> None:
    """Raises a ValueError if the config has a part that published weights lack."""
    vision, trained = config.model.vision, max(config.data.frames.values())
    if vision.stem != "patch":
        raise ValueError(f"config.model.vision.stem is {vision.stem!r}; published weights need 'patch'")
    for domain, frames in config.eval.frames.items():
        if vision.integration_depth and vision.across_frames == "xclip" and frames > trained:
            raise ValueError(
                f"config.eval.frames.{domain} is {frames}; expected no more than all of config.data.frames because "
                "config.model.vision.init_from names published weights, whose positions of frames would be stretched "
                "beyond those that are trained"
            )


@dataclass(frozen=True)
class OwnModel:
    """A model of this project: a checkpoint of a run, or an export."""

    name: str  # in messages
    config: RunConfig  # of its run
    tokenizer: Path  # folder of its tokenizer
    shapes: dict[str, str]  # of parameters and statistics: {"text/words/embedding": "float32[8000, 96]", …}
    read: Callable[[ModelState], ModelState]  # reads some of its parts, with the layout of the argument


def is_run_or_export(name: str) -> bool:
    """Returns whether a name is that of a run's work directory, one of its checkpoints, or an export."""
    path = Path(name)
    is_checkpoint = path.is_dir() and path.absolute().parent.name == "checkpoints"
    return is_checkpoint or (path / "checkpoints").is_dir() or exported.is_export(path)


def open_model(name: str) -> OwnModel:
    """Opens the newest checkpoint of a run, a certain one, or an export."""
    path = Path(name).absolute()
    if exported.is_export(path):
        description = json.loads((path / exported.CONFIG).read_text(encoding="utf-8"))
        with safe_open(path / exported.WEIGHTS, framework="numpy") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if "axes" in weights:  # an export has no second moments: make some with these principal axes
            axes = weights["axes"].astype(np.float64)
            weights["moments"] = ((axes * np.linspace(1, 0.5, len(axes))) @ axes.T).astype(np.float32)

        def read(like: ModelState) -> ModelState:
            def fill(key: str, leaf: jax.Array) -> jax.Array:
                value = weights[key]
                return jax.make_array_from_callback(value.shape, leaf.sharding, lambda index: value[index])

            return ModelState(*(jax.tree.map(fill, leaf_paths(tree), tree) for tree in like))

        config = resolve_config(add_missing_fields(description["run"]))
        return OwnModel(name, config, path / exported.TOKENIZER, shapes_by_path(weights), read)
    workdir = path if (path / "checkpoints").is_dir() else path.parent.parent
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.newest() if workdir == path else int(path.name)
        shapes = checkpoints.shapes(step)

    def restore(like: ModelState) -> ModelState:
        with Checkpoints(workdir) as checkpoints:
            return checkpoints.restore_model(step, like, partial=True)

    prefixes = "params/model/", "statistics/"
    model = {key.removeprefix(start): shapes[key] for key in shapes for start in prefixes if key.startswith(start)}
    config = load_config(workdir)
    if config.finetune.method == "lora":
        raise ValueError(f"{workdir} has low-rank matrices: export it, which merges them, and start from the export")
    return OwnModel(f"step {step} of {workdir}", config, workdir / "tokenizer", model, restore)


def _prepare_own(config: RunConfig, name: str, encoders: Sequence[str], shapes: ModelState) -> Loader:
    """Returns a function that loads encoders from a run or an export; if it is all encoders, fusion heads as well."""
    source = open_model(name)
    if problems := [line for encoder in encoders for line in _differences(config, source, encoder, shapes)]:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ValueError(f"config.model.{encoders[0]}.init_from is {name!r}, which is another model:\n{listed}")
    parts = list(encoders)
    if {*encoders, "fusion"} == shapes.params.keys():
        same = source.config.model.fusion == config.model.fusion
        parts += ["fusion"] if same and not _shape_differences(source, "fusion", shapes) else []
        parts += ["moments"] if "fusion" in parts and "moments" in source.shapes else []

    def load(model: ModelState) -> ModelState:
        _print_once(f"{' and '.join(part for part in parts if part != 'moments')} from {source.name}")
        params, statistics = (drop_lora({part: tree[part] for part in parts if part in tree}) for tree in model)
        loaded = source.read(ModelState(params, statistics))
        return ModelState(*map(_overlay, model, loaded))

    return load


def _overlay(old: PyTree, new: PyTree) -> PyTree:
    """Returns nested dictionaries with the values of others where they have any."""
    if not isinstance(old, dict):
        return new
    return {key: _overlay(value, new[key]) if key in new else value for key, value in old.items()}


def _differences(config: RunConfig, source: OwnModel, encoder: str, shapes: ModelState) -> Iterator[str]:
    """Lists how an encoder differs from that of another model."""
    theirs, ours = (
        {f"config.model.{encoder}.{name}": value for name, value in fields.items() if name not in FREE}
        for fields in (asdict(getattr(run.model, encoder)) for run in (source.config, config))
    )
    yield from describe_differences(theirs, ours, labels=(f"in {source.name}", "now"))
    yield from _shape_differences(source, encoder, shapes)
    if encoder == "text" and config.data.tokenizer:
        vocabularies = (load_tokenizer(folder).get_vocab() for folder in (config.data.tokenizer, source.tokenizer))
        if len({frozenset(vocabulary.items()) for vocabulary in vocabularies}) > 1:
            yield f"config.data.tokenizer is {config.data.tokenizer!r}, which has other words than {source.tokenizer}"


def _shape_differences(source: OwnModel, part: str, shapes: ModelState) -> list[str]:
    """Lists the values of a part that have another shape in another model."""
    theirs = {key: shape for key, shape in source.shapes.items() if key.startswith(f"{part}/")}
    ours = {
        key: shape
        for tree in shapes
        if part in tree
        for key, shape in shapes_by_path({part: drop_lora(tree[part])}).items()
    }
    return describe_differences(theirs, ours, labels=(f"in {source.name}", "now"), show=str)


def _print_once(line: str) -> None:
    """Prints a line in the first process."""
    if jax.process_index() == 0:
        print(line)
