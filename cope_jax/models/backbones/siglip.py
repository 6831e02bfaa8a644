"""SigLIP (arXiv 2303.15343) and SigLIP 2 (arXiv 2502.14786) of fixed resolution: image and text towers.

The whole image is resized to the square, and pixels are mapped to −1 … 1. Texts are lower-case and padded on the right
to the full length, because padding is attended to and texts are pooled at the last position.
"""

from collections.abc import Collection
from dataclasses import replace

from cope_jax.models.backbones import clip, spec
from cope_jax.models.backbones.layouts import COPY, PATCHES, PROBE, fused_bias, fused_kernel, grid_positions, words
from cope_jax.models.backbones.spec import Config, EncoderSpec, Source, Sources
from cope_jax.models.vision import FAMILIES

PARTS = "embeddings|encoder|post_layernorm|head"
GEMMA_WORDS = 256_000  # entries of SigLIP 2's vocabulary, whose padding has id 0; in SigLIP's it has id 1


def head(tensor: str) -> Sources:
    """Sources of the attention pooling."""
    inputs, output = f"{tensor}.attention.in_proj", f"{tensor}.attention.out_proj"
    return {
        "head/probe": Source((f"{tensor}.probe",), PROBE),
        "head/query/kernel": Source((f"{inputs}_weight",), fused_kernel(0, 3)),
        "head/query/bias": Source((f"{inputs}_bias",), fused_bias(0, 3)),
        "head/kv/kernel": Source((f"{inputs}_weight",), fused_kernel(1, 3)),
        "head/kv/bias": Source((f"{inputs}_bias",), fused_bias(1, 3)),
        **spec.attention_output("head", output),
        **spec.norm("head/norm", f"{tensor}.layernorm"),
        **spec.linear("head/mlp/up", f"{tensor}.mlp.fc1"),
        **spec.linear("head/mlp/down", f"{tensor}.mlp.fc2"),
    }


def siglip_vision(config: Config, names: Collection[str]) -> EncoderSpec:
    """The image tower of SiglipModel, or SiglipVisionModel."""
    vision = getattr(config, "vision_config", config)
    prefix = spec.prefix_of(names, "embeddings.patch_embedding.weight")
    rows = (vision.image_size // vision.patch_size) ** 2
    patches = f"{prefix}embeddings.patch_embedding"
    return EncoderSpec(
        sources={
            "stem/patches/kernel": Source((f"{patches}.weight",), PATCHES),
            "stem/patches/bias": Source((f"{patches}.bias",), COPY),
            "position": Source(
                (f"{prefix}embeddings.position_embedding.weight",), grid_positions(rows, class_token=False)
            ),
            **clip.block("blocks/block", f"{prefix}encoder.layers.{{}}"),
            **spec.norm("post_norm", f"{prefix}post_layernorm"),
            **head(f"{prefix}head"),
        },
        depths={"blocks": vision.num_hidden_layers},
        requirements={
            **clip.vit_requirements(vision, "siglip"),
            "family": ("family's", "siglip"),
            "mlp_width": ("intermediate_size", clip.mlp_width(vision)),
        },
        own=(spec.own_tensors(prefix, PARTS),),
        unsupported=spec.unsupported_sizes(vision, epsilon=FAMILIES["siglip"], any_mlp=True),
        optional=(*clip.ACROSS_FRAMES, r"^project/", r"^head/"),
        defaults={
            **clip.VIT_DEFAULTS,
            "pooling": "attention",
            "output_width": vision.hidden_size,
            "image_size": vision.image_size,
            "resize": "stretch",
        },
    )


def siglip_text(config: Config, names: Collection[str]) -> EncoderSpec:
    """The text tower of SiglipModel, or SiglipTextModel."""
    text = getattr(config, "text_config", config)
    prefix = spec.prefix_of(names, "embeddings.token_embedding.weight")
    padding = 0 if text.vocab_size >= GEMMA_WORDS else text.pad_token_id
    tower = clip.text_tower(
        text,
        prefix,
        family="siglip",
        word_vectors=words(text.vocab_size, padding=padding),
        projection=spec.linear("project", f"{prefix}head"),
    )
    required = {
        "output_width": ("projection_size", text.projection_size),
        "max_length": ("max_position_embeddings", text.max_position_embeddings),
    }
    return replace(
        tower,
        requirements={**tower.requirements, **required},
        defaults={**tower.defaults, "pooling": "last", "lowercase": True},
    )
