"""The vision encoder: X-CLIP's ViT with cross-frame communication and multi-frame integration (arXiv 2208.02816)."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, UInt8

from cope_jax.models.layers import (
    EMBEDDING_INIT,
    Attention,
    ComputeOptions,
    PreNormBlock,
    dropout,
    layer_norm,
    linear,
    make_stack,
    masked_mean,
    run_stack,
)
from cope_jax.models.stems import ConvStem, PatchStem

# Mean and standard deviation of the channels on the scale 0–255: of ImageNet, which the authors and X-CLIP use, and of
# CLIP's training data, which CLIP and Chinese-CLIP weights expect.
NORMALISATIONS = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "clip": ((122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)),
}
POOLINGS = ("class", "mean")


class VisionFeatures(NamedTuple):
    """Output of the vision encoder."""

    vector: Float32[Array, "B D"]  # mean of the clip's frame vectors, 0 for a clip without frames
    frames: Float[Array, "B T D"]  # frame vectors, arbitrary at masked frames


def normalize(frames_BTHWC: UInt8[Array, "B T H W 3"], normalisation: str) -> Float32[Array, "B T H W 3"]:
    """Normalizes pixels to mean 0 and variance 1 over the data set `normalisation`."""
    mean, deviation = (jnp.asarray([[[[values]]]]) for values in NORMALISATIONS[normalisation])
    return (frames_BTHWC.astype(jnp.float32) - mean) / deviation


class ClipBlock(nnx.Module):
    """A ViT block over the frames of a clip, which can exchange messages.

    For messages, each frame's class token passes a linear layer and attends to those of the other frames. The result is
    an additional token in the frame's own spatial attention and is dropped afterwards.
    """

    def __init__(
        self, width: int, heads: int, *, messages: bool, activation: str, compute: ComputeOptions, rngs: nnx.Rngs
    ):
        self.messages = messages
        if messages:
            self.message_fc = linear(width, width, dtype=compute.dtype, rngs=rngs)
            self.message_norm = layer_norm(width, epsilon=1e-5, dtype=compute.dtype, rngs=rngs)
            self.message_attention = Attention(width, heads, compute=compute, rngs=rngs)
        self.block = PreNormBlock(width, heads, activation=activation, compute=compute, rngs=rngs)

    def __call__(
        self,
        x_BTND: Float[Array, "B T N D"],
        mask_BT: Bool[Array, "B T"],
        *,
        drop_path_rate: float | Float[Array, ""] = 0.0,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T N D"]:
        """Updates the tokens of all frames; the class token comes first."""
        B, T, N, D = x_BTND.shape
        x = x_BTND
        if self.messages:
            message = self.message_fc(x[:, :, 0])
            attended = self.message_attention(self.message_norm(message), mask_BT)
            message = message + dropout(attended, drop_path_rate, rngs, per_example=True)
            x = jnp.concatenate([x, message[:, :, None]], axis=-2)
        x = self.block(x.reshape(B * T, -1, D), drop_path_rate=drop_path_rate, rngs=rngs)
        return x[:, :N].reshape(B, T, N, D)


class FrameIntegration(nnx.Module):
    """X-CLIP's multi-frame integration transformer: pre-norm blocks over the frame vectors of a clip."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        depth: int,
        max_frames: int,
        activation: str,
        compute: ComputeOptions,
        rngs: nnx.Rngs,
    ):
        self.compute = compute
        self.position = nnx.Param(EMBEDDING_INIT(rngs.params(), (max_frames, width)))
        block = partial(PreNormBlock, width, heads, activation=activation, compute=compute)
        self.blocks = make_stack(block, depth, rngs=rngs)

    def __call__(self, frames_BTD: Float[Array, "B T D"], mask_BT: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        x = frames_BTD + self.position[None, : frames_BTD.shape[1]].astype(frames_BTD.dtype)
        return frames_BTD + run_stack(self.blocks, x, mask_BT, compute=self.compute)


class VisionEncoder(nnx.Module):
    """Encodes the frames of a clip into one vector per clip and one per frame. A page is a clip of one frame.

    Args:
        image_size: Side of the square input in pixels.
        normalisation: Pixel normalization, a key of NORMALISATIONS.
        stem: "patch" (ViT) or "conv" (a small convolutional network, whose patch size is 4·2^(stages − 1)).
        patch_size: Side of a patch in pixels.
        stem_widths, stem_blocks: Channels and residual blocks of the conv stem's stages, fine to coarse.
        width, depth, heads: Size of the ViT.
        pooling: Frame vector: "class" (class token, as in CLIP) or "mean" (of the patch tokens, which learns faster
            from scratch).
        activation: Activation of all blocks, "quick_gelu" (CLIP) or "gelu".
        cross_frame: Exchange messages between frames; otherwise the model is a plain CLIP ViT.
        integration_depth: Blocks over frame vectors; with 0, a clip is the mean of its frames.
        integration_heads: Attention heads of these blocks.
        output_width: Size of the frame and clip vectors.
        max_frames: Frames of the longest clip.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.
        compute: How to compute the layers.
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
        compute: ComputeOptions,
        rngs: nnx.Rngs,
    ):
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"unknown normalisation {normalisation!r}: choose one of {', '.join(NORMALISATIONS)}")
        self.normalisation, self.pooling, self.max_frames = normalisation, pooling, max_frames
        self.compute, dtype = compute, compute.dtype
        if stem == "patch":
            self.stem = PatchStem(width, patch_size, dtype=dtype, rngs=rngs)
        elif stem == "conv":
            self.stem = ConvStem(width, stem_widths, stem_blocks, dtype=dtype, rngs=rngs)
        else:
            raise ValueError(f"unknown stem {stem!r}: choose 'patch' or 'conv'")
        self.class_token = nnx.Param(EMBEDDING_INIT(rngs.params(), (width,)))
        self.position = nnx.Param(EMBEDDING_INIT(rngs.params(), ((image_size // patch_size) ** 2 + 1, width)))
        self.pre_norm = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        block = partial(ClipBlock, width, heads, messages=cross_frame, activation=activation, compute=compute)
        self.blocks = make_stack(block, depth, rngs=rngs)
        # None if all rates are 0, so that no masks are drawn.
        rates = tuple(drop_path * (1 - i / max(depth - 1, 1)) for i in reversed(range(depth)))
        self.drop_path_rates = rates if any(rates) else None
        self.post_norm = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.project = linear(width, output_width, use_bias=False, dtype=dtype, rngs=rngs)
        integrate = partial(FrameIntegration, depth=integration_depth, max_frames=max_frames, activation=activation)
        self.integration = (
            integrate(output_width, integration_heads, compute=compute, rngs=rngs) if integration_depth else None
        )

    def __call__(
        self,
        frames_BTHWC: UInt8[Array, "B T H W 3"],
        mask_BT: Bool[Array, "B T"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> VisionFeatures:
        """Encodes clips.

        Args:
            frames_BTHWC: RGB pixels, 0–255.
            mask_BT: False for frames without influence on their clip. A clip without frames gives 0.
            rngs: Random stream `dropout` for training; None for evaluation.
        """
        return self.encode(normalize(frames_BTHWC, self.normalisation), mask_BT, rngs=rngs)

    def encode(
        self, pixels_BTHWC: Float[Array, "B T H W 3"], mask_BT: Bool[Array, "B T"], *, rngs: nnx.Rngs | None = None
    ) -> VisionFeatures:
        """Encodes clips of normalized pixels."""
        T = pixels_BTHWC.shape[1]
        if self.max_frames < T:
            raise ValueError(f"clips of {T} frames exceed max_frames = {self.max_frames}")
        x = self.frame_tokens(pixels_BTHWC, mask_BT, rngs=rngs)
        frames = self.project(self.post_norm(x[:, :, 0] if self.pooling == "class" else x[:, :, 1:].mean(axis=-2)))
        if self.integration is not None:
            frames = self.integration(frames, mask_BT)
        return VisionFeatures(masked_mean(frames, mask_BT), frames)

    def frame_tokens(
        self, pixels_BTHWC: Float[Array, "B T H W 3"], mask_BT: Bool[Array, "B T"], *, rngs: nnx.Rngs | None
    ) -> Float[Array, "B T N D"]:
        """Returns the tokens of the last block; the class token comes first."""
        B, T, *image = pixels_BTHWC.shape
        patches = self.stem(pixels_BTHWC.reshape(B * T, *image).astype(self.compute.dtype))
        first = jnp.broadcast_to(self.class_token.astype(patches.dtype), (B * T, 1, patches.shape[-1]))
        x = jnp.concatenate([first, patches], axis=-2) + self.position[None].astype(patches.dtype)
        x = self.pre_norm(x).reshape(B, T, *x.shape[1:])
        rates = self.drop_path_rates
        layerwise = {} if rates is None else {"drop_path_rate": jnp.asarray(rates, jnp.float32)}
        return run_stack(self.blocks, x, mask_BT, compute=self.compute, layerwise=layerwise, rngs=rngs)
