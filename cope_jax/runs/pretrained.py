"""The config of a run that starts from one published image-text model, from another run, or from an export."""

import math
from collections.abc import Collection
from typing import Any

from cope_jax.models.backbones.files import Weights, open_weights
from cope_jax.models.backbones.load import find_spec
from cope_jax.runs.config import RunConfig, flatten
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.initial_weights import is_run_or_export, open_model

KEY = "config.model.init_from"
# Setting of an encoder → field of config.data.
DATA_FIELDS = {"image_size": "image_size", "max_length": "text_length", "lowercase": "lowercase", "resize": "resize"}


def start_from_weights(config: RunConfig, keep: Collection[str] = ()) -> RunConfig:
    """Returns the config with the fields that `config.model.init_from` stands for; the same config if that is empty.

    These fields are the settings of both encoders, their `init_from`, the tokenizer, the sizes of images and texts, the
    initial t and β of the sigmoid loss and, if both encoders have vectors of the same width, aligned fusion. From a run
    or an export, they are all settings of its model, the tokenizer, and the sizes. `finetune.method=lora` also sets
    `model.remat`: low-rank matrices save memory only if activations are recomputed.

    Args:
        config: Config of the run.
        keep: Fields that keep their values, such as those given as flags, by dotted key: {"data.image_size", …}.

    Raises:
        FileNotFoundError: The weights are missing.
        ValueError: They lack one of the encoders, or the fields do not fit each other.
    """
    if not (name := config.model.init_from):
        return config
    keep = {*keep} - {"model.init_from"}  # itself is often a flag
    remat = {"model.remat": "block"} if config.finetune.method == "lora" else {}
    if is_run_or_export(name):
        fields = _own_fields(config, name) | remat
        return replace_fields(config, {key: value for key, value in fields.items() if key not in keep})
    weights = open_weights(name, key=KEY)
    fields = {"model.init_from": "", "data.tokenizer": name} | remat | _loss_scalars(weights)
    if config.finetune.method != "full":  # the gates of what connects frames would stay closed
        fields |= {"model.vision.cross_frame": False, "model.vision.integration_depth": 0}
    widths = []
    for encoder in ("vision", "text"):
        settings = find_spec(encoder, weights, what=f"{KEY} is {name!r}").settings()
        widths.append(settings.get("output_width") or settings["width"])
        sections = {key: f"data.{DATA_FIELDS[key]}" for key in settings if key in DATA_FIELDS}
        fields |= {sections.get(key, f"model.{encoder}.{key}"): value for key, value in settings.items()}
        if encoder == "vision" or config.model.text_domains:
            fields[f"model.{encoder}.init_from"] = name
    if len(set(widths)) == 1 and not {"model.fusion.kind", "model.embedding"} & keep:
        fields |= {"model.fusion.kind": "aligned", "model.embedding": widths[0], "model.head_norm": "none"}
    return replace_fields(config, {key: value for key, value in fields.items() if key not in keep})


def _own_fields(config: RunConfig, name: str) -> dict[str, Any]:
    """Returns the fields that a run or an export stands for."""
    source = open_model(name)
    theirs = flatten(source.config)
    skipped = ("model.init_from", "model.vision.init_", "model.text.init_")
    fields = {key: value for key, value in theirs.items() if key.startswith("model.") and not key.startswith(skipped)}
    fields |= {key: theirs[key] for key in (f"data.{field}" for field in DATA_FIELDS.values())}
    if source.config.data.domains.keys() != config.data.domains.keys():
        fields["model.text_domains"] = config.model.text_domains
    used = ("vision", "text") if source.config.model.text_domains and fields["model.text_domains"] else ("vision",)
    fields |= {f"model.{encoder}.init_from": name for encoder in used}
    return fields | {"model.init_from": "", "data.tokenizer": str(source.tokenizer)}


def _loss_scalars(weights: Weights) -> dict[str, Any]:
    """Returns the fields for t and β, if the weights have them."""
    names = {name.rpartition(".")[2]: name for name in weights.tensors}
    fields = {}
    if name := names.get("logit_scale"):
        fields["losses.sigmoid.temperature"] = math.exp(weights.read(name).item())
    if name := names.get("logit_bias"):
        fields["losses.sigmoid.bias"] = weights.read(name).item()
    return fields
