"""The list of pretrained families, and which of them a checkpoint belongs to."""

from collections.abc import Collection, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from cope_jax.models.backbones import bert, chinese_clip, clip, xclip
from cope_jax.models.backbones.spec import EncoderSpec, Family, MakeSpec

FAMILIES: dict[str, Family] = {
    "xclip": xclip.FAMILY,
    "clip": clip.FAMILY,
    "bert": bert.FAMILY,
    "chinese_clip": chinese_clip.FAMILY,
}


def model_types(encoder: str) -> dict[str, MakeSpec]:
    """Returns the supported values of `model_type` in config.json for an encoder, "vision" or "text"."""
    families = FAMILIES.values()
    return {kind: make for family in families for kind, make in getattr(family, encoder).items()}


def find_spec(encoder: str, config: Mapping[str, Any], names: Collection[str], *, what: str) -> EncoderSpec:
    """Describes what a checkpoint has for an encoder.

    Args:
        encoder: "vision" or "text".
        config: Content of config.json.
        names: Names of the tensors.
        what: Subject of error messages: "config.model.vision.init_from is 'hfl/rbt3'".

    Raises:
        ValueError: No supported family has this model type and encoder, or config.json is invalid.
    """
    # Not at the top: it imports torch if that is installed.
    from transformers import AutoConfig

    settings, supported = dict(config), model_types(encoder)
    kind = settings.pop("model_type", None)
    if kind not in supported:
        raise ValueError(f"{what}, whose model_type is {kind!r}; the {encoder} encoder supports {', '.join(supported)}")
    try:
        parsed = AutoConfig.for_model(kind, **settings)  # adds the values that config.json leaves out
    except StrictDataclassError as error:
        raise ValueError(f"{what}, whose config.json is invalid: {error}") from error
    return supported[kind](parsed, names)
