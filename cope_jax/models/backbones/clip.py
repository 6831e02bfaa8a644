"""CLIP (arXiv 2103.00020) and Chinese-CLIP (arXiv 2211.01335): the vision encoder."""

from collections.abc import Collection

from cope_jax.models.backbones import spec
from cope_jax.models.backbones.layouts import COPY, LINEAR, PATCHES, grid_positions
from cope_jax.models.backbones.spec import Config, EncoderSpec, Requirements, Source, Sources

EPSILON = 1e-5
PARTS = "embeddings|encoder|pre_layr?norm|post_layernorm"
ACROSS_FRAMES = (r"^blocks/message_", r"^integration/")  # parameters that an image model does not have


def attention(path: str, tensor: str) -> Sources:
    """Sources of CLIP's attention."""
    return spec.attention(path, [f"{tensor}.{part}_proj" for part in "qkv"], f"{tensor}.out_proj")


def block(path: str, tensor: str) -> Sources:
    """Sources of CLIP's pre-norm block."""
    return {
        **spec.norm(f"{path}/norm1", f"{tensor}.layer_norm1"),
        **attention(f"{path}/attention", f"{tensor}.self_attn"),
        **spec.norm(f"{path}/norm2", f"{tensor}.layer_norm2"),
        **spec.linear(f"{path}/mlp/up", f"{tensor}.mlp.fc1"),
        **spec.linear(f"{path}/mlp/down", f"{tensor}.mlp.fc2"),
    }


def vit_prefix(names: Collection[str]) -> str:
    """Prefix of the ViT's tensors; without "vision_model.", that of the model's other parts."""
    return spec.prefix_of(names, "embeddings.class_embedding")


def projection(names: Collection[str]) -> Sources:
    """Sources of the projection into the space of CLIP."""
    tensor = f"{vit_prefix(names).removesuffix('vision_model.')}visual_projection.weight"
    return {"project/kernel": Source((tensor,), LINEAR)}


def vit(vision: Config, names: Collection[str], *, pre_norm: str = "pre_layrnorm") -> Sources:  # sic
    """Sources of CLIP's ViT without its projection."""
    prefix = vit_prefix(names)
    rows = (vision.image_size // vision.patch_size) ** 2 + 1
    return {
        "stem/patches/kernel": Source((f"{prefix}embeddings.patch_embedding.weight",), PATCHES),
        "class_token": Source((f"{prefix}embeddings.class_embedding",), COPY),
        "position": Source((f"{prefix}embeddings.position_embedding.weight",), grid_positions(rows)),
        **spec.norm("pre_norm", f"{prefix}{pre_norm}"),
        **block("blocks/block", f"{prefix}encoder.layers.{{}}"),
        **spec.norm("post_norm", f"{prefix}post_layernorm"),
    }


def vit_requirements(vision: Config, normalisation: str) -> Requirements:
    """Settings that a model must share with CLIP's ViT."""
    return {
        "normalisation": ("family's", normalisation),
        "width": ("hidden_size", vision.hidden_size),
        "heads": ("num_attention_heads", vision.num_attention_heads),
        "patch_size": ("patch_size", vision.patch_size),
        "activation": ("hidden_act", vision.hidden_act),
    }


def clip(config: Config, names: Collection[str]) -> EncoderSpec:
    """CLIPModel, or CLIPVisionModel with or without projection, and those of Chinese-CLIP."""
    vision = getattr(config, "vision_config", config)
    project = projection(names)
    projected = any(name.endswith(("visual_projection.weight", "text_projection.weight")) for name in names)
    width = {"output_width": ("projection_dim", config.projection_dim)} if projected else {}
    return EncoderSpec(
        sources={**vit(vision, names), **project},
        depths={"blocks": vision.num_hidden_layers},
        requirements={**vit_requirements(vision, "clip"), **width},
        own=(spec.own_tensors(vit_prefix(names), PARTS),),
        unsupported=spec.unsupported_sizes(vision, epsilon=EPSILON),
        optional=(*ACROSS_FRAMES, *(() if projected else (r"^project/",))),
    )
