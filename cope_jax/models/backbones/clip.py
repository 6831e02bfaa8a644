"""CLIP (arXiv 2103.00020): the vision encoder."""

from collections.abc import Collection

from cope_jax.models.backbones.layouts import COPY, LINEAR, PATCHES, grid_positions
from cope_jax.models.backbones.spec import (
    Config,
    EncoderSpec,
    Family,
    Requirement,
    Source,
    Sources,
    attention,
    linear,
    norm,
    prefix_of,
    unsupported_sizes,
)

EPSILON = 1e-5
PROJECTION: Sources = {"project/kernel": Source(("visual_projection.weight",), LINEAR)}
IGNORED = (r"^text_model\.", r"^text_projection\.", r"^logit_scale$", r"embeddings\.position_ids$")
ACROSS_FRAMES = (r"^blocks/message_", r"^integration/")  # parameters that an image model does not have


def block_attention(path: str, tensor: str) -> Sources:
    """Sources of CLIP's attention."""
    return attention(path, [f"{tensor}.{part}_proj" for part in "qkv"], f"{tensor}.out_proj")


def block(path: str, tensor: str) -> Sources:
    """Sources of CLIP's pre-norm block."""
    return {
        **norm(f"{path}/norm1", f"{tensor}.layer_norm1"),
        **block_attention(f"{path}/attention", f"{tensor}.self_attn"),
        **norm(f"{path}/norm2", f"{tensor}.layer_norm2"),
        **linear(f"{path}/mlp/up", f"{tensor}.mlp.fc1"),
        **linear(f"{path}/mlp/down", f"{tensor}.mlp.fc2"),
    }


def vit(config: Config, prefix: str, *, pre_norm: str = "pre_layrnorm") -> Sources:  # sic
    """Sources of CLIP's ViT without its projection; `config` is the vision config."""
    rows = (config.image_size // config.patch_size) ** 2 + 1
    return {
        "stem/patches/kernel": Source((f"{prefix}embeddings.patch_embedding.weight",), PATCHES),
        "class_token": Source((f"{prefix}embeddings.class_embedding",), COPY),
        "position": Source((f"{prefix}embeddings.position_embedding.weight",), grid_positions(rows)),
        **norm("pre_norm", f"{prefix}{pre_norm}"),
        **block("blocks/block", f"{prefix}encoder.layers.{{}}"),
        **norm("post_norm", f"{prefix}post_layernorm"),
    }


def vit_requirements(config: Config, normalisation: str) -> tuple[Requirement, ...]:
    """What a model must share with CLIP's ViT; `config` is the vision config."""
    return (
        Requirement("normalisation", "family's", normalisation),
        Requirement("width", "hidden_size", config.hidden_size),
        Requirement("heads", "num_attention_heads", config.num_attention_heads),
        Requirement("patch_size", "patch_size", config.patch_size),
        Requirement("activation", "hidden_act", config.hidden_act),
    )


def output_width(config: Config) -> Requirement:
    """The requirement of a projection."""
    return Requirement("output_width", "projection_dim", config.projection_dim)


def clip(config: Config, names: Collection[str]) -> EncoderSpec:
    """CLIPModel: its vision encoder."""
    vision = config.vision_config
    return EncoderSpec(
        sources={**vit(vision, "vision_model."), **PROJECTION},
        depths={"blocks": vision.num_hidden_layers},
        requirements=(*vit_requirements(vision, "clip"), output_width(config)),
        unsupported=unsupported_sizes(vision, epsilon=EPSILON),
        ignored=IGNORED,
        optional=ACROSS_FRAMES,
    )


def clip_vision(config: Config, names: Collection[str]) -> EncoderSpec:
    """CLIPVisionModel, with or without projection."""
    projection = (output_width(config),) if "visual_projection.weight" in names else ()
    prefix = prefix_of(names, "vision_model.", "embeddings.class_embedding")
    return EncoderSpec(
        sources={**vit(config, prefix), **PROJECTION},
        depths={"blocks": config.num_hidden_layers},
        requirements=(*vit_requirements(config, "clip"), *projection),
        unsupported=unsupported_sizes(config, epsilon=EPSILON),
        ignored=IGNORED,
        optional=(*ACROSS_FRAMES, r"^project/"),
    )


FAMILY = Family(vision={"clip": clip, "clip_vision_model": clip_vision})
