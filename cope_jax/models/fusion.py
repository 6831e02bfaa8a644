"""One fusion head a domain: what the encoders make of items → the shared embedding space; the release's head."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, struct

from cope_jax.models.projection import Projection, l2_normalise
from cope_jax.models.text import Text
from cope_jax.models.vision import Clip


@struct.dataclass
class Embeddings:
    """What one domain's items look like in the shared space; all vectors have length 1, or are 0 where missing.

    Attributes:
        fused: float32[B, E], what retrieval uses.
        vision: float32[B, E], from the frames alone.
        text: float32[B, E], from the text alone; 0 in a domain that uses none.
        has_vision: bool[B], whether the item has a frame.
        has_text: bool[B], whether the item has a text that its domain uses.
    """

    fused: jax.Array
    vision: jax.Array
    text: jax.Array
    has_vision: jax.Array
    has_text: jax.Array

    @classmethod
    def of_frames_alone(cls, vision_BE: jax.Array, has_vision_B: jax.Array) -> "Embeddings":
        """Of a domain without text: float32[B, E] of length 1 or 0, bool[B]."""
        missing = jnp.zeros_like(has_vision_B)
        return cls(vision_BE, vision_BE, jnp.zeros_like(vision_BE), has_vision_B, missing)


class Features(NamedTuple):
    """What the encoders make of one domain's items.

    Attributes:
        clip: of the frames.
        frame_mask: bool[B, T], which frames exist.
        text: of the words; None in a domain that uses no text.
        word_mask: bool[B, L], which words exist, whether the domain uses them or not.
    """

    clip: Clip
    frame_mask: jax.Array
    text: Text | None
    word_mask: jax.Array


class LinearFusion(nnx.Module):
    """The release's fusion: a linear layer for each modality, concatenation, one more linear layer.

    A domain without text (`text_width` None) is its vision path alone. A missing modality enters as 0.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int | None,
        embedding: int,
        norm: str,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.vision = Projection(vision_width, embedding, norm, dtype=dtype, rngs=rngs)
        if text_width is None:
            self.text = self.merge = None
        else:
            self.text = Projection(text_width, embedding, norm, dtype=dtype, rngs=rngs)
            self.merge = Projection(2 * embedding, embedding, norm, dtype=dtype, rngs=rngs)

    def __call__(self, features: Features, *, train: bool) -> Embeddings:
        """Fuses the features of a domain's items."""
        has_vision, has_text = features.frame_mask.any(-1), features.word_mask.any(-1)
        vision = self.vision(features.clip.vector, has_vision, train=train)
        if self.text is None:
            return Embeddings.of_frames_alone(l2_normalise(vision), has_vision)
        text = self.text(features.text.vector, has_text, train=train)
        fused = self.merge(jnp.concatenate([vision, text], axis=-1), has_vision | has_text, train=train)
        return Embeddings(l2_normalise(fused), l2_normalise(vision), l2_normalise(text), has_vision, has_text)
