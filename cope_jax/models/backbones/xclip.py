"""X-CLIP (arXiv 2208.02816): CLIP's vision encoder with messages between frames and a transformer over frames."""

import re
from collections.abc import Collection

from cope_jax.models.backbones import clip, spec
from cope_jax.models.backbones.layouts import frame_positions
from cope_jax.models.backbones.spec import Config, EncoderSpec, Requirements, Source, Sources


def vit(vision: Config, names: Collection[str]) -> Sources:
    """Sources of the ViT with messages."""
    layer = f"{clip.vit_prefix(names)}encoder.layers.{{}}"
    return {
        **clip.vit(vision, names, pre_norm="pre_layernorm"),
        **spec.linear("blocks/message_fc", f"{layer}.message_fc"),
        **spec.norm("blocks/message_norm", f"{layer}.message_ln"),
        **clip.attention("blocks/message_attention", f"{layer}.message_attn"),
    }


def requirements(vision: Config) -> Requirements:
    """Settings that a model must share with X-CLIP's ViT."""
    return {**clip.vit_requirements(vision, "imagenet"), "across_frames": ("family's", "xclip")}


def xclip(config: Config, names: Collection[str]) -> EncoderSpec:
    """XCLIPModel."""
    vision, prefix = config.vision_config, clip.vit_prefix(names)
    mit = f"{prefix.removesuffix('vision_model.')}mit."
    return EncoderSpec(
        sources={
            **vit(vision, names),
            **clip.projection(names),
            "integration/position": Source((f"{mit}position_embedding",), frame_positions(vision.num_frames)),
            **clip.block("integration/blocks", f"{mit}encoder.layers.{{}}"),
        },
        depths={"blocks": vision.num_hidden_layers, "integration/blocks": vision.mit_num_hidden_layers},
        requirements={
            **requirements(vision),
            "output_width": ("projection_dim", config.projection_dim),
            "integration_heads": ("mit_num_attention_heads", vision.mit_num_attention_heads),
        },
        own=(spec.own_tensors(prefix, clip.PARTS), f"^{re.escape(mit)}"),
        unsupported=(
            *spec.unsupported_sizes(vision, epsilon=clip.EPSILON),
            *spec.unsupported_sizes(vision, epsilon=clip.EPSILON, prefix="mit_"),
        ),
    )


def xclip_vision(config: Config, names: Collection[str]) -> EncoderSpec:
    """XCLIPVisionModel: without projection and transformer over frames."""
    return EncoderSpec(
        sources=vit(config, names),
        depths={"blocks": config.num_hidden_layers},
        requirements=requirements(config),
        own=(spec.own_tensors(clip.vit_prefix(names), clip.PARTS),),
        unsupported=spec.unsupported_sizes(config, epsilon=clip.EPSILON),
        optional=(r"^project/", r"^integration/"),
    )
