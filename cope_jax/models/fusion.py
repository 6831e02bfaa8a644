"""Fusion heads, one per domain: from encoder features to embeddings in the shared space."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Float32

from cope_jax.models.layers import (
    EMBEDDING_INIT,
    BlockSettings,
    ComputeOptions,
    Linear,
    PreNormBlock,
    check_choice,
    layer_norm,
    make_stack,
    run_stack,
)
from cope_jax.models.text import TextFeatures
from cope_jax.models.vision import VisionFeatures

FUSIONS = ("linear", "mean", "transformer", "aligned")
HEAD_NORMS = ("none", "batch")
EMBEDDING_KINDS = ("fused", "vision", "text")


class Features(NamedTuple):
    """Encoder outputs for the items of one domain."""

    vision: VisionFeatures  # frame features
    frame_mask: Bool[Array, "B T"]  # which frames exist
    text: TextFeatures | None  # text features; None if the domain uses no text
    word_mask: Bool[Array, "B L"]  # which words exist, whether the domain uses them or not

    def masked(self, *, vision: bool, text: bool) -> "Features":
        """Returns the features of the same items without their frames or texts, where these are False."""
        return self._replace(frame_mask=self.frame_mask & vision, word_mask=self.word_mask & text)

    @classmethod
    def from_vectors(
        cls, vision: Float32[Array, "B D"], text: Float32[Array, "B _"], has_inputs: Bool[Array, "B 2"]
    ) -> "Features":
        """Makes features of the vectors of encoders, each as if of one frame and one word."""
        words = TextFeatures(text, text[:, None])
        return cls(VisionFeatures(vision, vision[:, None]), has_inputs[:, :1], words, has_inputs[:, 1:])


@struct.dataclass
class Embeddings:
    """Embeddings of the items of one domain. Vectors have length 1, or are 0 if their input is missing."""

    fused: Float32[Array, "B E"]  # embedding of the whole item, used for retrieval
    vision: Float32[Array, "B E"]  # embedding of the frames alone
    text: Float32[Array, "B E"]  # embedding of the text alone; 0 if the domain uses no text
    has_vision: Bool[Array, " B"]  # whether the item has a frame
    has_text: Bool[Array, " B"]  # whether the item has a text that its domain uses

    @classmethod
    def from_vision(cls, vision: Float32[Array, "B E"], has_vision: Bool[Array, " B"]) -> "Embeddings":
        """Makes the embeddings of a domain without text."""
        return cls(vision, vision, jnp.zeros_like(vision), has_vision, jnp.zeros_like(has_vision))


def l2_normalize(x: Float[Array, "B E"]) -> Float32[Array, "B E"]:
    """Scales vectors to length 1 in float32; 0 stays 0, with gradient 0 instead of NaN."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


class HeadNorm(nnx.Module):
    """Zeroes the rows that do not exist, and with `norm` "batch" normalizes the others (arXiv 1502.03167).

    The vectors of an untrained encoder share a large common part. In a contrastive loss every item pushes that part, so
    it oscillates and hides the differences between items for hundreds of steps. Batch normalization, here without scale
    and shift, removes it. Under jit the batch is the global one on any mesh.
    """

    def __init__(self, norm: str, width: int, *, momentum: float = 0.9):
        check_choice("head norm", norm, HEAD_NORMS)
        self.norm, self.momentum = norm, momentum
        if norm == "batch":
            self.mean = nnx.BatchStat(jnp.zeros(width, jnp.float32))
            self.variance = nnx.BatchStat(jnp.ones(width, jnp.float32))

    def __call__(self, x: Float[Array, "B E"], mask: Bool[Array, " B"], *, train: bool) -> Float[Array, "B E"]:
        """Normalizes by the statistics of the batch, which update the running ones, or in evaluation by these."""
        if self.norm == "none":
            return jnp.where(mask[:, None], x, 0.0)
        x, rows = x.astype(jnp.float32), mask[:, None]
        mean, variance = self.mean[...], self.variance[...]
        if train:
            count = jnp.maximum(mask.sum(), 1)
            mean = jnp.where(rows, x, 0.0).sum(axis=0) / count
            variance = jnp.where(rows, jnp.square(x - mean[None]), 0.0).sum(axis=0) / count
            step = jnp.where(mask.any(), 1.0 - self.momentum, 0.0)
            self.mean[...] += step * (mean - self.mean[...])
            self.variance[...] += step * (variance - self.variance[...])
        return jnp.where(rows, (x - mean[None]) * jax.lax.rsqrt(variance[None] + 1e-5), 0.0)


class Projection(nnx.Module):
    """A linear layer into the shared space, followed by the head's normalization."""

    def __init__(self, width: int, embedding: int, norm: str, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.linear = Linear(width, embedding, dtype=dtype, rngs=rngs)
        self.norm = HeadNorm(norm, embedding)

    def __call__(self, x: Float[Array, "B D"], mask: Bool[Array, " B"], *, train: bool) -> Float[Array, "B E"]:
        return self.norm(self.linear(x), mask, train=train)


class LinearFusion(nnx.Module):
    """The authors' fusion: a linear layer per modality, concatenation, one more linear layer.

    `widths` are those of vision and text vectors. A missing modality enters as 0; a domain without text, whose width is
    None, uses its vision path alone. Without `has_merge`, the mean of both modalities' unit vectors takes the place of
    concatenation and last layer.
    """

    def __init__(
        self,
        widths: tuple[int, int | None],
        embedding: int,
        norm: str,
        *,
        has_merge: bool = True,
        compute: ComputeOptions,
        rngs: nnx.Rngs,
    ):
        (vision_width, text_width), dtype = widths, compute.dtype
        self.vision = Projection(vision_width, embedding, norm, dtype=dtype, rngs=rngs)
        project = partial(Projection, embedding=embedding, norm=norm, dtype=dtype, rngs=rngs)
        self.text = None if text_width is None else project(text_width)
        self.merge = None if text_width is None or not has_merge else project(2 * embedding)

    def __call__(self, features: Features, *, train: bool) -> Embeddings:
        has_vision, has_text = features.frame_mask.any(-1), features.word_mask.any(-1)
        vision = self.vision(features.vision.vector, has_vision, train=train)
        if self.text is None or features.text is None:
            return Embeddings.from_vision(l2_normalize(vision), has_vision)
        text = self.text(features.text.vector, has_text, train=train)
        if self.merge is None:
            vision, text = l2_normalize(vision), l2_normalize(text)
            return Embeddings(l2_normalize(vision + text), vision, text, has_vision, has_text)
        fused = self.merge(jnp.concatenate([vision, text], axis=-1), has_vision | has_text, train=train)
        return Embeddings(l2_normalize(fused), l2_normalize(vision), l2_normalize(text), has_vision, has_text)


class AlignedFusion(nnx.Module):
    """Fusion for encoders that share a space, such as SigLIP's: initially, the model is as good as without training.

    Vision and text pass linear layers that start as the identity; the mean of both unit vectors is the fused embedding.
    """

    def __init__(
        self, widths: tuple[int, int | None], embedding: int, norm: str, *, compute: ComputeOptions, rngs: nnx.Rngs
    ):
        def make_layer(width: int) -> Linear:
            layer = Linear(width, embedding, dtype=compute.dtype, rngs=rngs)
            layer.kernel[...] = jnp.eye(width, embedding)
            return layer

        assert norm == "none"  # configs have no other
        vision_width, text_width = widths
        self.vision = make_layer(vision_width)
        self.text = None if text_width is None else make_layer(text_width)

    def __call__(self, features: Features, *, train: bool) -> Embeddings:
        has_vision, has_text = features.frame_mask.any(-1), features.word_mask.any(-1)
        vision = jnp.where(has_vision[:, None], l2_normalize(self.vision(features.vision.vector)), 0.0)
        if self.text is None or features.text is None:
            return Embeddings.from_vision(vision, has_vision)
        text = jnp.where(has_text[:, None], l2_normalize(self.text(features.text.vector)), 0.0)
        return Embeddings(l2_normalize(vision + text), vision, text, has_vision, has_text)


class TransformerFusion(nnx.Module):
    """A pre-norm transformer over a learned query, frame vectors and word vectors; its output at the query is used.

    The vision and text embeddings come from the same weights with words or frames left out: what the item would be
    without them. Each kind of embedding has its own running statistics.

    Args:
        widths: Sizes of frame vectors and of word vectors; the latter is None for a domain without text.
        embedding: Width E of the shared space.
        norm: Normalization of embeddings, one of HEAD_NORMS.
        width: Width of the tokens.
        depth: Number of blocks.
        heads: Number of attention heads.
        compute: How to compute the layers.
    """

    def __init__(
        self,
        widths: tuple[int, int | None],
        embedding: int,
        norm: str,
        *,
        width: int,
        depth: int,
        heads: int,
        compute: ComputeOptions,
        rngs: nnx.Rngs,
    ):
        self.compute, dtype = compute, compute.dtype
        vision_width, text_width = widths
        self.query = nnx.Param(EMBEDDING_INIT(rngs.params(), (width,)))
        self.modality = nnx.Param(EMBEDDING_INIT(rngs.params(), (2, width)))  # frames, words
        self.frames = Linear(vision_width, width, dtype=dtype, rngs=rngs)
        self.words = None if text_width is None else Linear(text_width, width, dtype=dtype, rngs=rngs)
        block = partial(PreNormBlock, BlockSettings(width, heads, "gelu"), compute=compute)
        self.blocks = make_stack(block, depth, rngs=rngs)
        self.post_norm = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.project = Linear(width, embedding, dtype=dtype, rngs=rngs)
        kinds = EMBEDDING_KINDS if text_width is not None else ("vision",)
        self.norms = nnx.Dict({kind: HeadNorm(norm, embedding) for kind in kinds})

    def __call__(self, features: Features, *, train: bool) -> Embeddings:
        modality = self.modality[...].astype(self.compute.dtype)
        frames, frame_mask = self.frames(features.vision.frames) + modality[None, :1], features.frame_mask
        vision = self.embed("vision", frames, frame_mask, train=train)
        if self.words is None or features.text is None:
            return Embeddings.from_vision(vision, frame_mask.any(-1))
        words, word_mask = self.words(features.text.words) + modality[None, 1:], features.word_mask
        both = jnp.concatenate([frames, words], axis=-2), jnp.concatenate([frame_mask, word_mask], axis=-1)
        return Embeddings(
            self.embed("fused", *both, train=train),
            vision,
            self.embed("text", words, word_mask, train=train),
            frame_mask.any(-1),
            word_mask.any(-1),
        )

    def embed(
        self, kind: str, tokens_BND: Float[Array, "B N D"], mask_BN: Bool[Array, "B N"], *, train: bool
    ) -> Float32[Array, "B E"]:
        """Returns the embeddings of items with these tokens, 0 for items without tokens."""
        B, _, D = tokens_BND.shape
        query = jnp.broadcast_to(self.query[...].astype(tokens_BND.dtype), (B, 1, D))
        x = jnp.concatenate([query, tokens_BND], axis=-2)
        visible = jnp.concatenate([jnp.ones((B, 1), bool), mask_BN], axis=-1)
        x = run_stack(self.blocks, x, visible, compute=self.compute)
        embedding = self.project(self.post_norm(x[:, 0]))
        return l2_normalize(self.norms[kind](embedding, mask_BN.any(-1), train=train))
