"""Validation of configs: a `ConfigDict` or nested mapping becomes a `RunConfig`, or one error lists all problems."""

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import attrgetter
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from cope_jax.models.stems import conv_patch_size
from cope_jax.runs.config import AVERAGE_PREFIX, RunConfig
from data_prep.common.domains import DOMAINS, ROPE_DOMAINS, domain_pairs, is_domain_name, sort_domains

# Fields that were added after the first runs, with the values that stand for what these runs did.
ADDED_FIELDS = {
    "data.domains": ROPE_DOMAINS,
    "data.resize": "stretch",
    "data.frame_choice": "random",
    "data.worker_processes": 0,
    "data.modality_dropout": [],
    "data.lowercase": False,
    "data.text_templates": [],
    "data.clean_texts": False,
    "data.hard_batches": 0.0,
    "data.hard_every": 1000,
    "model.init_from": "",
    "model.principal_axes": False,
    "model.vision.family": "clip",
    "model.vision.mlp_width": 0,
    "model.vision.across_frames": "xclip",
    "model.text.family": "bert",
    "model.text.mlp_width": 0,
    "model.text.activation": "gelu",
    "model.text.output_width": 0,
    "model.vision.broadcast_single_frame": False,
    "model.text.attention_dropout": 0.0,
    "losses.precision": "highest",
    "losses.nested": [],
    "losses.sigmoid.within": [],
    "finetune": {
        "method": "full",
        "layer_decay": 1.0,
        "rank": 16,
        "alpha": 16.0,
        "targets": r"/attention/(qkv|out)$|/mlp/(up|down)$",
        "distill": 0.0,
    },
    "optimizer.cosine_steps": 0,
    "optimizer.decayed": r"/(kernel|embedding)$",
    "optimizer.clipped": "",
    "train.shard_optimizer": False,
    "train.wandb": "",
}
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
    lines = [f"{key} {problem}" for key, problem in problems.items()]
    if "config" not in problems:
        read = _reader(config, [key.split("[")[0] for key in problems])
        lines += [*_domain_problems(read), *_relation_problems(read)]
    if lines:
        raise ValueError("invalid config:\n" + "\n".join(f"  {line}" for line in lines))
    return config


def replace_fields(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Returns a validated copy with other values, by dotted key: `replace_fields(config, {"train.steps": 10})`."""
    return resolve_config(dataclasses.asdict(config), changes)


def add_missing_fields(fields: Any) -> Any:
    """Adds ADDED_FIELDS to the fields that an earlier version saved, replaces former ones, and returns them."""
    for key, value in ADDED_FIELDS.items():
        *sections, name = key.split(".")
        section = reduce(lambda found, part: found.get(part) if isinstance(found, dict) else None, sections, fields)
        if isinstance(section, dict):
            section.setdefault(name, value)
    losses = fields.get("losses") if isinstance(fields, dict) else None
    for term in losses.values() if isinstance(losses, dict) else ():
        if isinstance(term, dict) and "page_text" in term:
            weights = {view: term.pop(view.replace(".", "_"), 0) for view in ("page.text", "page.vision")}
            added = [[view, domain, w] for view, w in weights.items() for domain in DOMAINS if domain != "page" and w]
            term["pairs"] = [[a, b, 1.0] for a, b in domain_pairs(DOMAINS)] + added if added else []
    return fields


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
    if get_origin(kind) is dict and isinstance(value, Mapping) and value:
        of_name, of_value = get_args(kind)
        for name in value:
            if not is_domain_name(name):
                problems[f"{key}[{name!r:.50}]"] = f"is invalid; expected {_describe(of_name)}"
        names = sort_domains(name for name in value if is_domain_name(name))
        return {name: _check(value[name], of_value, f"{key}.{name}", problems) for name in names}
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) == len(value):
            entries = enumerate(zip(value, kinds, strict=True))
            return tuple(_check(entry, of_entry, f"{key}[{i}]", problems) for i, (entry, of_entry) in entries)
    scalar = _check_scalar(value, kind)
    if scalar is None:
        problems[key] = f"is {value!r:.100}; expected {_describe(kind)}"
    return scalar


def _check_scalar(value: Any, kind: Any) -> bool | int | float | str | None:
    """Returns a value as a scalar type; None if it is invalid."""
    if get_origin(kind) is Annotated:
        base, limit = get_args(kind)
        scalar = _check_scalar(value, base)
        return scalar if scalar is not None and limit.allows(scalar) else None
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
        base, limit = get_args(kind)
        return f"{_describe(base)} {limit.words}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) is dict:
        return f"a section with {_describe(get_args(kind)[1])} for each domain"
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            return f"a tuple, each entry {_describe(kinds[0])}"
        return f"({', '.join(map(_describe, kinds))})"
    return SCALARS[kind]


def describe_fields(kind: Any = RunConfig, prefix: str = "") -> dict[str, str]:
    """Returns the values that each field allows, by dotted key: {"seed": "an integer >= 0 and < 2**32", …}."""
    fields = {}
    for name, of_field in get_type_hints(kind, include_extras=True).items():
        is_section = dataclasses.is_dataclass(of_field)
        key = f"{prefix}{name}"
        if get_origin(of_field) is dict:
            key, of_field = f"{key}.DOMAIN", get_args(of_field)[1]
        fields |= describe_fields(of_field, f"{key}.") if is_section else {key: _describe(of_field)}
    return fields


def _reader(config: RunConfig, invalid: Sequence[str]) -> Callable[[str], Any]:
    """Returns a function from dotted keys to values; None if the field, its section or an entry is invalid."""

    def read(key: str) -> Any:
        path = f"config.{key}."
        is_invalid = any(path.startswith(f"{other}.") or f"{other}.".startswith(path) for other in invalid)
        return None if is_invalid else attrgetter(key)(config)

    return read


def _domain_problems(read: Callable[[str], Any]) -> Iterator[str]:
    """Yields the fields per domain that have other domains than config.data.domains."""
    if (domains := read("data.domains")) is None:
        return
    expected = f"expected those of config.data.domains, {', '.join(domains)}"
    for key in ("data.frames", "eval.frames"):
        if (frames := read(key)) and frames.keys() != domains.keys():
            yield f"config.{key} has the domains {', '.join(frames)}; {expected}"
    texts = read("model.text_domains")
    if texts and not set(texts) <= set(domains):
        yield f"config.model.text_domains is {texts!r}; {expected}"
    for name in ("text_templates", "modality_dropout"):
        rows = read(f"data.{name}") or ()
        named = {row[0] for row in rows}
        if not named <= set(domains) or len(named) < len(rows):
            yield f"config.data.{name} is {rows!r}; {expected}, each at most once"
    dropped = {row[0] for row in read("data.modality_dropout") or ()} & set(domains)
    if texts is not None and (unread := sort_domains(dropped - set(texts))):
        wanted = f"those of config.model.text_domains {texts!r}, since items need both frames and text"
        yield f"config.data.modality_dropout has the domains {', '.join(unread)}; expected {wanted}"
    if high := [row for row in read("data.modality_dropout") or () if sum(row[1:]) > 1]:
        yield f"config.data.modality_dropout has {high}; expected probabilities that add up to at most 1"
    for key in ("sigmoid.pairs", "sigmoid.within", "infonce.pairs"):
        given = read(f"losses.{key}")
        if not given or not read(f"losses.{key.partition('.')[0]}.weight"):
            continue
        rows = [row[:-1] for row in given]
        views = sorted({view for row in rows for view in row})
        if unknown := [view for view in views if view.partition(".")[0] not in domains]:
            yield f"config.losses.{key} has the views {', '.join(unknown)}; {expected}"
        unread = [view for view in views if view.endswith(".text") and texts is not None and view[:-5] not in texts]
        if unread:
            wanted = f"those of config.model.text_domains {texts!r}"
            yield f"config.losses.{key} has the views {', '.join(unread)}; expected {wanted}"
        if len(set(map(frozenset, rows))) < len(rows):
            once = f"each {'pair' if key.endswith('pairs') else 'view'} once"
            yield f"config.losses.{key} is {given!r}; expected {once}"


def _relation_problems(read: Callable[[str], Any]) -> Iterator[str]:
    """Yields the relations that do not hold."""
    for keys, holds, expected in RELATIONS:
        values = [read(key) for key in keys]
        if None not in values and not holds(*values):
            yield f"config.{keys[0]} is {values[0]!r}; expected {expected.format(*values)}"


class Relation(NamedTuple):
    """Fields that must fit each other; if they do not, the first one is reported."""

    keys: tuple[str, ...]  # dotted keys
    holds: Callable[..., Any]  # returns whether the values fit, as a truth value
    expected: str  # what the first field should be. {0}, {1}, … stand for the values


def _only(key: str, allowed: tuple[Any, ...], other: str, causes: tuple[Any, ...], reason: str = "") -> Relation:
    """Returns the relation that a field has one of the allowed values if another one has one of some values."""
    words = f"{' or '.join(map(repr, allowed))} because config.{other} is {{1!r}}{reason and f', {reason}'}"
    return Relation((key, other), lambda value, cause: cause not in causes or value in allowed, words)


NOT_BERT = ("clip", "siglip")
RELATIONS = (
    _only("model.dtype", ("bfloat16",), "model.attention", ("cudnn",)),
    _only(
        "model.vision.pooling", ("attention", "mean"), "model.vision.family", ("siglip",), "which has no class token"
    ),
    _only("model.vision.init_cut", (False,), "model.vision.init_from", ("",)),
    _only("model.text.init_cut", (False,), "model.text.init_from", ("",)),
    _only("model.text.pooling", ("class", "mean", "end", "last"), "model.text.family", NOT_BERT, "which has no pooler"),
    _only("model.text.dropout", (0,), "model.text.family", NOT_BERT, "which has no dropout"),
    _only("model.text.attention_dropout", (0,), "model.text.family", NOT_BERT, "which has no dropout"),
    _only("model.text.mlp_width", (0,), "model.text.family", ("bert",)),
    _only("model.text.activation", ("gelu",), "model.text.family", ("bert",)),
    _only("model.head_norm", ("none",), "model.fusion.kind", ("aligned",)),
    _only("finetune.method", ("full", "lora"), "model.fusion.kind", ("transformer",), "which reads frames and words"),
    *(
        Relation((multiple, divisor), lambda x, y: y == 0 or x % y == 0, f"a multiple of config.{divisor} ({{1}})")
        for multiple, divisor in (
            ("data.image_size", "model.vision.patch_size"),
            ("model.vision.width", "model.vision.heads"),
            ("model.vision.output_width", "model.vision.integration_heads"),
            ("model.text.width", "model.text.heads"),
            ("model.fusion.width", "model.fusion.heads"),
            ("train.batch_size", "train.microbatch"),
        )
    ),
    Relation(("data.crop_scale",), lambda scale: scale[0] <= scale[1], "(low, high) with low <= high"),
    Relation(
        ("model.vision.stem_widths", "model.vision.stem"),
        lambda widths, stem: widths or stem != "conv",
        "an entry for each stage of the conv stem",
    ),
    Relation(
        ("model.vision.patch_size", "model.vision.stem", "model.vision.stem_widths"),
        lambda size, stem, widths: stem != "conv" or not widths or size == conv_patch_size(len(widths)),
        "4·2^(stages − 1), with a stage for each entry of config.model.vision.stem_widths {2}",
    ),
    Relation(
        ("model.vision.stem_blocks", "model.vision.stem", "model.vision.stem_widths"),
        lambda blocks, stem, widths: stem != "conv" or len(blocks) == len(widths),
        "as many entries as config.model.vision.stem_widths {2}",
    ),
    Relation(
        ("model.vision.across_frames", "model.vision.family", "model.vision.cross_frame"),
        lambda kind, family, messages: family == "clip" or kind == "gated" or not messages,
        "'gated' because config.model.vision.family is {1!r}, which has no class token for X-CLIP's messages",
    ),
    *(
        Relation(
            ("model.embedding", "model.fusion.kind", *(f"model.{field}" for field in widths)),
            lambda size, kind, *widths: kind != "aligned" or size == next(filter(None, widths)),
            f"the width of {encoder} vectors because config.model.fusion.kind is 'aligned'",
        )
        for encoder, *widths in (("vision", "vision.output_width"), ("text", "text.output_width", "text.width"))
    ),
    Relation(
        ("data.tokenizer", "model.text.init_from"),
        lambda tokenizer, source: tokenizer or not source,
        "the tokenizer of config.model.text.init_from {1!r}, which a run or an export has in the folder tokenizer",
    ),
    Relation(
        ("model.text_domains", "model.text.init_from"),
        lambda domains, source: domains or not source,
        "at least one domain because config.model.text.init_from is set",
    ),
    Relation(
        ("losses.nested", "model.embedding"),
        lambda lengths, size: all(length < size for length in lengths),
        "lengths less than config.model.embedding ({1})",
    ),
    Relation(
        ("losses.sigmoid.weight", "losses.infonce.weight", "losses.classifier.weight"),
        lambda *weights: any(weights),
        "a number > 0 because config.losses.infonce.weight and config.losses.classifier.weight are 0, too",
    ),
    *(
        Relation(
            (f"model.{field}", "train.microbatch", "train.batch_size"),
            lambda value, part, batch, off=off: value == off or part in (0, batch),
            f"{off!r} because config.train.microbatch is {{1}}: statistics of embeddings need whole batches",
        )
        for field, off in (("head_norm", "none"), ("principal_axes", False))
    ),
    Relation(
        ("optimizer.warmup_steps", "train.steps"),
        lambda warmup, steps: warmup < steps,
        "less than config.train.steps ({1})",
    ),
    Relation(
        ("optimizer.cosine_steps", "optimizer.warmup_steps"),
        lambda cosine, warmup: not cosine or cosine > warmup,
        "0, or more than config.optimizer.warmup_steps ({1})",
    ),
    Relation(
        ("train.average_decay", "train.best_by"),
        lambda decay, name: decay > 0 or not name.startswith(AVERAGE_PREFIX),
        "a number > 0 because config.train.best_by is {1!r}",
    ),
)
