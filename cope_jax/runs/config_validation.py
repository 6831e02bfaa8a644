"""Validation of configs: a `ConfigDict` or nested mapping becomes a `RunConfig`, or one error lists all problems."""

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from cope_jax.models.stems import conv_patch_size
from cope_jax.runs.config import AVERAGE_PREFIX, RunConfig, flatten

Valid = Callable[..., bool]  # whether fields, given by their keys without "config.", are valid alone
SCALARS = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}


def resolve_config(
    fields: ConfigDict | Mapping[str, Any], changes: Mapping[str, Any] = MappingProxyType({})
) -> RunConfig:
    """Returns the config that nested fields describe.

    Args:
        fields: All fields of `RunConfig`, as `configs/*.py` or a `config.json` gives them. Lists are accepted for
            tuples and integers for floats.
        changes: Values that replace those of `fields`, by dotted key: {"train.steps": 10}.

    Raises:
        ValueError: Fields are missing, unknown or invalid, alone or in combination. Lists all of them.
    """
    problems: dict[str, str] = {}
    config: Any = _check(_with_changes(fields, changes), RunConfig, "config", problems)
    invalid = [key.split("[")[0] + "." for key in problems]

    def valid(*keys: str) -> bool:
        wanted = [f"config.{key}." for key in keys]
        return not any(a.startswith(b) or b.startswith(a) for a in wanted for b in invalid)

    lines = [f"{key} {problem}" for key, problem in problems.items()]
    if "config" not in problems:
        lines += _combination_problems(config, valid)
    if lines:
        raise ValueError("invalid config:\n" + "\n".join(f"  {line}" for line in lines))
    return config


def replace_fields(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Returns a validated copy with other values, by dotted key: `replace_fields(config, {"train.steps": 10})`."""
    return resolve_config(dataclasses.asdict(config), changes)


def _with_changes(fields: Any, changes: Mapping[str, Any]) -> Any:
    """Returns fields as nested dictionaries with the values of dotted keys replaced."""
    if isinstance(fields, ConfigDict):
        fields = fields.to_dict()
    elif changes:
        fields = copy.deepcopy(fields)
    for key, value in changes.items():
        *sections, name = key.split(".")
        reduce(lambda section, part: section.setdefault(part, {}), sections, fields)[name] = value
    return fields


def _check_section(fields: Mapping[str, Any], kind: Any, key: str, problems: dict[str, str]) -> Any:
    """Returns an instance of a dataclass; invalid fields are None and added to the problems."""
    kinds = get_type_hints(kind, include_extras=True)
    for name in fields:
        if name not in kinds:
            problems[f"{key}.{name}"] = f"is unknown; expected one of {', '.join(kinds)}"
    values = {}
    for name, of_field in kinds.items():
        if name in fields:
            values[name] = _check(fields[name], of_field, f"{key}.{name}", problems)
        else:
            values[name] = None
            problems[f"{key}.{name}"] = f"is missing; expected {_describe(of_field)}"
    return kind(**values)


def _check(value: Any, kind: Any, key: str, problems: dict[str, str]) -> Any:
    """Returns a value as its type; None if it is invalid, which is added to the problems."""
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return _check_section(value, kind, key, problems)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) == len(value):
            entries = enumerate(zip(value, kinds, strict=True))
            return tuple(_check(entry, of_entry, f"{key}[{i}]", problems) for i, (entry, of_entry) in entries)
    scalar = _check_scalar(value, kind)
    if scalar is None:
        problems[key] = f"is {value!r}; expected {_describe(kind)}"
    return scalar


def _check_scalar(value: Any, kind: Any) -> bool | int | float | str | None:
    """Returns a value as a scalar type; None if it is invalid."""
    if get_origin(kind) is Annotated:
        base, limits = get_args(kind)
        scalar = _check_scalar(value, base)
        return scalar if scalar is not None and limits.allows(scalar) else None
    if get_origin(kind) is Literal:
        return value if isinstance(value, str) and value in get_args(kind) else None
    if kind not in SCALARS or isinstance(value, bool) != (kind is bool):
        return None
    if kind is float and isinstance(value, int | float):
        return float(value) if abs(value) <= sys.float_info.max else None
    return value if isinstance(value, kind) else None


def _describe(kind: Any) -> str:
    """Returns the values that a type allows, in words."""
    if dataclasses.is_dataclass(kind):
        return f"a section with {', '.join(field.name for field in dataclasses.fields(kind))}"
    if get_origin(kind) is Annotated:
        base, limits = get_args(kind)
        return f"{_describe(base)} {limits}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            return f"a tuple, each entry {_describe(kinds[0])}"
        return f"({', '.join(map(_describe, kinds))})"
    return SCALARS[kind]


def _combination_problems(config: RunConfig, valid: Valid) -> Iterator[str]:
    """Yields problems of fields that do not fit each other; skips checks of fields that are invalid alone."""
    yield from _size_problems(config, valid)
    yield from _model_problems(config, valid)
    yield from _initialization_problems(config, valid)
    yield from _training_problems(config, valid)


def _size_problems(config: RunConfig, valid: Valid) -> Iterator[str]:
    values = dict(flatten(config))
    for multiple, divisor in (
        ("data.image_size", "model.vision.patch_size"),
        ("model.vision.width", "model.vision.heads"),
        ("model.vision.output_width", "model.vision.integration_heads"),
        ("model.text.width", "model.text.heads"),
        ("model.fusion.width", "model.fusion.heads"),
        ("train.batch_size", "train.microbatch"),
    ):
        if valid(multiple, divisor) and values[divisor] and values[multiple] % values[divisor]:
            yield (
                f"config.{multiple} is {values[multiple]}; expected a multiple of config.{divisor} ({values[divisor]})"
            )
    if valid("data.crop_scale") and not (scale := config.data.crop_scale)[0] <= scale[1]:
        yield f"config.data.crop_scale is {scale}; expected (low, high) with low <= high"


def _model_problems(config: RunConfig, valid: Valid) -> Iterator[str]:
    if valid("model.vision.stem", "model.vision.stem_widths") and config.model.vision.stem == "conv":
        vision, stages = config.model.vision, len(config.model.vision.stem_widths)
        if not stages:
            yield "config.model.vision.stem_widths is (); expected an entry for each stage of the conv stem"
        elif valid("model.vision.patch_size") and vision.patch_size != (size := conv_patch_size(stages)):
            yield (
                f"config.model.vision.patch_size is {vision.patch_size}; expected {size} for the {stages} stages of "
                "config.model.vision.stem_widths"
            )
        if valid("model.vision.stem_blocks") and len(vision.stem_blocks) != stages:
            yield (
                f"config.model.vision.stem_blocks is {vision.stem_blocks}; expected {stages} entries, as in "
                "config.model.vision.stem_widths"
            )
    cudnn = valid("model.attention", "model.dtype") and config.model.attention == "cudnn"
    if cudnn and config.model.dtype == "float32":
        yield "config.model.dtype is 'float32'; expected 'bfloat16' because config.model.attention is 'cudnn'"
    for name in ("sigmoid", "infonce"):
        keys = f"losses.{name}.weight", f"losses.{name}.page_text"
        if valid(*keys, "model.text_domains") and "page" not in config.model.text_domains:
            term = config.losses.sigmoid if name == "sigmoid" else config.losses.infonce
            if term.weight and term.page_text:
                yield (
                    f"config.{keys[1]} is {term.page_text}; expected 0 because config.model.text_domains lacks 'page'"
                )


def _initialization_problems(config: RunConfig, valid: Valid) -> Iterator[str]:
    """Yields the problems of initializing from published weights that do not depend on the weights."""
    for name in ("vision", "text"):
        key = f"model.{name}.init_from"
        if valid(key, f"model.{name}.init_cut"):
            encoder = config.model.vision if name == "vision" else config.model.text
            if encoder.init_cut and not encoder.init_from:
                yield f"config.model.{name}.init_cut is True; expected False because config.{key} is empty"
    if valid("model.vision.init_from") and config.model.vision.init_from:
        if valid("model.vision.stem") and config.model.vision.stem != "patch":
            yield "config.model.vision.stem is 'conv'; expected 'patch' because config.model.vision.init_from is set"
        if valid("model.vision.integration_depth", "data.frames", "eval.frames"):
            trained, evaluated = config.data.frames.longest, config.eval.frames.longest
            if config.model.vision.integration_depth and evaluated > trained:
                yield (
                    f"config.eval.frames has up to {evaluated} frames; expected at most {trained}, as in "
                    "config.data.frames, because config.model.vision.init_from is set: its frame positions would be "
                    "stretched beyond those that are trained"
                )
    if valid("model.text.init_from") and config.model.text.init_from:
        if valid("data.tokenizer") and not config.data.tokenizer:
            yield "config.data.tokenizer is ''; expected the tokenizer of the weights in config.model.text.init_from"
        if valid("model.text_domains") and not config.model.text_domains:
            yield "config.model.text_domains is (); expected at least one because config.model.text.init_from is set"


def _training_problems(config: RunConfig, valid: Valid) -> Iterator[str]:
    if valid(*(f"losses.{name}.weight" for name in ("sigmoid", "infonce", "classifier"))) and not config.losses.active:
        yield "config.losses.*.weight are all 0; expected one > 0, such as config.losses.sigmoid.weight=1"
    if valid("train.batch_size", "train.microbatch", "model.head_norm"):
        batch, part = config.train.batch_size, config.train.microbatch
        if config.model.head_norm == "batch" and part not in (0, batch):
            yield (
                f"config.model.head_norm is 'batch'; expected 'none' because config.train.microbatch is {part}: batch "
                "normalization needs whole batches"
            )
    if valid("optimizer.warmup_steps", "train.steps") and config.optimizer.warmup_steps >= config.train.steps:
        yield (
            f"config.optimizer.warmup_steps is {config.optimizer.warmup_steps}; expected less than config.train.steps "
            f"({config.train.steps})"
        )
    average = valid("train.best_by", "train.average_decay") and config.train.best_by.startswith(AVERAGE_PREFIX)
    if average and not config.train.average_decay:
        name = config.train.best_by
        yield f"config.train.average_decay is 0.0; expected a number > 0 because config.train.best_by is {name!r}"
