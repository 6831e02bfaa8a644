"""COPE: encoders shared by the three domains and a fusion head for each."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cope_jax.domains import DOMAINS
from cope_jax.models.compute import Compute
from cope_jax.models.fusion import Embeddings, Features, LinearFusion
from cope_jax.models.fusion_transformer import TransformerFusion
from cope_jax.models.text import PAD_ID, TextEncoder
from cope_jax.models.vision import VisionEncoder

Batch = Mapping[str, Any]
FUSIONS = ("linear", "transformer")


class CopeModel(nnx.Module):
    """Embeds items of any domain into one space.

    Args:
        embedding: width E of the shared space.
        vision: arguments of `VisionEncoder`, without compute and rngs.
        text: arguments of `TextEncoder`, without compute and rngs.
        fusion: {"kind": "linear" (the release's) or "transformer", "width": …, "depth": …, "heads": … of the latter}.
        text_domains: the domains whose texts are used; the others are their frames alone.
        head_norm: of the fusion heads' layers: "none" (the authors') or "batch", to train from scratch.
        compute: how it is computed.
    """

    def __init__(
        self,
        *,
        embedding: int,
        vision: Mapping[str, Any],
        text: Mapping[str, Any],
        fusion: Mapping[str, Any],
        text_domains: Sequence[str],
        head_norm: str,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        if unknown := set(text_domains) - set(DOMAINS):
            raise ValueError(f"unknown text domains {sorted(unknown)}: choose from {', '.join(DOMAINS)}")
        self.text_domains = tuple(domain for domain in DOMAINS if domain in text_domains)
        self.vision = VisionEncoder(**vision, compute=compute, rngs=rngs)
        self.text = TextEncoder(**text, compute=compute, rngs=rngs) if self.text_domains else None
        self.fusion = nnx.Dict(
            {
                domain: make_fusion(
                    vision["output_width"],
                    text["width"] if domain in self.text_domains else None,
                    embedding,
                    head_norm,
                    **fusion,
                    compute=compute,
                    rngs=rngs,
                )
                for domain in DOMAINS
            }
        )

    def encode(
        self,
        domain: str,
        frames: jax.Array,
        text: jax.Array,
        frame_mask: jax.Array | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Embeddings:
        """Embeds items of one domain.

        Args:
            domain: "page", "video" or "live".
            frames: uint8[B, T, H, W, 3].
            text: int32[B, L], padded with 0; a row of 0 alone is a missing text.
            frame_mask: bool[B, T], False for padding frames; None means that all are real.
            rngs: holds the stream `dropout` for training; None means evaluation.
        """
        if frame_mask is None:
            frame_mask = jnp.ones(frames.shape[:2], bool)
        return self({domain: {"frames": frames, "text": text, "frame_mask": frame_mask}}, rngs=rngs)[domain]

    def __call__(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> dict[str, Embeddings]:
        """Embeds the domains of a batch; a shared encoder runs once over all inputs of one shape.

        Args:
            batch: some of the domains, each {"frames": uint8[B, T, H, W, 3], "frame_mask": bool[B, T],
                "text": int32[B, L]}; other entries are ignored.
            rngs: holds the stream `dropout` for training; None means evaluation.
        """
        features = self.features(batch, rngs=rngs)
        return {domain: self.fusion[domain](features[domain], train=rngs is not None) for domain in features}

    def features(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> dict[str, Features]:
        """What the encoders make of the domains of a batch (as in `__call__`), before fusion."""
        items = {domain: batch[domain] for domain in DOMAINS if domain in batch}
        vision = encode_together({d: (i["frames"], i["frame_mask"]) for d, i in items.items()}, self.vision, rngs)
        texts = {d: (i["text"],) for d, i in items.items() if d in self.text_domains}
        text = encode_together(texts, self.text, rngs)
        return {
            domain: Features(vision[domain], item["frame_mask"], text.get(domain), item["text"] != PAD_ID)
            for domain, item in items.items()
        }


def make_fusion(
    *sizes: Any, kind: str, width: int, depth: int, heads: int, compute: Compute, rngs: nnx.Rngs
) -> LinearFusion | TransformerFusion:
    """One domain's fusion head of a kind in FUSIONS; `sizes` as both kinds take them."""
    if kind == "linear":
        return LinearFusion(*sizes, dtype=compute.dtype, rngs=rngs)
    if kind == "transformer":
        return TransformerFusion(*sizes, width=width, depth=depth, heads=heads, compute=compute, rngs=rngs)
    raise ValueError(f"unknown fusion {kind!r}: choose one of {', '.join(FUSIONS)}")


def encode_together(
    inputs: Mapping[str, tuple[jax.Array, ...]], encoder: nnx.Module | None, rngs: nnx.Rngs | None
) -> dict[str, Any]:
    """Runs an encoder over the inputs of several domains, concatenating those whose shapes agree but for B.

    Fewer, larger matrix products and fewer copies of the encoder to compile: video and live usually share a shape.
    """
    groups: dict[tuple, list[str]] = {}
    for domain, arrays in inputs.items():
        groups.setdefault(tuple(array.shape[1:] for array in arrays), []).append(domain)
    outputs = {}
    for domains in groups.values():
        columns = zip(*(inputs[domain] for domain in domains), strict=True)
        joined = encoder(*(jnp.concatenate(column) for column in columns), rngs=rngs)
        sizes = [inputs[domain][0].shape[0] for domain in domains]  # len would refuse a symbolic B
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        leaves, structure = jax.tree.flatten(joined)
        parts = zip(*(jnp.split(leaf, ends) for leaf in leaves), strict=True)
        outputs.update(zip(domains, map(structure.unflatten, parts), strict=True))
    return outputs
