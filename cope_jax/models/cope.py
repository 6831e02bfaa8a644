"""The COPE model: encoders shared by all domains and one fusion head per domain."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from cope_jax.models.fusion import FUSIONS, Embeddings, Features, LinearFusion, TransformerFusion
from cope_jax.models.layers import ComputeOptions
from cope_jax.models.text import PAD_ID, TextEncoder, TextFeatures
from cope_jax.models.vision import VisionEncoder, VisionFeatures
from data_prep.common.domains import DOMAINS

Batch = Mapping[str, Any]
MODEL_INPUTS = ("frames", "frame_mask", "text")  # of a domain


class CopeModel(nnx.Module):
    """Embeds items of any domain into one space.

    Args:
        embedding: Width E of the shared space.
        vision: Arguments of `VisionEncoder`, without compute and rngs.
        text: Arguments of `TextEncoder`, without compute and rngs.
        fusion: Fusion heads: "kind", one of FUSIONS, and "width", "depth" and "heads" of the transformer.
        text_domains: Domains whose texts are used; of the others, only the frames.
        head_norm: Normalization in the fusion heads: "none" (as the authors) or "batch", for training from scratch.
        compute: How to compute the layers.
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
        compute: ComputeOptions,
        rngs: nnx.Rngs,
    ):
        if unknown := set(text_domains) - set(DOMAINS):
            raise ValueError(f"unknown text domains {sorted(unknown)}: choose from {', '.join(DOMAINS)}")
        if (kind := fusion["kind"]) not in FUSIONS:
            raise ValueError(f"unknown fusion {kind!r}: choose one of {', '.join(FUSIONS)}")
        sizes = {key: fusion[key] for key in ("width", "depth", "heads")}
        head = LinearFusion if kind == "linear" else partial(TransformerFusion, **sizes)

        def make_head(domain: str) -> LinearFusion | TransformerFusion:
            text_width = text["width"] if domain in self.text_domains else None
            return head(vision["output_width"], text_width, embedding, head_norm, compute=compute, rngs=rngs)

        self.text_domains = tuple(domain for domain in DOMAINS if domain in text_domains)
        self.vision = VisionEncoder(**vision, compute=compute, rngs=rngs)
        self.text = TextEncoder(**text, compute=compute, rngs=rngs) if self.text_domains else None
        self.fusion = nnx.Dict({domain: make_head(domain) for domain in DOMAINS})

    def __call__(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> dict[str, Embeddings]:
        """Embeds the domains of a batch. A shared encoder runs once over all inputs of one shape.

        Args:
            batch: For each of some domains {"frames": uint8[B, T, H, W, 3], "frame_mask": bool[B, T] (False for
                padding), "text": int32[B, L] (0 for padding)}; other entries are ignored.
            rngs: Random stream `dropout` for training; None for evaluation.
        """
        features = self.features(batch, rngs=rngs)
        return {domain: self.fusion[domain](features[domain], train=rngs is not None) for domain in features}

    def features(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> dict[str, Features]:
        """Returns the encoder outputs for the domains of a batch; arguments as in `__call__`."""
        domains = [domain for domain in DOMAINS if domain in batch]
        items = {domain: {name: jnp.asarray(batch[domain][name]) for name in MODEL_INPUTS} for domain in domains}
        frames = {domain: (item["frames"], item["frame_mask"]) for domain, item in items.items()}
        vision: dict[str, VisionFeatures] = encode_together(frames, self.vision, rngs)
        text: dict[str, TextFeatures] = {}
        if self.text is not None:
            texts = {domain: (item["text"],) for domain, item in items.items() if domain in self.text_domains}
            text = encode_together(texts, self.text, rngs)
        return {
            domain: Features(vision[domain], item["frame_mask"], text.get(domain), item["text"] != PAD_ID)
            for domain, item in items.items()
        }


def encode_together(
    inputs: Mapping[str, tuple[Array, ...]], encoder: VisionEncoder | TextEncoder, rngs: nnx.Rngs | None
) -> dict[str, Any]:
    """Runs an encoder over the inputs of several domains, concatenating those whose shapes differ in B at most.

    This gives fewer, larger matrix products and fewer copies of the encoder to compile: video and live usually have
    the same shape.
    """
    groups: dict[tuple, list[str]] = {}
    for domain, arrays in inputs.items():
        groups.setdefault(tuple(array.shape[1:] for array in arrays), []).append(domain)
    outputs = {}
    for domains in groups.values():
        columns = zip(*(inputs[domain] for domain in domains), strict=True)
        joined = encoder(*(jnp.concatenate(column) for column in columns), rngs=rngs)
        sizes = [inputs[domain][0].shape[0] for domain in domains]  # `len` fails for a symbolic B
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        leaves, structure = jax.tree.flatten(joined)
        parts = zip(*(jnp.split(leaf, ends) for leaf in leaves), strict=True)
        outputs.update(zip(domains, map(structure.unflatten, parts), strict=True))
    return outputs
