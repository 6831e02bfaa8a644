"""X-CLIP (arXiv 2208.02816): CLIP's vision encoder with messages between frames and a transformer over frames."""

from collections.abc import Collection

from cope_jax.models.backbones import clip
from cope_jax.models.backbones.layouts import frame_positions
from cope_jax.models.backbones.spec import (
    Config,
    EncoderSpec,
    Family,
    Requirement,
    Source,
    Sources,
    linear,
    norm,
    prefix_of,
    unsupported_sizes,
)


def vit(config: Config, prefix: str) -> Sources:
    """Sources of the ViT with messages; `config` is the vision config."""
    layer = f"{prefix}encoder.layers.{{}}"
    return {
        **clip.vit(config, prefix, pre_norm="pre_layernorm"),
        **linear("blocks/message_fc", f"{layer}.message_fc"),
        **norm("blocks/message_norm", f"{layer}.message_ln"),
        **clip.block_attention("blocks/message_attention", f"{layer}.message_attn"),
    }


def xclip(config: Config, names: Collection[str]) -> EncoderSpec:
    """XCLIPModel."""
    vision = config.vision_config
    mit_sizes = {"mlp": "mit_intermediate_size", "width": "mit_hidden_size"}
    return EncoderSpec(
        sources={
            **vit(vision, "vision_model."),
            **clip.PROJECTION,
            "integration/position": Source(("mit.position_embedding",), frame_positions(vision.num_frames)),
            **clip.block("integration/blocks", "mit.encoder.layers.{}"),
        },
        depths={"blocks": vision.num_hidden_layers, "integration/blocks": vision.mit_num_hidden_layers},
        requirements=(
            *clip.vit_requirements(vision, "imagenet"),
            clip.output_width(config),
            Requirement("integration_heads", "mit_num_attention_heads", vision.mit_num_attention_heads),
        ),
        unsupported=(
            *unsupported_sizes(vision, epsilon=clip.EPSILON),
            *unsupported_sizes(vision, epsilon=clip.EPSILON, **mit_sizes),
        ),
        ignored=(*clip.IGNORED, r"^prompts_"),
    )


def xclip_vision(config: Config, names: Collection[str]) -> EncoderSpec:
    """XCLIPVisionModel: without projection and transformer over frames."""
    return EncoderSpec(
        sources=vit(config, prefix_of(names, "vision_model.", "embeddings.class_embedding")),
        depths={"blocks": config.num_hidden_layers},
        requirements=clip.vit_requirements(config, "imagenet"),
        unsupported=unsupported_sizes(config, epsilon=clip.EPSILON),
        ignored=clip.IGNORED,
        optional=(r"^project/", r"^integration/"),
    )


FAMILY = Family(vision={"xclip": xclip, "xclip_vision_model": xclip_vision})
