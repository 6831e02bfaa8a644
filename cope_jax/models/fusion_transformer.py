"""A fusion head that looks at words and frames one by one: a small transformer with a learned query."""

import jax
import jax.numpy as jnp
from flax import nnx

from cope_jax.models.compute import Compute
from cope_jax.models.fusion import Embeddings, Features
from cope_jax.models.layers import EMBEDDING_INIT, PreNormBlock, layer_norm, linear
from cope_jax.models.projection import l2_normalise, make_head_norm
from cope_jax.models.stack import make_stack, run_stack

VIEWS = ("fused", "vision", "text")


class TransformerFusion(nnx.Module):
    """Pre-norm blocks over a learned query, frame vectors and word vectors; the query's outcome is the embedding.

    An item's vision and text embeddings are its views with the words or the frames left out, by the same weights: what
    the item would be without the other. Each view has running statistics of its own where `norm` keeps any.

    Args:
        vision_width, text_width: of frame and word vectors; `text_width` None means a domain without text.
        embedding: width E of the shared space.
        norm: of the embeddings, a name in HEAD_NORMS.
        width, depth, heads: of the transformer.
        compute: how it is computed.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int | None,
        embedding: int,
        norm: str,
        *,
        width: int,
        depth: int,
        heads: int,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        self.compute, dtype = compute, compute.dtype
        self.query = nnx.Param(EMBEDDING_INIT(rngs.params(), (width,)))
        self.modality = nnx.Param(EMBEDDING_INIT(rngs.params(), (2, width)))  # of frames, of words
        self.frames = linear(vision_width, width, dtype=dtype, rngs=rngs)
        self.words = None if text_width is None else linear(text_width, width, dtype=dtype, rngs=rngs)
        self.blocks = make_stack(
            lambda rngs: PreNormBlock(width, heads, activation="gelu", compute=compute, rngs=rngs),
            depth,
            rngs=rngs,
        )
        self.post_norm = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.project = linear(width, embedding, dtype=dtype, rngs=rngs)
        views = VIEWS if text_width is not None else ("vision",)
        self.norms = nnx.Dict({view: make_head_norm(norm, embedding) for view in views})

    def __call__(self, features: Features, *, train: bool) -> Embeddings:
        """Fuses the features of a domain's items."""
        modality = self.modality[...].astype(self.compute.dtype)
        frames, frame_mask = self.frames(features.clip.frames) + modality[None, :1], features.frame_mask
        vision = self.view("vision", frames, frame_mask, train=train)
        if self.words is None:
            return Embeddings.of_frames_alone(vision, frame_mask.any(-1))
        words, word_mask = self.words(features.text.words) + modality[None, 1:], features.word_mask
        both = jnp.concatenate([frames, words], axis=-2), jnp.concatenate([frame_mask, word_mask], axis=-1)
        return Embeddings(
            self.view("fused", *both, train=train),
            vision,
            self.view("text", words, word_mask, train=train),
            frame_mask.any(-1),
            word_mask.any(-1),
        )

    def view(self, name: str, tokens_BND: jax.Array, mask_BN: jax.Array, *, train: bool) -> jax.Array:
        """What the query makes of tokens: float[B, N, D], bool[B, N] → float32[B, E] of length 1, 0 without any."""
        B, _, D = tokens_BND.shape
        query = jnp.broadcast_to(self.query[...].astype(tokens_BND.dtype), (B, 1, D))
        x = jnp.concatenate([query, tokens_BND], axis=-2)
        visible = jnp.concatenate([jnp.ones((B, 1), bool), mask_BN], axis=-1)
        x = run_stack(self.blocks, x, visible, compute=self.compute)
        embedding = self.project(self.post_norm(x[:, 0]))
        return l2_normalise(self.norms[name](embedding, mask_BN.any(-1), train=train))
