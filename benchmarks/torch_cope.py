"""COPE in PyTorch, from the X-CLIP and BERT of transformers, to compare the training step with.

The model of one of our configs with class-token pooling, a linear fusion without normalization and the sigmoid loss,
written as usual in PyTorch: domains with the same shapes in one call, PyTorch's attention kernels, fused AdamW.
"""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers.models.x_clip.modeling_x_clip import XCLIPVisionEncoderLayer

from cope_jax.models.vision import NORMALISATIONS
from cope_jax.runs.config import RunConfig
from data_prep.common.domains import DOMAINS, domain_pairs

Batch = Mapping[str, Any]


class FusionHead(nn.Module):
    """Fuses vision float[B, D] and text float[B, D] into unit embeddings float32[B, E]."""

    def __init__(self, vision_width: int, text_width: int, width: int):
        super().__init__()
        self.vision, self.text = nn.Linear(vision_width, width), nn.Linear(text_width, width)
        self.merge = nn.Linear(2 * width, width)

    def forward(self, vision: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.vision(vision), self.text(text)], dim=-1)
        return functional.normalize(self.merge(both).float(), dim=-1)


class TorchCope(nn.Module):
    """The model with its loss, which maps the frames and tokens of a batch to a scalar."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, config: RunConfig, *, vocab_size: int):
        super().__init__()
        model, frames = config.model, max(config.data.frames.values())
        xclip = transformers.XCLIPModel(xclip_config(config, frames))
        self.vision, self.project, self.integration = xclip.vision_model, xclip.visual_projection, xclip.mit
        self.text = transformers.BertModel(bert_config(config, vocab_size))
        widths = (model.vision.output_width, model.text.width, model.embedding)
        self.heads = nn.ModuleDict({domain: FusionHead(*widths) for domain in DOMAINS})
        self.log_t = nn.Parameter(torch.tensor(config.losses.sigmoid.temperature).log())
        self.bias = nn.Parameter(torch.tensor(config.losses.sigmoid.bias))
        mean, deviation = NORMALISATIONS[model.vision.normalisation]
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None])

    def forward(self, batch: Batch) -> torch.Tensor:
        clips = [batch[domain]["frames"] for domain in ("video", "live")]
        pages, clips = self.clip_vectors(batch["page"]["frames"]), self.clip_vectors(torch.cat(clips))
        vectors = dict(zip(DOMAINS, (pages, *clips.chunk(2)), strict=True))
        ids = torch.cat([batch[domain]["text"] for domain in DOMAINS])
        words = self.text(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output.chunk(3)
        embeddings = {
            domain: self.heads[domain](vectors[domain], text) for domain, text in zip(DOMAINS, words, strict=True)
        }
        same = batch["product_id"][:, None] == batch["product_id"][None]
        sign = torch.where(same, 1.0, -1.0)
        logits = [self.log_t.exp() * embeddings[a] @ embeddings[b].T + self.bias for a, b in domain_pairs(DOMAINS)]
        return -functional.logsigmoid(sign * torch.stack(logits)).sum() / len(sign)

    def clip_vectors(self, frames: torch.Tensor) -> torch.Tensor:
        """Encodes frames uint8[B, T, H, W, 3] and returns the means over the frames, float[B, D]."""
        B, T = frames.shape[:2]
        pixels = (frames.flatten(0, 1).permute(0, 3, 1, 2).float() - self.mean) / self.deviation
        for layer in self.vision.encoder.layers:
            assert isinstance(layer, XCLIPVisionEncoderLayer)
            layer.num_frames = T  # set by its config for clips of one length
        vectors = self.project(self.vision(pixels).pooler_output).view(B, T, -1)
        mixed = vectors + self.integration.position_embedding[:, :T]
        return (vectors + self.integration.encoder(inputs_embeds=mixed).last_hidden_state).float().mean(dim=1)


def xclip_config(config: RunConfig, frames: int) -> transformers.XCLIPConfig:
    """Returns the config of our vision encoder; the text side of X-CLIP, which is unused, is tiny."""
    vision = config.model.vision
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    return transformers.XCLIPConfig(
        projection_dim=vision.output_width,
        prompt_num_attention_heads=1,
        text_config=text | {"vocab_size": 8, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3},
        vision_config={
            "image_size": config.data.image_size,
            "patch_size": vision.patch_size,
            "hidden_size": vision.width,
            "intermediate_size": 4 * vision.width,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "num_frames": frames,
            "mit_hidden_size": vision.output_width,
            "mit_intermediate_size": 4 * vision.output_width,
            "mit_num_hidden_layers": vision.integration_depth,
            "mit_num_attention_heads": vision.integration_heads,
        },
    )


def bert_config(config: RunConfig, vocab_size: int) -> transformers.BertConfig:
    """Returns the config of our text encoder, which has dropout everywhere except in attention."""
    text = config.model.text
    return transformers.BertConfig(
        vocab_size=vocab_size,
        hidden_size=text.width,
        intermediate_size=4 * text.width,
        num_hidden_layers=text.depth,
        num_attention_heads=text.heads,
        max_position_embeddings=config.data.text_length,
        hidden_dropout_prob=text.dropout,
        attention_probs_dropout_prob=0.0,
    )


def make_torch_step(config: RunConfig, *, vocab_size: int, compiled: bool) -> tuple[nn.Module, Any]:
    """Returns the model, on a GPU if there is one, and its training step, which maps a batch to its loss."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")
    model = TorchCope(config, vocab_size=vocab_size).to(device).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.optimizer.rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    loss_of = torch.compile(model) if compiled else model
    bfloat16 = config.model.dtype == "bfloat16"

    def step(batch: Batch) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16):
            loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, config.optimizer.clip_norm)
        optimizer.step()
        return loss.detach()

    return model, step


def used_parameters(model: nn.Module) -> int:
    """Returns the number of parameters that the loss depends on: those with a gradient after a step."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.grad is not None)
