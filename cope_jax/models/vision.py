"""The vision encoder: X-CLIP's ViT with cross-frame communication and multi-frame integration (arXiv 2208.02816)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from cope_jax.models.compute import Compute
from cope_jax.models.layers import EMBEDDING_INIT, Attention, PreNormBlock, drop_path, layer_norm, linear, masked_mean
from cope_jax.models.stack import make_stack, run_stack
from cope_jax.models.stems import ConvStem, PatchStem

# Mean and deviation of the channels on the 0–255 scale: ImageNet's, as the authors and X-CLIP normalise, and those of
# CLIP's own training data, which CLIP and Chinese-CLIP weights expect.
NORMALISATIONS = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "clip": ((122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)),
}

POOLINGS = ("class", "mean")


class Clip(NamedTuple):
    """What the encoder makes of clips.

    Attributes:
        vector: float32[B, D], the mean of its frames' vectors; 0 for a clip without frames.
        frames: float[B, T, D]; it means nothing at masked frames.
    """

    vector: jax.Array
    frames: jax.Array


def normalise(frames_BTHWC: jax.Array, normalisation: str) -> jax.Array:
    """uint8[B, T, H, W, 3], 0–255 → float32[B, T, H, W, 3] of mean 0 and variance 1 over the data of that name."""
    mean, deviation = (jnp.asarray([[[[values]]]]) for values in NORMALISATIONS[normalisation])
    return (frames_BTHWC.astype(jnp.float32) - mean) / deviation


class CrossFrameBlock(nnx.Module):
    """A ViT block in which the frames of a clip speak to each other through message tokens.

    Each frame's class token goes through a linear layer and attends to those of the other frames; the outcome, the
    frame's message, is one more token for its own spatial attention and is dropped behind it.
    """

    def __init__(self, width: int, heads: int, *, activation: str, compute: Compute, rngs: nnx.Rngs):
        self.message_fc = linear(width, width, dtype=compute.dtype, rngs=rngs)
        self.message_norm = layer_norm(width, epsilon=1e-5, dtype=compute.dtype, rngs=rngs)
        self.message_attention = Attention(width, heads, compute=compute, rngs=rngs)
        self.block = PreNormBlock(width, heads, activation=activation, compute=compute, rngs=rngs)

    def __call__(
        self,
        x_BTND: jax.Array,
        mask_BT: jax.Array,
        *,
        drop_path_rate: float | jax.Array = 0.0,
        rngs: nnx.Rngs | None,
    ) -> jax.Array:
        """float[B, T, N, D] with the class token first, bool[B, T] → float[B, T, N, D]."""
        B, T, N, D = x_BTND.shape
        message = self.message_fc(x_BTND[:, :, 0])
        attended = self.message_attention(self.message_norm(message), mask_BT)
        message = message + drop_path(attended, drop_path_rate, rngs)
        x = jnp.concatenate([x_BTND, message[:, :, None]], axis=-2).reshape(B * T, N + 1, D)
        return self.block(x, drop_path_rate=drop_path_rate, rngs=rngs)[:, :N].reshape(B, T, N, D)


class PlainBlock(nnx.Module):
    """The same ViT block without messages: frames are encoded one by one."""

    def __init__(self, width: int, heads: int, *, activation: str, compute: Compute, rngs: nnx.Rngs):
        self.block = PreNormBlock(width, heads, activation=activation, compute=compute, rngs=rngs)

    def __call__(
        self,
        x_BTND: jax.Array,
        mask_BT: jax.Array,
        *,
        drop_path_rate: float | jax.Array = 0.0,
        rngs: nnx.Rngs | None,
    ) -> jax.Array:
        """float[B, T, N, D], bool[B, T] (unused) → float[B, T, N, D]."""
        B, T, N, D = x_BTND.shape
        x = self.block(x_BTND.reshape(B * T, N, D), drop_path_rate=drop_path_rate, rngs=rngs)
        return x.reshape(B, T, N, D)


class FrameIntegration(nnx.Module):
    """X-CLIP's multi-frame integration transformer: pre-norm blocks over the vectors of a clip's frames."""

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        max_frames: int,
        *,
        activation: str,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        self.compute = compute
        self.position = nnx.Param(EMBEDDING_INIT(rngs.params(), (max_frames, width)))
        self.blocks = make_stack(
            lambda rngs: PreNormBlock(width, heads, activation=activation, compute=compute, rngs=rngs),
            depth,
            rngs=rngs,
        )

    def __call__(self, frames_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """float[B, T, D], bool[B, T] → float[B, T, D], each frame's vector in the light of the others."""
        x = frames_BTD + self.position[None, : frames_BTD.shape[1]].astype(frames_BTD.dtype)
        return frames_BTD + run_stack(self.blocks, x, mask_BT, compute=self.compute)


class VisionEncoder(nnx.Module):
    """Frames of a clip → one vector a clip and one a frame. A page is a clip of one frame.

    Args:
        image_size: side of the square input, pixels.
        normalisation: of pixels, a name in NORMALISATIONS.
        stem: "patch" (ViT) or "conv" (a small convolutional network, whose patch size is 4·2^(stages − 1)).
        patch_size: side of a patch, pixels.
        stem_widths, stem_blocks: channels and residual blocks of the conv stem's stages, fine to coarse.
        width, depth, heads: of the ViT.
        pooling: a frame's vector: "class" (the class token, as in CLIP) or "mean" (of the patches' tokens, which
            learns faster from scratch).
        activation: of all blocks, "quick_gelu" (CLIP) or "gelu".
        cross_frame: whether blocks exchange messages between frames; without, a plain CLIP ViT.
        integration_depth: blocks over frame vectors; with 0 a clip is their plain mean.
        output_width: size of a frame's and of the clip's vector.
        max_frames: the longest clip the integration has positions for.
        drop_path: stochastic depth of the last block; it rises linearly from 0 at the first.
        compute: how it is computed.
    """

    def __init__(
        self,
        *,
        image_size: int,
        normalisation: str,
        stem: str,
        patch_size: int,
        stem_widths: tuple[int, ...],
        stem_blocks: tuple[int, ...],
        width: int,
        depth: int,
        heads: int,
        pooling: str,
        activation: str,
        cross_frame: bool,
        integration_depth: int,
        integration_heads: int,
        output_width: int,
        max_frames: int,
        drop_path: float,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"unknown normalisation {normalisation!r}: choose one of {', '.join(NORMALISATIONS)}")
        self.normalisation = normalisation
        self.compute, dtype = compute, compute.dtype
        self.pooling = pooling
        self.max_frames = max_frames
        if stem == "patch":
            self.stem = PatchStem(width, patch_size, dtype=dtype, rngs=rngs)
        elif stem == "conv":
            self.stem = ConvStem(width, stem_widths, stem_blocks, dtype=dtype, rngs=rngs)
        else:
            raise ValueError(f"unknown stem {stem!r}: choose 'patch' or 'conv'")
        self.class_token = nnx.Param(EMBEDDING_INIT(rngs.params(), (width,)))
        self.position = nnx.Param(EMBEDDING_INIT(rngs.params(), ((image_size // patch_size) ** 2 + 1, width)))
        self.pre_norm = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        block = CrossFrameBlock if cross_frame else PlainBlock
        self.blocks = make_stack(
            lambda rngs: block(width, heads, activation=activation, compute=compute, rngs=rngs),
            depth,
            rngs=rngs,
        )
        # Rates of 0 are left out, so that no masks are drawn for them.
        rates = tuple(drop_path * (1 - i / max(depth - 1, 1)) for i in reversed(range(depth)))
        self.drop_path_rates = rates if any(rates) else None
        self.post_norm = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.project = linear(width, output_width, use_bias=False, dtype=dtype, rngs=rngs)
        sizes = (output_width, integration_heads, integration_depth, max_frames)
        self.integration = (
            FrameIntegration(*sizes, activation=activation, compute=compute, rngs=rngs) if integration_depth else None
        )

    def __call__(self, frames_BTHWC: jax.Array, mask_BT: jax.Array, *, rngs: nnx.Rngs | None = None) -> Clip:
        """Encodes clips.

        Args:
            frames_BTHWC: uint8[B, T, H, W, 3], 0–255.
            mask_BT: bool[B, T]; a False frame has no influence on its clip, a clip of False frames gives 0.
            rngs: holds the stream `dropout` for training; None means evaluation.
        """
        return self.encode(normalise(frames_BTHWC, self.normalisation), mask_BT, rngs=rngs)

    def encode(self, pixels_BTHWC: jax.Array, mask_BT: jax.Array, *, rngs: nnx.Rngs | None = None) -> Clip:
        """Encodes clips whose pixels are normalised already.

        Args:
            pixels_BTHWC: float[B, T, H, W, 3].
            mask_BT, rngs: as in `__call__`.
        """
        T = pixels_BTHWC.shape[1]
        if self.max_frames < T:
            raise ValueError(f"clips of {T} frames exceed max_frames = {self.max_frames}")
        x = self.frame_tokens(pixels_BTHWC, mask_BT, rngs=rngs)
        frames = self.project(self.post_norm(x[:, :, 0] if self.pooling == "class" else x[:, :, 1:].mean(axis=-2)))
        if self.integration is not None:
            frames = self.integration(frames, mask_BT)
        return Clip(masked_mean(frames, mask_BT), frames)

    def frame_tokens(self, pixels_BTHWC: jax.Array, mask_BT: jax.Array, *, rngs: nnx.Rngs | None) -> jax.Array:
        """The last block's tokens, class token first: float[B, T, H, W, 3] → float[B, T, N + 1, D]."""
        B, T, *image = pixels_BTHWC.shape
        patches = self.stem(pixels_BTHWC.reshape(B * T, *image).astype(self.compute.dtype))
        first = jnp.broadcast_to(self.class_token.astype(patches.dtype), (B * T, 1, patches.shape[-1]))
        x = jnp.concatenate([first, patches], axis=-2) + self.position[None].astype(patches.dtype)
        x = self.pre_norm(x).reshape(B, T, *x.shape[1:])
        rates = self.drop_path_rates
        layerwise = {} if rates is None else {"drop_path_rate": jnp.asarray(rates, jnp.float32)}
        return run_stack(self.blocks, x, mask_BT, compute=self.compute, layerwise=layerwise, rngs=rngs)
