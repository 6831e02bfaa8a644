"""The config of a run that starts both encoders from one published image-text model."""

import math
from collections.abc import Collection
from typing import Any

from cope_jax.models.backbones.files import Weights, open_weights
from cope_jax.models.backbones.load import find_spec
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_validation import replace_fields

KEY = "config.model.init_from"
DATA_FIELDS = {"image_size": "image_size", "max_length": "text_length", "lowercase": "lowercase"}  # by setting


def start_from_weights(config: RunConfig, keep: Collection[str] = ()) -> RunConfig:
    """Returns the config with the fields that `config.model.init_from` stands for; the same config if that is empty.

    These fields are the settings of both encoders, their `init_from`, the tokenizer, the sizes of images and texts, and
    the initial t and β of the sigmoid loss.

    Args:
        config: Config of the run.
        keep: Fields that keep their values, such as those given as flags, by dotted key: {"data.image_size", …}.

    Raises:
        FileNotFoundError: The weights are missing.
        ValueError: They lack one of the encoders, or the fields do not fit each other.
    """
    if not (name := config.model.init_from):
        return config
    weights = open_weights(name, key=KEY)
    fields = {"model.init_from": "", "data.tokenizer": name} | _loss_scalars(weights)
    for encoder in ("vision", "text"):
        settings = find_spec(encoder, weights, what=f"{KEY} is {name!r}").settings()
        sections = {key: f"data.{DATA_FIELDS[key]}" for key in settings if key in DATA_FIELDS}
        fields |= {sections.get(key, f"model.{encoder}.{key}"): value for key, value in settings.items()}
        if encoder == "vision" or config.model.text_domains:
            fields[f"model.{encoder}.init_from"] = name
    return replace_fields(config, {key: value for key, value in fields.items() if key not in keep})


def _loss_scalars(weights: Weights) -> dict[str, Any]:
    """Returns the fields for t and β, if the weights have them."""
    names = {name.rpartition(".")[2]: name for name in weights.tensors}
    fields = {}
    if name := names.get("logit_scale"):
        fields["losses.sigmoid.temperature"] = math.exp(weights.read(name).item())
    if name := names.get("logit_bias"):
        fields["losses.sigmoid.bias"] = weights.read(name).item()
    return fields
