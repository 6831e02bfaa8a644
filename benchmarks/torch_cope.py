"""COPE in PyTorch, from transformers' X-CLIP and BERT: what the training step is timed beside.

The model of a config of ours with the class token, a linear fusion without normalisation and the sigmoid loss, as one
would write it: all domains that share a shape in one call, attention by PyTorch's own kernels, AdamW in one kernel.
"""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional

from cope_jax.domains import DOMAINS, PAIRS
from cope_jax.models.vision import NORMALISATIONS
from cope_jax.runs.config import RunConfig

Batch = Mapping[str, Any]


class TorchCope(nn.Module):
    """The model and its loss: uint8 frames and token ids of the three domains → float32[]."""

    def __init__(self, config: RunConfig, *, vocab_size: int):
        super().__init__()
        model, frames = config.model, config.data.frames.longest
        xclip = transformers.XCLIPModel(xclip_config(config, frames))
        self.vision, self.project, self.integration = xclip.vision_model, xclip.visual_projection, xclip.mit
        self.text = transformers.BertModel(bert_config(config, vocab_size))
        width = model.embedding
        self.heads = nn.ModuleDict(
            {
                domain: nn.ModuleDict(
                    {
                        "vision": nn.Linear(model.vision.output_width, width),
                        "text": nn.Linear(model.text.width, width),
                        "merge": nn.Linear(2 * width, width),
                    }
                )
                for domain in DOMAINS
            }
        )
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
            domain: self.fuse(self.heads[domain], vectors[domain], text)
            for domain, text in zip(DOMAINS, words, strict=True)
        }
        same = batch["product_id"][:, None] == batch["product_id"][None]
        sign = torch.where(same, 1.0, -1.0)
        return sum(
            -functional.logsigmoid(sign * (self.log_t.exp() * embeddings[a] @ embeddings[b].T + self.bias)).sum()
            / len(sign)
            for a, b in PAIRS
        )

    def clip_vectors(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8[B, T, H, W, 3] → float[B, D], the mean of the frames' vectors."""
        B, T = frames.shape[:2]
        pixels = (frames.flatten(0, 1).permute(0, 3, 1, 2).float() - self.mean) / self.deviation
        for layer in self.vision.encoder.layers:
            layer.num_frames = T  # its own is that of its config, for clips of one length
        vectors = self.project(self.vision(pixels).pooler_output).view(B, T, -1)
        mixed = vectors + self.integration.position_embedding[:, :T]
        return (vectors + self.integration.encoder(inputs_embeds=mixed).last_hidden_state).float().mean(dim=1)

    def fuse(self, head: nn.ModuleDict, vision: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """float[B, D] of both → float32[B, E] of length 1."""
        both = torch.cat([head["vision"](vision), head["text"](text)], dim=-1)
        return functional.normalize(head["merge"](both).float(), dim=-1)


def xclip_config(config: RunConfig, frames: int) -> transformers.XCLIPConfig:
    """Of our vision encoder; X-CLIP's text side, which is not used, is tiny."""
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
    """Of our text encoder, which drops out everywhere but within attention."""
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
    """The model on the device there is, and its training step: batch → loss."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")
    model = TorchCope(config, vocab_size=vocab_size).to(device).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.optimizer.rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    loss_of = torch.compile(model) if compiled else model
    half = config.model.dtype == "bfloat16"

    def step(batch: Batch) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, config.optimizer.clip_norm)
        optimizer.step()
        return loss.detach()

    return model, step


def used_parameters(model: nn.Module) -> int:
    """Parameters that the loss depends on; the others have no gradient behind a step."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.grad is not None)
