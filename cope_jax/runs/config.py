"""Checks of a config before anything starts, and the resolved config of a work directory."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from cope_jax.data.frames import SHORT_CLIPS
from cope_jax.domains import DOMAINS
from cope_jax.models.compute import ATTENTIONS, REMATS
from cope_jax.models.cope import FUSIONS
from cope_jax.models.layers import ACTIVATIONS
from cope_jax.models.projection import HEAD_NORMS
from cope_jax.models.stems import conv_patch_size
from cope_jax.models.text import POOLINGS as TEXT_POOLINGS
from cope_jax.models.vision import NORMALISATIONS
from cope_jax.models.vision import POOLINGS as VISION_POOLINGS

DTYPES = ("float32", "bfloat16")
STEMS = ("patch", "conv")
AVERAGE = "average_"  # in front of metrics of the moving average
BEST_BY = tuple(prefix + name for prefix in ("", AVERAGE) for name in ("mean_r1", "mean_r5", "mean_r10", "mean_map"))

POSITIVE = [
    "data.frames.page",
    "data.frames.video",
    "data.frames.live",
    "data.image_size",
    "data.max_products",
    "data.vocab_size",
    "model.embedding",
    "model.vision.patch_size",
    "model.vision.width",
    "model.vision.depth",
    "model.vision.heads",
    "model.vision.integration_heads",
    "model.vision.output_width",
    "model.text.width",
    "model.text.depth",
    "model.text.heads",
    "model.fusion.width",
    "model.fusion.depth",
    "model.fusion.heads",
    "losses.sigmoid.temperature",
    "losses.infonce.temperature",
    "losses.classifier.scale",
    "losses.classifier.rate",
    "optimizer.rate",
    "train.batch_size",
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.evaluate_products",
    "eval.frames.page",
    "eval.frames.video",
    "eval.frames.live",
    "eval.batch_size",
    "eval.shots",
    "eval.queries",
]
FRACTIONS = [
    "data.colour_jitter",
    "data.text_noise",
    "data.max_bad_fraction",
    "losses.infonce.smoothing",
    "losses.classifier.rate",
]
NOT_NEGATIVE = [
    "losses.sigmoid.weight",
    "losses.sigmoid.page_text",
    "losses.sigmoid.page_vision",
    "losses.infonce.weight",
    "losses.infonce.page_text",
    "losses.infonce.page_vision",
    "losses.classifier.weight",
    "losses.classifier.margin",
    "losses.classifier.classes",
    "train.max_skipped",
    "train.microbatch",
    "train.stall_seconds",
    "train.evaluate_every",
    "model.vision.integration_depth",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
]
BELOW_ONE = {
    "model.vision.drop_path": "which would drop everything",
    "model.text.dropout": "which would drop everything",
    "train.average_decay": "which would keep what the run began with",
}
CHOICES = {
    "data.short_clips": SHORT_CLIPS,
    "model.dtype": DTYPES,
    "model.attention": ATTENTIONS,
    "model.remat": REMATS,
    "model.head_norm": HEAD_NORMS,
    "model.vision.normalisation": NORMALISATIONS,
    "model.vision.stem": STEMS,
    "model.vision.pooling": VISION_POOLINGS,
    "model.vision.activation": ACTIVATIONS,
    "model.text.pooling": TEXT_POOLINGS,
    "model.fusion.kind": FUSIONS,
    "train.best_by": BEST_BY,
}


def validate(config: ConfigDict) -> None:
    """Checks every value that can be checked without data or devices.

    Raises:
        ValueError: lists all faults, each with the key to change.
    """
    faults = [*value_faults(config), *combination_faults(config)]
    if faults:
        raise ValueError("the config has faults:\n" + "\n".join(f"  {fault}" for fault in faults))


def value_faults(config: ConfigDict) -> Iterator[str]:
    """Faults of single fields."""
    fields = dict(flatten(config))
    for key in POSITIVE:
        if fields[key] <= 0:
            yield f"config.{key} is {fields[key]}; it must be above 0"
    for key in NOT_NEGATIVE:
        if fields[key] < 0:
            yield f"config.{key} is {fields[key]}; it must not be negative"
    for key in FRACTIONS:
        if not 0 <= fields[key] <= 1:
            yield f"config.{key} is {fields[key]}; it must lie between 0 and 1"
    for key, otherwise in BELOW_ONE.items():
        if not 0 <= fields[key] < 1:
            yield f"config.{key} is {fields[key]}; it must be at least 0 and below 1, {otherwise}"
    for key, choices in CHOICES.items():
        if fields[key] not in choices:
            yield f"config.{key} is {fields[key]!r}; choose one of {', '.join(choices)}"
    for domain in config.model.text_domains:
        if domain not in DOMAINS:
            yield f"config.model.text_domains names {domain!r}; choose from {', '.join(DOMAINS)}"


def combination_faults(config: ConfigDict) -> Iterator[str]:
    """Faults of fields that must go together."""
    data, vision, text = config.data, config.model.vision, config.model.text
    low, high = data.crop_scale
    if not 0 < low <= high <= 1:
        yield f"config.data.crop_scale is {data.crop_scale}; it must be (low, high) with 0 < low <= high <= 1"
    if data.text_length < 3:
        yield f"config.data.text_length is {data.text_length}; it must be 3 or more: [CLS], a token, [SEP]"
    if data.image_size % vision.patch_size:
        yield f"config.data.image_size {data.image_size} is no multiple of model.vision.patch_size {vision.patch_size}"
    if vision.stem == "conv" and vision.patch_size != (wanted := conv_patch_size(len(vision.stem_widths))):
        yield (
            f"config.model.vision.patch_size is {vision.patch_size}; the {len(vision.stem_widths)} stages of "
            f"stem_widths make {wanted}"
        )
    if vision.stem == "conv" and len(vision.stem_widths) != len(vision.stem_blocks):
        yield "config.model.vision.stem_widths and stem_blocks must have one entry a stage each"
    if config.model.attention == "cudnn" and config.model.dtype == "float32":
        yield "config.model.attention is 'cudnn', which computes in 16 bits; set config.model.dtype to bfloat16"
    for name, width, heads in (
        ("vision.width", vision.width, vision.heads),
        ("vision.output_width", vision.output_width, vision.integration_heads),
        ("text.width", text.width, text.heads),
        ("fusion.width", config.model.fusion.width, config.model.fusion.heads),
    ):
        if heads > 0 and width % heads:
            yield f"config.model.{name} {width} is no multiple of its {heads} heads"
    yield from weight_faults(config)
    yield from loss_faults(config)
    if config.optimizer.warmup_steps >= config.train.steps:
        yield (
            f"config.optimizer.warmup_steps {config.optimizer.warmup_steps} must be less than "
            f"config.train.steps {config.train.steps}"
        )
    yield from group_faults(config.optimizer.groups)
    if config.train.best_by.startswith(AVERAGE) and not config.train.average_decay:
        yield f"config.train.best_by is {config.train.best_by!r}, and config.train.average_decay is 0"
    if config.eval.ways < 2:
        yield f"config.eval.ways is {config.eval.ways}; few-shot needs 2 classes or more"
    if config.eval.episodes < 10:
        yield f"config.eval.episodes is {config.eval.episodes}; an interval needs 10 or more"


def loss_faults(config: ConfigDict) -> Iterator[str]:
    """Faults of the loss's terms and of the way it is computed."""
    if not active_terms(config):
        yield "config.losses gives no term a weight; set one above 0, such as config.losses.sigmoid.weight=1"
    for name in ("sigmoid", "infonce"):
        term = config.losses[name]
        if term.weight and term.page_text and "page" not in config.model.text_domains:
            yield f"config.losses.{name}.page_text is {term.page_text}, and config.model.text_domains has no 'page'"
    size, part = config.train.batch_size, config.train.microbatch
    if part > 0 and size % part:
        yield f"config.train.batch_size {size} is no multiple of config.train.microbatch {part}"
    if part not in (0, size) and config.model.head_norm == "batch":
        yield "config.model.head_norm 'batch' needs whole batches; set it to 'none' or config.train.microbatch to 0"


def group_faults(groups: Sequence[tuple[str, float]]) -> Iterator[str]:
    """Faults of the optimiser's groups that show without the parameters."""
    for pattern, factor in groups:
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"config.optimizer.groups has the regex {pattern!r}, which does not parse: {error}"
        if not 0 <= factor < math.inf:
            yield f"config.optimizer.groups gives {pattern!r} the factor {factor}; it must be 0 (frozen) or more"


def weight_faults(config: ConfigDict) -> Iterator[str]:
    """Faults of what encoders start from that show without looking at the weights."""
    vision, text = config.model.vision, config.model.text
    if vision.init_from and vision.stem != "patch":
        yield f"config.model.vision.init_from needs model.vision.stem 'patch'; it is {vision.stem!r}"
    longest, trained = (max(section.frames.values()) for section in (config.eval, config.data))
    if vision.init_from and vision.integration_depth and longest > trained:
        yield (
            f"config.eval.frames go to {longest}, config.data.frames to {trained}: the published positions of frames "
            "would be stretched over places that training never sees"
        )
    for name, section in (("vision", vision), ("text", text)):
        if section.init_cut and not section.init_from:
            yield f"config.model.{name}.init_cut is True, and config.model.{name}.init_from names no weights to cut"
    if text.init_from and not config.data.tokenizer:
        yield "config.model.text.init_from needs config.data.tokenizer, a folder or hub name with the weights' own"
    if text.init_from and not config.model.text_domains:
        yield "config.model.text.init_from is set, and no domain of config.model.text_domains uses text"


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every field."""
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


FOLDER_OR_HUB = ("data.tokenizer", "model.vision.init_from", "model.text.init_from")


def make_paths_absolute(config: ConfigDict) -> None:
    """Changes local paths so that they hold from anywhere: evaluation may start in another folder than training.

    A tokenizer or weights whose name is no folder here are the hub's and stay.
    """
    fields = dict(flatten(config))
    folders = [key for key in FOLDER_OR_HUB if fields[key] and Path(fields[key]).is_dir()]
    config.update_from_flattened_dict({key: str(Path(fields[key]).absolute()) for key in ["data.data_dir", *folders]})


def save_config(config: ConfigDict, workdir: Path) -> None:
    """Writes the resolved config to `config.json`, or checks it against the one that is there.

    A run may go on with another mesh, another way of computing the same, another log or checkpoint interval or other
    evaluation settings; what would make it another run is refused. Before the first checkpoint there is no run yet,
    and all may change: the tokenizer that an earlier start left is made anew.

    Raises:
        ValueError: lists the fields that differ.
    """
    path = workdir / "config.json"
    if path.exists():
        old, new = dict(flatten(load_config(workdir))), dict(flatten(config))
        changed = [
            f"  config.{key}: {old.get(key)!r} there, {new.get(key)!r} now"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE)
        ]
        if changed and any((workdir / "checkpoints").glob("[0-9]*")):
            raise ValueError(
                f"{workdir} holds a run with another config; choose another --workdir or restore:\n"
                + "\n".join(changed)
            )
        if changed:
            shutil.rmtree(workdir / "tokenizer", ignore_errors=True)
    text = config.to_json(indent=2) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


MAY_CHANGE = (
    "mesh.",
    "eval.batch_size",
    "eval.ways",
    "eval.shots",
    "eval.queries",
    "eval.episodes",
    "model.attention",
    "model.scan_layers",
    "model.remat",
    "data.data_dir",
    "data.threads",
    "data.max_bad_fraction",
    "data.eval_split",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_skipped",
    "train.microbatch",
    "train.stall_seconds",
    "train.evaluate_every",
    "train.evaluate_products",
    "train.best_by",
)


def load_config(workdir: Path) -> ConfigDict:
    """Reads the resolved config of a work directory.

    Raises:
        FileNotFoundError: there is none; says what a work directory is.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: --workdir must name the folder that a training run wrote")
    return ConfigDict(tupled(json.loads(path.read_text(encoding="utf-8")))).lock()


def tupled(value: object) -> object:
    """JSON's lists as the tuples they were."""
    if isinstance(value, dict):
        return {key: tupled(item) for key, item in value.items()}
    return tuple(tupled(item) for item in value) if isinstance(value, list) else value


TERMS = ("sigmoid", "infonce", "classifier")


def active_terms(config: ConfigDict) -> list[str]:
    """The terms that the config gives a weight."""
    return [name for name in TERMS if config.losses[name].weight]
