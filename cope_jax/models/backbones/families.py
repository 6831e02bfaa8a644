"""Which tensors of a published checkpoint fill which parameters: tables of names, no files and no arrays.

Paths of parameters are those below vision/ or text/. "{}" in a tensor's name stands for the number of the layer.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from cope_jax.models.backbones.layouts import (
    COPY,
    LINEAR,
    OUT_KERNEL,
    PATCHES,
    QKV_BIAS,
    QKV_KERNEL,
    Layout,
    first_rows,
    frame_positions,
    grid_positions,
)

# Parts that a model may have or not, by its settings, whatever its source has.
OPTIONAL = (r"^blocks/message_", r"^integration/", r"^pooler/")


@dataclass(frozen=True)
class Fill:
    """Where a parameter comes from: the names of its tensors, and how they are laid out."""

    tensors: tuple[str, ...]
    layout: Layout


Fills = dict[str, Fill]


@dataclass(frozen=True)
class Setting:
    """Something that the model and its source must agree in.

    Attributes:
        key: of the model's settings.
        field: of the source's config.json.
        value: in there.
    """

    key: str
    field: str
    value: Any


@dataclass(frozen=True)
class Source:
    """What a family of checkpoints has for one encoder.

    Attributes:
        fills: path of a parameter → its tensors.
        depths: path of stacked layers → number of layers in the checkpoint.
        settings: what the model must agree in.
        odd: what in the source our blocks cannot do, said in words.
        ignored: regexes of tensors that are no part of this encoder.
        fresh: regexes of parameters that start fresh where the checkpoint has nothing for them.
    """

    fills: Fills
    depths: Mapping[str, int]
    settings: tuple[Setting, ...]
    odd: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    fresh: tuple[str, ...] = field(default=())


def find_source(encoder: str, config: Mapping[str, Any], names: Collection[str], *, what: str) -> Source:
    """What a checkpoint has for an encoder.

    Args:
        encoder: "vision" or "text".
        config: its config.json.
        names: of its tensors.
        what: says in the errors what wants it: "config.model.vision.init_from is 'hfl/rbt3'".

    Raises:
        ValueError: it is of no family that has such an encoder, and lists those; or its config.json is faulty.
    """
    families, kind = FAMILIES[encoder], config.get("model_type")
    if kind not in families:
        raise ValueError(
            f"{what}, whose model_type is {kind!r}; the {encoder} encoder can start from {', '.join(families)}"
        )
    try:
        config = with_defaults(config)
    except StrictDataclassError as error:
        raise ValueError(f"{what}, whose config.json is faulty: {error}") from error
    return families[kind](config, names)


def with_defaults(config: Mapping[str, Any]) -> Any:
    """A config.json as transformers understands it: with the values that it leaves out."""
    # Not at the top: it would import torch wherever that is installed.
    from transformers import AutoConfig

    settings = dict(config)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def linear(path: str, tensor: str) -> Fills:
    """A linear layer with a bias."""
    return {f"{path}/kernel": Fill((f"{tensor}.weight",), LINEAR), f"{path}/bias": Fill((f"{tensor}.bias",), COPY)}


def norm(path: str, tensor: str) -> Fills:
    """A LayerNorm."""
    return {f"{path}/scale": Fill((f"{tensor}.weight",), COPY), f"{path}/bias": Fill((f"{tensor}.bias",), COPY)}


def attention(path: str, inputs: tuple[str, str, str], output: str) -> Fills:
    """Attention with separate layers for queries, keys and values, which are one here."""
    return {
        f"{path}/qkv/kernel": Fill(tuple(f"{tensor}.weight" for tensor in inputs), QKV_KERNEL),
        f"{path}/qkv/bias": Fill(tuple(f"{tensor}.bias" for tensor in inputs), QKV_BIAS),
        f"{path}/out/kernel": Fill((f"{output}.weight",), OUT_KERNEL),
        f"{path}/out/bias": Fill((f"{output}.bias",), COPY),
    }


def clip_attention(path: str, tensor: str) -> Fills:
    """CLIP's attention."""
    inputs = (f"{tensor}.q_proj", f"{tensor}.k_proj", f"{tensor}.v_proj")
    return attention(path, inputs, f"{tensor}.out_proj")


def clip_block(path: str, tensor: str) -> Fills:
    """CLIP's pre-norm block."""
    return {
        **norm(f"{path}/norm1", f"{tensor}.layer_norm1"),
        **clip_attention(f"{path}/attention", f"{tensor}.self_attn"),
        **norm(f"{path}/norm2", f"{tensor}.layer_norm2"),
        **linear(f"{path}/mlp/up", f"{tensor}.mlp.fc1"),
        **linear(f"{path}/mlp/down", f"{tensor}.mlp.fc2"),
    }


def bert_block(path: str, tensor: str) -> Fills:
    """BERT's post-norm block."""
    inputs = tuple(f"{tensor}.attention.self.{part}" for part in ("query", "key", "value"))
    return {
        **attention(f"{path}/attention", inputs, f"{tensor}.attention.output.dense"),
        **norm(f"{path}/norm1", f"{tensor}.attention.output.LayerNorm"),
        **linear(f"{path}/mlp/up", f"{tensor}.intermediate.dense"),
        **linear(f"{path}/mlp/down", f"{tensor}.output.dense"),
        **norm(f"{path}/norm2", f"{tensor}.output.LayerNorm"),
    }


def clip_vision(vision: Any, prefix: str, *, pre_norm: str) -> Fills:
    """CLIP's ViT up to the norm of the class token; `vision` is its part of the config."""
    rows = (vision.image_size // vision.patch_size) ** 2 + 1
    return {
        "stem/patches/kernel": Fill((f"{prefix}embeddings.patch_embedding.weight",), PATCHES),
        "class_token": Fill((f"{prefix}embeddings.class_embedding",), COPY),
        "position": Fill((f"{prefix}embeddings.position_embedding.weight",), grid_positions(rows)),
        **norm("pre_norm", f"{prefix}{pre_norm}"),
        **clip_block("blocks/block", f"{prefix}encoder.layers.{{}}"),
        **norm("post_norm", f"{prefix}post_layernorm"),
    }


def messages(prefix: str) -> Fills:
    """X-CLIP's communication between frames."""
    layer = f"{prefix}encoder.layers.{{}}"
    return {
        **linear("blocks/message_fc", f"{layer}.message_fc"),
        **norm("blocks/message_norm", f"{layer}.message_ln"),
        **clip_attention("blocks/message_attention", f"{layer}.message_attn"),
    }


def integration(frames: int) -> Fills:
    """X-CLIP's transformer over the frames of a clip."""
    return {
        "integration/position": Fill(("mit.position_embedding",), frame_positions(frames)),
        **clip_block("integration/blocks", "mit.encoder.layers.{}"),
    }


PROJECT = {"project/kernel": Fill(("visual_projection.weight",), LINEAR)}


def bert(text: Any, prefix: str) -> Fills:
    """BERT with its pooler; `text` is its part of the config."""
    return {
        "words/embedding": Fill((f"{prefix}embeddings.word_embeddings.weight",), COPY),
        "position": Fill((f"{prefix}embeddings.position_embeddings.weight",), first_rows(text.max_position_embeddings)),
        "segment": Fill((f"{prefix}embeddings.token_type_embeddings.weight",), COPY),
        **norm("norm", f"{prefix}embeddings.LayerNorm"),
        **bert_block("blocks", f"{prefix}encoder.layer.{{}}"),
        **linear("pooler", f"{prefix}pooler.dense"),
    }


def vision_settings(vision: Any, normalisation: str) -> tuple[Setting, ...]:
    """What CLIP's ViT and ours must agree in; `vision` is its part of the config."""
    return (
        Setting("normalisation", "family's", normalisation),
        Setting("width", "hidden_size", vision.hidden_size),
        Setting("heads", "num_attention_heads", vision.num_attention_heads),
        Setting("patch_size", "patch_size", vision.patch_size),
        Setting("activation", "hidden_act", vision.hidden_act),
    )


def oddities(part: Any, *, epsilon: float, mlp: str = "intermediate_size", width: str = "hidden_size") -> list[str]:
    """What our blocks, which leave no choice in it, do in another way."""
    hidden, wanted = getattr(part, mlp), 4 * getattr(part, width)
    odd = [f"its {mlp} is {hidden}; ours is always 4 times the width, {wanted}"] if hidden != wanted else []
    if part.layer_norm_eps != epsilon:
        odd.append(f"its layer_norm_eps is {part.layer_norm_eps}; ours is always {epsilon}")
    return odd


CLIP_IGNORED = (r"^text_model\.", r"^text_projection\.", r"^logit_scale$", r"embeddings\.position_ids$")
XCLIP_IGNORED = (*CLIP_IGNORED, r"^prompts_")
NO_FRAMES = (r"^blocks/message_", r"^integration/")  # what a model of images knows nothing of


def xclip(config: Any, names: Collection[str]) -> Source:
    """XCLIPModel."""
    vision = config.vision_config
    mit = {"mlp": "mit_intermediate_size", "width": "mit_hidden_size"}
    return Source(
        fills={
            **clip_vision(vision, "vision_model.", pre_norm="pre_layernorm"),
            **messages("vision_model."),
            **PROJECT,
            **integration(vision.num_frames),
        },
        depths={"blocks": vision.num_hidden_layers, "integration/blocks": vision.mit_num_hidden_layers},
        settings=(
            *vision_settings(vision, "imagenet"),
            Setting("output_width", "projection_dim", config.projection_dim),
            Setting("integration_heads", "mit_num_attention_heads", vision.mit_num_attention_heads),
        ),
        odd=(*oddities(vision, epsilon=1e-5), *oddities(vision, epsilon=1e-5, **mit)),
        ignored=XCLIP_IGNORED,
    )


def xclip_vision(config: Any, names: Collection[str]) -> Source:
    """XCLIPVisionModel: without projection and integration."""
    prefix = "vision_model." if "vision_model.embeddings.class_embedding" in names else ""
    return Source(
        fills={**clip_vision(config, prefix, pre_norm="pre_layernorm"), **messages(prefix)},
        depths={"blocks": config.num_hidden_layers},
        settings=vision_settings(config, "imagenet"),
        odd=tuple(oddities(config, epsilon=1e-5)),
        ignored=CLIP_IGNORED,
        fresh=(r"^project/", r"^integration/"),
    )


def clip(config: Any, names: Collection[str]) -> Source:
    """CLIPModel and ChineseCLIPModel: their vision side."""
    vision = config.vision_config
    return Source(
        fills={**clip_vision(vision, "vision_model.", pre_norm="pre_layrnorm"), **PROJECT},  # sic
        depths={"blocks": vision.num_hidden_layers},
        settings=(
            *vision_settings(vision, "clip"),
            Setting("output_width", "projection_dim", config.projection_dim),
        ),
        odd=tuple(oddities(vision, epsilon=1e-5)),
        ignored=CLIP_IGNORED,
        fresh=NO_FRAMES,
    )


def clip_vision_only(config: Any, names: Collection[str]) -> Source:
    """CLIPVisionModel, with projection or without, and ChineseCLIPVisionModel."""
    prefix = "vision_model." if "vision_model.embeddings.class_embedding" in names else ""
    width = Setting("output_width", "projection_dim", config.projection_dim)
    return Source(
        fills={**clip_vision(config, prefix, pre_norm="pre_layrnorm"), **PROJECT},
        depths={"blocks": config.num_hidden_layers},
        settings=(*vision_settings(config, "clip"), *((width,) if "visual_projection.weight" in names else ())),
        odd=tuple(oddities(config, epsilon=1e-5)),
        ignored=CLIP_IGNORED,
        fresh=(*NO_FRAMES, r"^project/"),
    )


def bert_source(text: Any, prefix: str, ignored: tuple[str, ...]) -> Source:
    """A BERT under some prefix; `text` is its part of the config."""
    activation = [f"its hidden_act is {text.hidden_act!r}; ours is always 'gelu'"] if text.hidden_act != "gelu" else []
    return Source(
        fills=bert(text, prefix),
        depths={"blocks": text.num_hidden_layers},
        settings=(
            Setting("width", "hidden_size", text.hidden_size),
            Setting("heads", "num_attention_heads", text.num_attention_heads),
        ),
        odd=(*oddities(text, epsilon=1e-12), *activation),
        ignored=(*ignored, r"embeddings\.position_ids$"),
        fresh=(r"^pooler/",),
    )


def bert_model(config: Any, names: Collection[str]) -> Source:
    """BertModel, or a model with a head that holds one."""
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in names else ""
    return bert_source(config, prefix, (r"^cls\.",))


def chinese_clip_text(config: Any, names: Collection[str]) -> Source:
    """ChineseCLIPModel: its text side, which has no pooler."""
    ignored = (r"^vision_model\.", r"^(visual|text)_projection\.", r"^logit_scale$")
    return bert_source(config.text_config, "text_model.", ignored)


FAMILIES: dict[str, dict[str, Callable[[Any, Collection[str]], Source]]] = {
    "vision": {
        "xclip": xclip,
        "xclip_vision_model": xclip_vision,
        "clip": clip,
        "clip_vision_model": clip_vision_only,
        "chinese_clip": clip,
        "chinese_clip_vision_model": clip_vision_only,
    },
    "text": {"bert": bert_model, "chinese_clip": chinese_clip_text},
}
