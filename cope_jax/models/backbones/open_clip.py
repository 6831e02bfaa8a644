"""Checkpoints of open_clip that contain a SigLIP (its own, and Marqo's for fashion and ecommerce).

Their tensors are described under the names that transformers gives them, so that the family `siglip` reads them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from cope_jax.models.backbones.spec import Tensor

CONFIG, TENSORS = "open_clip_config.json", "open_clip_model.safetensors"
HEADS = {"vit_base": 12, "vit_large": 16, "vit_so400m": 16, "vit_giantopt": 16}  # by the start of timm's name
VISION_LAYER, TEXT_LAYER = r"vision_model.encoder.layers.\1", r"text_model.encoder.layers.\1"
RENAMED = (
    (r"^visual\.trunk\.patch_embed\.proj", "vision_model.embeddings.patch_embedding"),
    (r"^visual\.trunk\.pos_embed$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.trunk\.blocks\.(\d+)\.norm", rf"{VISION_LAYER}.layer_norm"),
    (r"^visual\.trunk\.blocks\.(\d+)\.attn\.proj", rf"{VISION_LAYER}.self_attn.out_proj"),
    (r"^visual\.trunk\.blocks\.(\d+)\.mlp", rf"{VISION_LAYER}.mlp"),
    (r"^visual\.trunk\.norm", "vision_model.post_layernorm"),
    (r"^visual\.trunk\.attn_pool\.latent$", "vision_model.head.probe"),
    (r"^visual\.trunk\.attn_pool\.proj", "vision_model.head.attention.out_proj"),
    (r"^visual\.trunk\.attn_pool\.norm", "vision_model.head.layernorm"),
    (r"^visual\.trunk\.attn_pool\.mlp", "vision_model.head.mlp"),
    (r"^text\.token_embedding", "text_model.embeddings.token_embedding"),
    (r"^text\.positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^text\.transformer\.resblocks\.(\d+)\.ln_", rf"{TEXT_LAYER}.layer_norm"),
    (r"^text\.transformer\.resblocks\.(\d+)\.attn\.out_proj", rf"{TEXT_LAYER}.self_attn.out_proj"),
    (r"^text\.transformer\.resblocks\.(\d+)\.mlp\.c_fc", rf"{TEXT_LAYER}.mlp.fc1"),
    (r"^text\.transformer\.resblocks\.(\d+)\.mlp\.c_proj", rf"{TEXT_LAYER}.mlp.fc2"),
    (r"^text\.ln_final", "text_model.final_layer_norm"),
    (r"^text\.text_projection", "text_model.head"),
    # Unknown tensors of the encoders, which are errors.
    (r"^visual\.", "vision_model."),
    (r"^text\.", "text_model."),
)
FUSED = (  # queries, keys and values in one tensor
    (r"^visual\.trunk\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)$", rf"{VISION_LAYER}.self_attn.{{}}_proj.\2"),
    (r"^text\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$", rf"{TEXT_LAYER}.self_attn.{{}}_proj.\2"),
)


def has_siglip(config: Mapping[str, Any]) -> bool:
    """Returns whether the content of an open_clip_config.json describes a SigLIP."""
    return "siglip" in str(config.get("model_cfg", {}).get("vision_cfg", {}).get("timm_model_name", ""))


def translate(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the config and the tensors of transformers' SiglipModel.

    Raises:
        ValueError: The config lacks a field, or its image tower is of an unknown size.
    """
    renamed = {name: tensor for own in tensors.values() for name, tensor in _translate(own, tensors)}
    return _siglip_config(config["model_cfg"], renamed), renamed


def _translate(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields what a tensor is in transformers."""
    name = re.sub(r"^.*?\b(?=visual\.|text\.|logit_)", "", tensor.name)
    wrapper = tensor.name.removesuffix(name)  # such as "model."
    for pattern, new in FUSED:
        if match := re.match(pattern, name):
            size = tensor.shape[0] // 3
            for i, part in enumerate("qkv"):
                rows = slice(i * size, (i + 1) * size)
                yield match.expand(new).format(part), replace(tensor, shape=(size, *tensor.shape[1:]), index=rows)
            return
    pool = "visual.trunk.attn_pool."
    if name.startswith(f"{pool}q."):
        kind = name.removeprefix(f"{pool}q.")
        rest = tensors.get(f"{wrapper}{pool}kv.{kind}", tensor)
        shape = (tensor.shape[0] + rest.shape[0], *tensor.shape[1:])
        yield f"vision_model.head.attention.in_proj_{kind}", replace(tensor, shape=shape, followed_by=rest.name)
    elif not name.startswith(f"{pool}kv."):
        new = next((re.sub(pattern, new, name) for pattern, new in RENAMED if re.match(pattern, name)), name)
        # Positions have a leading axis of size 1 in timm.
        first = name == "visual.trunk.pos_embed"
        yield new, replace(tensor, shape=tensor.shape[1:], index=0) if first else tensor


def _siglip_config(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the content of transformers' config.json."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    timm = vision["timm_model_name"]
    heads = next((heads for start, heads in HEADS.items() if timm.startswith(start)), None)
    if heads is None:
        raise ValueError(f"its timm_model_name is {timm!r}; supported are those that start with {', '.join(HEADS)}")
    tanh = text.get("act_kwargs", {}).get("approximate") == "tanh"
    patches = tensors["vision_model.embeddings.patch_embedding.weight"].shape
    return {
        "model_type": "siglip",
        "vision_config": _sizes("vision_model", tensors)
        | {"num_attention_heads": heads, "image_size": vision["image_size"], "patch_size": patches[-1]},
        "text_config": _sizes("text_model", tensors)
        | {
            "num_attention_heads": text["heads"],
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "projection_size": config["embed_dim"],
            "hidden_act": "gelu_pytorch_tanh" if tanh else "gelu",
        },
    }


def _sizes(tower: str, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Returns sizes of a tower that its tensors show."""
    layers = {name.split(".")[3] for name in tensors if name.startswith(f"{tower}.encoder.layers.")}
    hidden, width = tensors[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape
    return {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": len(layers)}
