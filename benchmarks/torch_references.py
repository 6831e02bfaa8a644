"""Reference outputs of the encoders: models of transformers with random weights, on random inputs."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.x_clip.modeling_x_clip import XCLIPVisionEncoderLayer


@dataclass(frozen=True)
class Reference:
    """Inputs, outputs and gradients of a torch model, in float32.

    Attributes:
        encoder: "vision" or "text".
        settings: Arguments of our encoder of the same shape.
        weights: Folder written by `save_pretrained`.
        gradients: Folder of the same format with the gradients of all parameters.
        inputs: float[B, T, H, W, 3] normalized pixels, or int[B, L] tokens.
        mask: bool[B, T] or bool[B, L], False for padding.
        hidden: Outputs of the blocks; 0 at padding.
        outputs: By name: "frames" and "vector" of clips, "words" (0 at padding) and "vector" of texts.
        cotangents: By name, like `outputs`. The gradients are those of the sum of outputs times cotangents.
        input_gradient: Gradient of that sum with respect to the pixels or the word embeddings, float[B, L, D].
    """

    encoder: str
    settings: Mapping[str, Any]
    weights: Path
    gradients: Path
    inputs: np.ndarray
    mask: np.ndarray
    hidden: Sequence[np.ndarray]
    outputs: Mapping[str, np.ndarray]
    cotangents: Mapping[str, np.ndarray]
    input_gradient: np.ndarray


def randomize(model: torch.nn.Module) -> None:
    """Gives all parameters random values of a size that affects the outputs, unlike the initial ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.2 * noise)
    model.eval()


def record_outputs(layers: torch.nn.ModuleList) -> list[torch.Tensor]:
    """Returns a list that the outputs of layers are appended to when the model runs."""
    outputs: list[torch.Tensor] = []

    def record(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output)

    for layer in layers:
        layer.register_forward_hook(record)
    return outputs


def save_reference(
    model: transformers.PreTrainedModel,
    folder: Path,
    *,
    encoder: str,
    settings: Mapping[str, Any],
    inputs: torch.Tensor,
    ours: np.ndarray,
    to_ours: Callable[[torch.Tensor], torch.Tensor],
    mask: np.ndarray,
    hidden: Sequence[torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
) -> Reference:
    """Saves the weights and gradients of a model that has computed `outputs`.

    Args:
        model: The model.
        folder: Folder to save to.
        encoder: As in `Reference`, like the arguments that are not listed.
        inputs: Pixels or word embeddings, as the model takes them.
        ours: Inputs of our encoder.
        to_ours: Converts the layout of `inputs` to that of `Reference.input_gradient`.
        hidden: Outputs of the blocks.
    """
    generator = torch.Generator().manual_seed(1)
    cotangents = {name: torch.randn(x.shape, generator=generator) / x.numel() ** 0.5 for name, x in outputs.items()}
    model.zero_grad()
    inputs.retain_grad()
    torch.stack([(outputs[name] * cotangents[name]).sum() for name in outputs]).sum().backward()
    assert inputs.grad is not None
    model.save_pretrained(folder / "weights")
    (folder / "gradients").mkdir()
    shutil.copy(folder / "weights" / "config.json", folder / "gradients")
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    save_file(gradients, folder / "gradients" / "model.safetensors")
    return Reference(
        encoder=encoder,
        settings=settings,
        weights=folder / "weights",
        gradients=folder / "gradients",
        inputs=ours,
        mask=mask,
        hidden=[x.detach().numpy() for x in hidden],
        outputs={name: x.detach().numpy() for name, x in outputs.items()},
        cotangents={name: x.numpy() for name, x in cotangents.items()},
        input_gradient=to_ours(inputs.grad).numpy(),
    )


def vision_reference(
    model: transformers.XCLIPModel | transformers.CLIPModel | transformers.ChineseCLIPModel | transformers.SiglipModel,
    folder: Path,
    *,
    side: int,
    clips: int,
    frames: int,
) -> Reference:
    """Runs the vision side of a model of the CLIP family on random clips."""
    randomize(model)
    vision = model.vision_model.config
    hidden = record_outputs(model.vision_model.encoder.layers)
    ours = np.random.default_rng(2).normal(size=(clips, frames, side, side, 3)).astype(np.float32)
    pixels = torch.tensor(ours).permute(0, 1, 4, 2, 3).reshape(-1, 3, side, side).requires_grad_()
    siglip = isinstance(model, transformers.SiglipModel)
    vectors = model.vision_model(pixels).pooler_output
    if not isinstance(model, transformers.SiglipModel):
        vectors = model.visual_projection(vectors)
    vectors = vectors.reshape(clips, frames, -1)
    outputs = {"frames": vectors, "vector": vectors.mean(dim=1)}
    integration = isinstance(model, transformers.XCLIPModel)
    if isinstance(model, transformers.XCLIPModel):
        mixed = model.mit(vectors)
        # A single frame is broadcast to all positions there; our frame vector is their mean.
        states = mixed.last_hidden_state if frames > 1 else mixed.last_hidden_state.mean(dim=1, keepdim=True)
        outputs = {"frames": states, "vector": mixed.pooler_output}
    settings = {
        "image_size": side,
        "normalisation": "siglip" if siglip else "imagenet" if integration else "clip",
        "stem": "patch",
        "patch_size": vision.patch_size,
        "family": "siglip" if siglip else "clip",
        "stem_widths": (),
        "stem_blocks": (),
        "width": vision.hidden_size,
        "depth": vision.num_hidden_layers,
        "heads": vision.num_attention_heads,
        "mlp_width": 0 if vision.intermediate_size == 4 * vision.hidden_size else vision.intermediate_size,
        "pooling": "attention" if siglip else "class",
        "activation": "gelu_tanh" if siglip else vision.hidden_act,
        "across_frames": "xclip",
        "cross_frame": integration,
        "integration_depth": vision.mit_num_hidden_layers if integration else 0,
        "integration_heads": vision.mit_num_attention_heads if integration else 1,
        "output_width": vision.hidden_size if siglip else model.config.projection_dim,
        "max_frames": vision.num_frames if integration else frames,
        "broadcast_single_frame": True,
        "drop_path": 0.0,
    }
    return save_reference(
        model,
        folder,
        encoder="vision",
        settings=settings,
        inputs=pixels,
        ours=ours,
        to_ours=lambda x: x.reshape(clips, frames, 3, side, side).permute(0, 1, 3, 4, 2),
        mask=np.ones((clips, frames), bool),
        hidden=[x.reshape(clips, frames, *x.shape[1:]) for x in hidden],
        outputs=outputs,
    )


def text_reference(
    model: transformers.PreTrainedModel,
    text: transformers.BertModel | transformers.ChineseCLIPTextModel,
    folder: Path,
    *,
    lengths: tuple[int, ...],
    pooling: str,
) -> Reference:
    """Runs a BERT, or the one in a model, on random texts of these lengths."""
    randomize(model)
    config = text.config
    hidden = record_outputs(text.encoder.layer)
    mask = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
    ids = np.random.default_rng(2).integers(1, config.vocab_size, mask.shape) * mask
    words = text.embeddings.word_embeddings(torch.tensor(ids))
    output = text(inputs_embeds=words, attention_mask=torch.tensor(mask.astype(int)))
    real = torch.tensor(mask)[..., None]
    vector = output.pooler_output if pooling == "pooler" else output.last_hidden_state[:, 0]
    settings = {
        "vocab_size": config.vocab_size,
        "max_length": mask.shape[1],
        "family": "bert",
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_width": 0,
        "activation": "gelu",
        "output_width": 0,
        "pooling": pooling,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return save_reference(
        model,
        folder,
        encoder="text",
        settings=settings,
        inputs=words,
        ours=ids,
        to_ours=lambda x: x,
        mask=mask,
        hidden=[x * real for x in hidden],
        outputs={"words": output.last_hidden_state * real, "vector": vector},
    )


def tower_reference(
    model: transformers.CLIPModel | transformers.SiglipModel, folder: Path, *, lengths: tuple[int, ...]
) -> Reference:
    """Runs the text tower of CLIP or SigLIP on random texts of these lengths; the last token of each ends the text."""
    randomize(model)
    text = model.text_model
    config = text.config
    hidden = record_outputs(text.encoder.layers)
    words = record_outputs(torch.nn.ModuleList([text.embeddings.token_embedding]))
    mask = np.arange(config.max_position_embeddings) < np.asarray(lengths)[:, None]
    ids = np.random.default_rng(2).integers(1, config.vocab_size - 1, mask.shape) * mask
    ids[np.arange(len(lengths)), np.asarray(lengths) - 1] = config.vocab_size - 1
    output = text(input_ids=torch.tensor(ids))
    siglip, real = isinstance(model, transformers.SiglipModel), torch.tensor(mask)[..., None]
    vector = output.pooler_output
    if isinstance(model, transformers.CLIPModel):
        vector = model.text_projection(vector)
    settings = {
        "vocab_size": config.vocab_size,
        "max_length": mask.shape[1],
        "family": "siglip" if siglip else "clip",
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_width": 0 if config.intermediate_size == 4 * config.hidden_size else config.intermediate_size,
        "activation": "gelu_tanh" if siglip else config.hidden_act,
        "output_width": vector.shape[1],
        "pooling": "last" if siglip else "end",
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return save_reference(
        model,
        folder,
        encoder="text",
        settings=settings,
        inputs=words[0],
        ours=ids,
        to_ours=lambda x: x,
        mask=mask,
        hidden=[x * real for x in hidden],
        outputs={"words": output.last_hidden_state * real, "vector": vector},
    )


# The side of a model that is not compared is tiny.
TINY_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 8,
}
TINY_CLIP_TEXT = TINY_TEXT | {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
TINY_VISION = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def xclip(folder: Path, side: int, *, frames: int, positions: int) -> Reference:
    """X-CLIP B/16 with two blocks: vision, projection and the transformer over frames with its positions."""
    vision = {"num_hidden_layers": 2, "patch_size": 16, "image_size": side, "num_frames": positions}
    config = transformers.XCLIPConfig(text_config=TINY_CLIP_TEXT, vision_config=vision)
    model = transformers.XCLIPModel(config)
    for layer in model.vision_model.encoder.layers:
        assert isinstance(layer, XCLIPVisionEncoderLayer)
        layer.num_frames = frames  # set to the number of positions, although a clip may have one frame
    return vision_reference(model, folder, side=side, clips=2, frames=frames)


def clip(folder: Path, side: int) -> Reference:
    """CLIP B/32 with two blocks."""
    vision = {"num_hidden_layers": 2, "patch_size": 32, "image_size": side}
    config = transformers.CLIPConfig(text_config=TINY_CLIP_TEXT, vision_config=vision)
    return vision_reference(transformers.CLIPModel(config), folder, side=side, clips=3, frames=2)


def chinese_clip_vision(folder: Path, side: int) -> Reference:
    """Chinese-CLIP B/16 with two blocks and the activation of its largest variant."""
    vision = {"num_hidden_layers": 2, "patch_size": 16, "image_size": side, "hidden_act": "gelu"}
    config = transformers.ChineseCLIPConfig(text_config=TINY_TEXT, vision_config=vision)
    model = transformers.ChineseCLIPModel(config)
    return vision_reference(model, folder, side=side, clips=3, frames=1)


def chinese_clip_text(folder: Path) -> Reference:
    """The RoBERTa of Chinese-CLIP with two layers, with padding."""
    text = {"num_hidden_layers": 2, "vocab_size": 500}
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=TINY_VISION)
    model = transformers.ChineseCLIPModel(config)
    return text_reference(model, model.text_model, folder, lengths=(32, 9, 2), pooling="class")


def clip_text(folder: Path) -> Reference:
    """The text tower of CLIP B/32 with two blocks, with padding."""
    text = {"num_hidden_layers": 2, "vocab_size": 500, "eos_token_id": 499}
    config = transformers.CLIPConfig(text_config=text, vision_config=TINY_VISION)
    return tower_reference(transformers.CLIPModel(config), folder, lengths=(77, 9, 2))


def siglip_vision(folder: Path, side: int) -> Reference:
    """SigLIP B/16 with two blocks."""
    vision = {"num_hidden_layers": 2, "patch_size": 16, "image_size": side}
    config = transformers.SiglipConfig(text_config=TINY_TEXT, vision_config=vision)
    return vision_reference(transformers.SiglipModel(config), folder, side=side, clips=3, frames=2)


def siglip_so400m_vision(folder: Path, side: int) -> Reference:
    """SigLIP So400m/14 with one block, for images that are an eighth smaller."""
    sizes = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 1}
    side = side * 14 // 16
    config = transformers.SiglipConfig(
        text_config=TINY_TEXT, vision_config=sizes | {"patch_size": 14, "image_size": side}
    )
    return vision_reference(transformers.SiglipModel(config), folder, side=side, clips=2, frames=1)


def siglip_text(folder: Path) -> Reference:
    """The text tower of SigLIP B/16 with two blocks, with padding, which is attended to."""
    text = {"num_hidden_layers": 2, "vocab_size": 500, "pad_token_id": 0}
    config = transformers.SiglipConfig(text_config=text, vision_config=TINY_VISION)
    return tower_reference(transformers.SiglipModel(config), folder, lengths=(64, 9, 1))


def bert(folder: Path, *, depth: int, width: int) -> Reference:
    """BERT with its pooler, with padding."""
    config = transformers.BertConfig(
        num_hidden_layers=depth, hidden_size=width, intermediate_size=4 * width, vocab_size=500
    )
    model = transformers.BertModel(config)
    return text_reference(model, model, folder, lengths=(32, 17, 1), pooling="pooler")


# Functions that take a folder to write to and the side of the images in pixels.
REFERENCES: dict[str, Callable[[Path, int], Reference]] = {
    "xclip_1_frame_1_position": lambda folder, side: xclip(folder, side, frames=1, positions=1),
    "xclip_1_frame": lambda folder, side: xclip(folder, side, frames=1, positions=8),
    "xclip_4_frames": lambda folder, side: xclip(folder, side, frames=4, positions=4),
    "xclip_8_frames": lambda folder, side: xclip(folder, side, frames=8, positions=8),
    "clip": clip,
    "chinese_clip_vision": chinese_clip_vision,
    "chinese_clip_text": lambda folder, side: chinese_clip_text(folder),
    "clip_text": lambda folder, side: clip_text(folder),
    "siglip_vision": siglip_vision,
    "siglip_so400m_vision": siglip_so400m_vision,
    "siglip_text": lambda folder, side: siglip_text(folder),
    "bert_3_layers": lambda folder, side: bert(folder, depth=3, width=768),
    "bert_12_layers": lambda folder, side: bert(folder, depth=12, width=384),
}
