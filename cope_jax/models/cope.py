"""The COPE model: encoders shared by all domains and one fusion head per domain."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32

from cope_jax.models.dropout import DropoutRngs
from cope_jax.models.fusion import (
    EMBEDDING_KINDS,
    FUSIONS,
    AlignedFusion,
    Embeddings,
    Features,
    LinearFusion,
    TransformerFusion,
)
from cope_jax.models.layers import ComputeOptions, check_choice
from cope_jax.models.text import PAD_ID, TextEncoder, TextFeatures, TextSettings
from cope_jax.models.vision import VisionEncoder, VisionSettings
from data_prep.common.domains import batch_entries, sort_domains

Batch = Mapping[str, Any]
MODEL_INPUTS = ("frames", "frame_mask", "text")  # of a domain
AXES = ("learned", "measured", "principal")
MOMENTUM = 0.99  # of the second moments, which thus are of the last hundred batches


class CopeModel(nnx.Module):
    """Embeds items of any domain into one space.

    Args:
        embedding: Width E of the shared space.
        vision: Fields of `VisionSettings`.
        text: Fields of `TextSettings`.
        fusion: Fusion heads: "kind", one of FUSIONS, and "width", "depth" and "heads" of the transformer.
        domains: Domains of the items.
        text_domains: Domains whose texts are used; of the others, only the frames.
        head_norm: Normalization in the fusion heads: "none" (as the authors) or "batch", for training from scratch.
        axes: Axes of the embeddings: "learned" (as trained), "measured" (the same, and training keeps their second
            moments as `moments`), or "principal" (rotated by the orthogonal matrix `axes`).
        compute: How to compute the layers.
    """

    def __init__(
        self,
        *,
        embedding: int,
        vision: Mapping[str, Any],
        text: Mapping[str, Any],
        fusion: Mapping[str, Any],
        domains: Sequence[str],
        text_domains: Sequence[str],
        head_norm: str,
        axes: str = "learned",
        compute: ComputeOptions,
        rngs: nnx.Rngs,
    ):
        if unknown := set(text_domains) - set(domains):
            raise ValueError(f"unknown text domains {sorted(unknown)}: choose from {', '.join(domains)}")
        kind = fusion["kind"]
        check_choice("fusion", kind, FUSIONS)
        check_choice("axes", axes, AXES)
        sizes = {key: fusion[key] for key in ("width", "depth", "heads")}
        heads = {
            "linear": LinearFusion,
            "mean": partial(LinearFusion, has_merge=False),
            "aligned": AlignedFusion,
            "transformer": partial(TransformerFusion, **sizes),
        }

        def make_head(domain: str) -> LinearFusion | AlignedFusion | TransformerFusion:
            text_width = (word if kind == "transformer" else text_vector) if domain in self.text_domains else None
            return heads[kind]((vision["output_width"], text_width), embedding, head_norm, compute=compute, rngs=rngs)

        word, text_vector = text["width"], text["output_width"] or text["width"]
        self.domains, self.text_domains = sort_domains(domains), sort_domains(text_domains)
        self.vision = VisionEncoder(VisionSettings(**vision), compute=compute, rngs=rngs)
        self.text = TextEncoder(TextSettings(**text), compute=compute, rngs=rngs) if self.text_domains else None
        self.fusion = nnx.Dict({domain: make_head(domain) for domain in self.domains})
        self.moments = nnx.BatchStat(jnp.eye(embedding)) if axes == "measured" else None
        self.axes = nnx.BatchStat(jnp.eye(embedding)) if axes == "principal" else None

    def __call__(self, batch: Batch, *, rngs: DropoutRngs | None = None) -> dict[str, Embeddings]:
        """Embeds the domains of a batch. Each shared encoder runs once over the inputs of all domains.

        Args:
            batch: For each of some domains, and for `second_item` of some, {"frames": uint8[B, T, H, W, 3],
                "frame_mask": bool[B, T] (False for padding), "text": int32[B, L] (0 for padding)}; other entries are
                ignored. Instead, "features" may be the outputs of the encoders.
            rngs: Keys of the examples for training; None for evaluation.
        """
        features = self.features(batch, rngs=rngs)
        heads = batch_entries(self.domains, self.domains)
        train = rngs is not None
        embeddings = {name: self.fusion[heads[name]](own, train=train) for name, own in features.items()}
        if self.moments is not None and train:
            vectors = [jax.lax.stop_gradient(own.fused) for own in embeddings.values()]
            mean = sum((x.T @ x for x in vectors), jnp.zeros(())) / sum(map(len, vectors))
            self.moments[...] += (1 - MOMENTUM) * (mean - self.moments[...])
        return {name: self._rotate(own) for name, own in embeddings.items()}

    def _rotate(self, embeddings: Embeddings) -> Embeddings:
        """Expresses embeddings in the principal axes, if the model has them."""
        if self.axes is None:
            return embeddings
        rotate = partial(jnp.matmul, b=self.axes[...], precision="highest")
        vectors = {kind: rotate(getattr(embeddings, kind)) for kind in EMBEDDING_KINDS}
        return replace(embeddings, **vectors)

    def embed_masked(self, batch: Batch) -> Float32[Array, "B 3 E"]:
        """Embeds the items of one domain: as they are, their frames alone, and their texts alone, 0 if missing.

        Each encoder runs once; see `__call__` for the batch.
        """
        ((domain, features),) = self.features(batch).items()
        parts = [features, features.masked(vision=True, text=False), features.masked(vision=False, text=True)]
        return jnp.stack([self._rotate(self.fusion[domain](part, train=False)).fused for part in parts], axis=1)

    def features(self, batch: Batch, *, rngs: DropoutRngs | None = None) -> dict[str, Features]:
        """Returns the encoder outputs for the domains of a batch; arguments as in `__call__`."""
        entries = batch_entries(self.domains, self.domains)
        kept = {entry: batch[entry]["features"] for entry in entries if "features" in batch.get(entry, ())}
        if kept:
            return {entry: Features.from_vectors(*map(jnp.asarray, own)) for entry, own in kept.items()}
        items = {
            entry: {name: jnp.asarray(batch[entry][name]) for name in MODEL_INPUTS}
            for entry in entries
            if entry in batch
        }
        clips = [(item["frames"], item["frame_mask"]) for item in items.values()]
        vision = dict(zip(items, self.vision.encode_clips(clips, rngs=rngs), strict=True))
        text: dict[str, TextFeatures] = {}
        if self.text is not None and (read := [entry for entry in items if entries[entry] in self.text_domains]):
            texts = self.text.encode_texts([items[entry]["text"] for entry in read], rngs=rngs)
            text = dict(zip(read, texts, strict=True))
        return {
            entry: Features(vision[entry], item["frame_mask"], text.get(entry), item["text"] != PAD_ID)
            for entry, item in items.items()
        }
