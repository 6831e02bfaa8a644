"""CLIP (arXiv 2103.00020) and the vision encoder of Chinese-CLIP (arXiv 2211.01335)."""

from collections.abc import Collection
from dataclasses import replace

from cope_jax.models import text as text_encoder
from cope_jax.models.backbones import spec
from cope_jax.models.backbones.layouts import COPY, LINEAR, PATCHES, Layout, first_rows, grid_positions
from cope_jax.models.backbones.spec import Config, EncoderSpec, Requirements, Source, Sources

EPSILON = 1e-5
PARTS = "embeddings|encoder|pre_layr?norm|post_layernorm"
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}  # names here, if they differ
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
        "family": ("family's", "clip"),
        "normalisation": ("family's", normalisation),
        "width": ("hidden_size", vision.hidden_size),
        "heads": ("num_attention_heads", vision.num_attention_heads),
        "patch_size": ("patch_size", vision.patch_size),
        "activation": ("hidden_act", ACTIVATIONS.get(vision.hidden_act, vision.hidden_act)),
    }


def mlp_width(config: Config) -> int:
    """Returns the setting for the width of hidden layers: 0 if it is 4 times that of tokens."""
    return 0 if config.intermediate_size == 4 * config.hidden_size else config.intermediate_size


# What a plain ViT of CLIP takes over, apart from its sizes.
VIT_DEFAULTS = {"pooling": "class", "mlp_width": 0, "across_frames": "gated", "stem": "patch"}
# CLIP's tokenizer lower-cases by itself, and ends texts with a token of its own, at which they are pooled.
TEXT_DEFAULTS = {"pooling": "end", "dropout": 0.0, "attention_dropout": 0.0}


def text_tower(text: Config, prefix: str, *, family: str, word_vectors: Layout, projection: Sources) -> EncoderSpec:
    """The text tower of CLIP or SigLIP: tensors of the same names."""
    embeddings, positions = f"{prefix}embeddings", text.max_position_embeddings
    return EncoderSpec(
        sources={
            "words/embedding": Source((f"{embeddings}.token_embedding.weight",), word_vectors),
            "position": Source((f"{embeddings}.position_embedding.weight",), first_rows(positions)),
            **block("blocks", f"{prefix}encoder.layers.{{}}"),
            **spec.norm("post_norm", f"{prefix}final_layer_norm"),
            **projection,
        },
        depths={"blocks": text.num_hidden_layers},
        requirements={
            "family": ("family's", family),
            "width": ("hidden_size", text.hidden_size),
            "heads": ("num_attention_heads", text.num_attention_heads),
            "mlp_width": ("intermediate_size", mlp_width(text)),
            "activation": ("hidden_act", ACTIVATIONS.get(text.hidden_act, text.hidden_act)),
        },
        own=(spec.own_tensors(prefix, "embeddings|encoder|final_layer_norm|head"),),
        unsupported=spec.unsupported_sizes(text, epsilon=text_encoder.FAMILIES[family], any_mlp=True),
        defaults={**TEXT_DEFAULTS, "max_length": positions},
    )


def clip_text(config: Config, names: Collection[str]) -> EncoderSpec:
    """The text tower of CLIPModel, or CLIPTextModel with or without projection."""
    text = getattr(config, "text_config", config)
    prefix = spec.prefix_of(names, "embeddings.token_embedding.weight")
    projection = f"{prefix.removesuffix('text_model.')}text_projection.weight"
    tower = text_tower(
        text,
        prefix,
        family="clip",
        word_vectors=first_rows(text.vocab_size),
        projection={"project/kernel": Source((projection,), LINEAR)},
    )
    width = {"output_width": ("projection_dim", config.projection_dim)}
    if projection in names:
        return replace(tower, requirements={**tower.requirements, **width})
    return replace(tower, optional=(r"^project/",))


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
        # CLIP's processor crops the center of images; Chinese-CLIP's stretches them.
        defaults={
            **VIT_DEFAULTS,
            "image_size": vision.image_size,
            "resize": "crop" if config.model_type.startswith("clip") else "stretch",
        },
    )
