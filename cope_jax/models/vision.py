"""The vision encoder: X-CLIP's ViT with cross-frame communication and multi-frame integration (arXiv 2208.02816)."""

import jax
import jax.numpy as jnp
from flax import nnx

from cope_jax.models.layers import EMBEDDING_INIT, Attention, PreNormBlock, drop_path, layer_norm, masked_mean
from cope_jax.models.stems import ConvStem, PatchStem

# ImageNet's channel statistics on the 0–255 scale, as the authors normalise.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

POOLINGS = ("class", "mean")


def normalise(pixels_BHWC: jax.Array) -> jax.Array:
    """uint8[B, H, W, 3], 0–255 → float32[B, H, W, 3] of mean 0 and variance 1 over ImageNet."""
    return (pixels_BHWC.astype(jnp.float32) - jnp.asarray([[[MEAN]]])) / jnp.asarray([[[STD]]])


class CrossFrameBlock(nnx.Module):
    """A ViT block in which the frames of a clip speak to each other through message tokens.

    Each frame's class token goes through a linear layer and attends to those of the other frames; the outcome, the
    frame's message, is one more token for its own spatial attention and is dropped behind it.
    """

    def __init__(self, width: int, heads: int, *, drop_path: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.message_fc = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.message_norm = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.message_attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.block = PreNormBlock(
            width, heads, activation="quick_gelu", drop_path=drop_path, dtype=dtype, rngs=rngs
        )
        self.drop_path = drop_path

    def __call__(self, x_BTND: jax.Array, mask_BT: jax.Array, *, rngs: nnx.Rngs | None) -> jax.Array:
        """float[B, T, N, D] with the class token first, bool[B, T] → float[B, T, N, D]."""
        B, T, N, D = x_BTND.shape
        message = self.message_fc(x_BTND[:, :, 0])
        attended = self.message_attention(self.message_norm(message), mask_BT)
        message = message + drop_path(attended, self.drop_path, rngs)
        x = jnp.concatenate([x_BTND, message[:, :, None]], axis=-2).reshape(B * T, N + 1, D)
        return self.block(x, rngs=rngs)[:, :N].reshape(B, T, N, D)


class PlainBlock(nnx.Module):
    """The same ViT block without messages: frames are encoded one by one."""

    def __init__(self, width: int, heads: int, *, drop_path: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.block = PreNormBlock(
            width, heads, activation="quick_gelu", drop_path=drop_path, dtype=dtype, rngs=rngs
        )

    def __call__(self, x_BTND: jax.Array, mask_BT: jax.Array, *, rngs: nnx.Rngs | None) -> jax.Array:
        """float[B, T, N, D], bool[B, T] (unused) → float[B, T, N, D]."""
        B, T, N, D = x_BTND.shape
        return self.block(x_BTND.reshape(B * T, N, D), rngs=rngs).reshape(B, T, N, D)


class FrameIntegration(nnx.Module):
    """X-CLIP's multi-frame integration transformer: pre-norm blocks over frame embeddings, then their mean."""

    def __init__(
        self, width: int, heads: int, depth: int, max_frames: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.position = nnx.Param(EMBEDDING_INIT(rngs.params(), (max_frames, width)))
        self.blocks = nnx.List(
            [
                PreNormBlock(width, heads, activation="quick_gelu", drop_path=0.0, dtype=dtype, rngs=rngs)
                for _ in range(depth)
            ]
        )

    def __call__(self, frames_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """float[B, T, D], bool[B, T] → float32[B, D], the mean over the frames that the mask keeps."""
        x = frames_BTD + self.position[None, : frames_BTD.shape[1]].astype(frames_BTD.dtype)
        for block in self.blocks:
            x = block(x, mask_BT, rngs=None)
        return masked_mean(frames_BTD + x, mask_BT)


class VisionEncoder(nnx.Module):
    """Frames of a clip → one vector. A page is a clip of one frame.

    Args:
        image_size: side of the square input, pixels.
        stem: "patch" (ViT) or "conv" (a small convolutional network; its patch size is 2^len(stem_widths)).
        patch_size: side of a patch, pixels.
        stem_widths, stem_blocks: channels and residual blocks of the conv stem's stages, fine to coarse.
        width, depth, heads: of the ViT.
        pooling: a frame's vector: "class" (the class token, as in CLIP) or "mean" (of the patches' tokens, which
            learns faster from scratch).
        cross_frame: whether blocks exchange messages between frames.
        integration_depth: blocks over frame embeddings; 0 takes their plain mean.
        output_width: size of a frame's and of the clip's vector.
        max_frames: the longest clip the integration has positions for.
        drop_path: stochastic depth of the last block; it rises linearly from 0 at the first.
        dtype: of the computation; parameters are float32.
    """

    def __init__(
        self,
        *,
        image_size: int,
        stem: str,
        patch_size: int,
        stem_widths: tuple[int, ...],
        stem_blocks: tuple[int, ...],
        width: int,
        depth: int,
        heads: int,
        pooling: str,
        cross_frame: bool,
        integration_depth: int,
        integration_heads: int,
        output_width: int,
        max_frames: int,
        drop_path: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        self.dtype = dtype
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
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nnx.List(
            [block(width, heads, drop_path=rate, dtype=dtype, rngs=rngs) for rate in rates]
        )
        self.post_norm = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.project = nnx.Linear(width, output_width, use_bias=False, dtype=dtype, rngs=rngs)
        self.integration = FrameIntegration(
            output_width, integration_heads, integration_depth, max_frames, dtype=dtype, rngs=rngs
        )

    def frame_tokens(self, frames_BTHWC: jax.Array) -> jax.Array:
        """uint8[B, T, H, W, 3] → float[B, T, N + 1, D]: class token first, positions added, normalised."""
        B, T, *image = frames_BTHWC.shape
        patches = self.stem(normalise(frames_BTHWC.reshape(B * T, *image)).astype(self.dtype))
        first = jnp.broadcast_to(self.class_token.astype(self.dtype), (B * T, 1, patches.shape[-1]))
        tokens = jnp.concatenate([first, patches], axis=-2) + self.position[None].astype(self.dtype)
        return self.pre_norm(tokens).reshape(B, T, *tokens.shape[1:])

    def __call__(
        self, frames_BTHWC: jax.Array, mask_BT: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Encodes clips.

        Args:
            frames_BTHWC: uint8[B, T, H, W, 3], 0–255.
            mask_BT: bool[B, T]; a False frame has no influence on its clip, a clip of False frames gives 0.
            rngs: holds the stream `dropout` for training; None means evaluation.

        Returns:
            float32[B, output_width].
        """
        T = frames_BTHWC.shape[1]
        if self.max_frames < T:
            raise ValueError(f"clips of {T} frames exceed max_frames = {self.max_frames}")
        x = self.frame_tokens(frames_BTHWC)
        for block in self.blocks:
            x = block(x, mask_BT, rngs=rngs)
        x = self.post_norm(x[:, :, 0] if self.pooling == "class" else x[:, :, 1:].mean(axis=-2))
        return self.integration(self.project(x), mask_BT)
