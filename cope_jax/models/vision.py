"""The vision encoder: a ViT of CLIP or SigLIP, with X-CLIP's interaction of frames (arXiv 2208.02816)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, UInt8

from cope_jax.models.dropout import DropoutRngs, Rate, dropout
from cope_jax.models.layers import (
    EMBEDDING_INIT,
    Attention,
    AttentionPool,
    BlockSettings,
    ComputeOptions,
    Linear,
    PreNormBlock,
    check_choice,
    layer_norm,
    make_stack,
    masked_mean,
    run_stack,
)
from cope_jax.models.stems import ConvStem, PatchStem

# Mean and standard deviation of the channels on the scale 0–255: of ImageNet, which the authors and X-CLIP use, and of
# CLIP's training data, which CLIP and Chinese-CLIP weights expect. SigLIP maps pixels to −1 … 1.
NORMALISATIONS = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "clip": ((122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)),
    "siglip": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
}
STEMS = ("patch", "conv")
POOLINGS = ("class", "mean", "attention")
# Families of ViTs and the epsilon of their norms. CLIP's has a class token, a norm before the blocks, and a projection;
# SigLIP's has none of these, and a bias in the stem.
FAMILIES = {"clip": 1e-5, "siglip": 1e-6}
ACROSS_FRAMES = ("xclip", "gated")

Pixels = Float[Array, "B T H W 3"]
FrameTokens = Float[Array, "B T N D"]
# False for frames that receive no attention; with two axes of frames, from those along the first.
FrameMask = Bool[Array, "B T"] | Bool[Array, "B T T"]


class VisionFeatures(NamedTuple):
    """Output of the vision encoder."""

    vector: Float32[Array, "B D"]  # mean of the clip's frame vectors, 0 for a clip without frames
    frames: Float[Array, "B T D"]  # frame vectors, arbitrary at masked frames


def normalize(frames_BTHWC: UInt8[Array, "B T H W 3"], normalisation: str) -> Float32[Array, "B T H W 3"]:
    """Normalizes pixels to mean 0 and variance 1 over the data set `normalisation`."""
    mean, deviation = (jnp.asarray([[[[values]]]]) for values in NORMALISATIONS[normalisation])
    return (frames_BTHWC.astype(jnp.float32) - mean) / deviation


class ClipBlock(nnx.Module):
    """A ViT block over the frames of clips, which can exchange messages.

    For messages, each frame's class token passes a linear layer and attends to those of its clip. The result replaces
    the frame's last token in its spatial attention; the block's output there is not used. If messages are gated, the
    mean of a frame's tokens takes the place of the class token, and the result, times a gate that starts at 0, is added
    to all tokens of the frame.
    """

    def __init__(
        self, settings: BlockSettings, *, messages: bool, gated: bool, compute: ComputeOptions, rngs: nnx.Rngs
    ):
        self.messages, self.gated = messages, gated
        if messages:
            width = settings.width
            self.message_fc = Linear(width, width, dtype=compute.dtype, rngs=rngs)
            self.message_norm = layer_norm(width, epsilon=1e-5, dtype=compute.dtype, rngs=rngs)
            self.message_attention = Attention(width, settings.heads, compute=compute, rngs=rngs)
            self.message_gate = nnx.Param(jnp.zeros(width, jnp.float32)) if gated else None
        self.block = PreNormBlock(settings, compute=compute, rngs=rngs)

    def __call__(
        self, x_BTND: FrameTokens, visible: FrameMask, *, drop_path_rate: Rate = 0.0, rngs: DropoutRngs | None
    ) -> FrameTokens:
        """Updates the tokens of all frames: class token, patches and, for messages without gates, one for the message.

        Args:
            x_BTND: Tokens.
            visible: Which frames of the clips are attended to.
            drop_path_rate: Rate of stochastic depth.
            rngs: Keys of the examples for training.
        """
        B, T, N, D = x_BTND.shape
        if self.messages:
            message = self.message_fc(x_BTND.mean(axis=2) if self.gated else x_BTND[:, :, 0])
            attended = self.message_attention(self.message_norm(message), visible)
            message = message + dropout(attended, drop_path_rate, rngs, per_row=True)
            if self.message_gate is not None:
                x_BTND = x_BTND + (message * self.message_gate.astype(message.dtype)[None, None])[:, :, None]
            else:
                # A selection is computed together with what reads it; a concatenation would copy all tokens.
                is_message = (np.arange(N) == N - 1)[None, None, :, None]
                x_BTND = jnp.where(is_message, message[:, :, None], x_BTND)
        x = self.block(x_BTND.reshape(B * T, N, D), drop_path_rate=drop_path_rate, rngs=rngs)
        return x.reshape(B, T, N, D)


class FrameIntegration(nnx.Module):
    """X-CLIP's multi-frame integration transformer: pre-norm blocks over the frame vectors of a clip.

    If it is gated, its output is multiplied by a gate that starts at 0 before it is added to the frame vectors.
    """

    def __init__(
        self, settings: BlockSettings, depth: int, frames: int, *, gated: bool, compute: ComputeOptions, rngs: nnx.Rngs
    ):
        self.compute, width = compute, settings.width
        self.gate = nnx.Param(jnp.zeros(width, jnp.float32)) if gated else None
        self.position = nnx.Param(EMBEDDING_INIT(rngs.params(), (frames, width)))
        block = partial(PreNormBlock, settings, compute=compute)
        self.blocks = make_stack(block, depth, rngs=rngs)

    def __call__(self, frames_BTD: Float[Array, "B T D"], mask_BT: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        x = frames_BTD + self.position[None, : frames_BTD.shape[1]].astype(frames_BTD.dtype)
        x = run_stack(self.blocks, x, mask_BT, compute=self.compute)
        return frames_BTD + (x if self.gate is None else x * self.gate.astype(x.dtype)[None, None])


@dataclass(frozen=True, kw_only=True)
class VisionSettings:
    """Settings of the vision encoder."""

    image_size: int  # side of the square input in pixels
    normalisation: str  # pixel normalization, a key of NORMALISATIONS
    stem: str  # "patch" (ViT) or "conv" (a small convolutional network, whose patch size is 4·2^(stages − 1))
    patch_size: int  # side of a patch in pixels
    family: str  # "clip" (X-CLIP, CLIP, Chinese-CLIP) or "siglip" (SigLIP, SigLIP 2)
    stem_widths: tuple[int, ...]  # channels of the conv stem's stages, fine to coarse
    stem_blocks: tuple[int, ...]  # residual blocks of these stages
    width: int  # of the tokens
    depth: int  # number of blocks
    heads: int  # number of attention heads
    mlp_width: int  # of the hidden layers of its blocks; 0 is 4 times the width
    # Frame vector: "class" (class token, as in CLIP), "mean" (of the patch tokens, which learns faster from scratch) or
    # "attention" (a learned probe attends to the tokens, as in SigLIP).
    pooling: str
    activation: str  # of all blocks, "quick_gelu" (CLIP), "gelu" or "gelu_tanh" (SigLIP)
    # Messages and integration are those of X-CLIP ("xclip"), or "gated": they start without effect, so that the model
    # begins as the image model of its weights.
    across_frames: str
    cross_frame: bool  # exchange messages between frames; otherwise the model is a plain ViT
    integration_depth: int  # blocks over frame vectors; with 0, a clip is the mean of its frames
    integration_heads: int  # attention heads of these blocks
    output_width: int  # size of the frame and clip vectors
    max_frames: int  # frames of the longest clip
    # A clip of one frame enters the integration as `max_frames` equal frames at all positions, as in X-CLIP, where the
    # addition of the positions broadcasts it; otherwise at the first position.
    broadcast_single_frame: bool
    drop_path: float  # stochastic depth of the last block; it rises linearly from 0 at the first

    def __post_init__(self) -> None:
        """Raises ValueError if settings have none of their possible values, or do not fit each other."""
        check_choice("stem", self.stem, STEMS)
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("normalisation", self.normalisation, NORMALISATIONS)
        check_choice("family", self.family, FAMILIES)
        check_choice("across_frames", self.across_frames, ACROSS_FRAMES)
        needs_class_token = self.pooling == "class" or (self.cross_frame and not self.gated)
        if self.family != "clip" and needs_class_token:
            raise ValueError(
                f"family {self.family!r} has no class token, which pooling and messages need; change these"
            )

    @property
    def gated(self) -> bool:
        """Whether messages and integration have gates."""
        return self.across_frames == "gated"


class VisionEncoder(nnx.Module):
    """Encodes the frames of a clip into one vector per clip and one per frame. A page is a clip of one frame."""

    def __init__(self, settings: VisionSettings, *, compute: ComputeOptions, rngs: nnx.Rngs):
        self.settings, self.compute = settings, compute
        width, output_width, depth, dtype = settings.width, settings.output_width, settings.depth, compute.dtype
        has_class_token, epsilon = settings.family == "clip", FAMILIES[settings.family]
        shared = BlockSettings(width, settings.heads, settings.activation, settings.mlp_width, epsilon)
        if settings.stem == "patch":
            self.stem = PatchStem(width, settings.patch_size, use_bias=not has_class_token, dtype=dtype, rngs=rngs)
        else:
            self.stem = ConvStem(width, settings.stem_widths, settings.stem_blocks, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(EMBEDDING_INIT(rngs.params(), (width,))) if has_class_token else None
        rows = (settings.image_size // settings.patch_size) ** 2 + has_class_token
        self.position = nnx.Param(EMBEDDING_INIT(rngs.params(), (rows, width)))
        self.pre_norm = layer_norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs) if has_class_token else None
        options = {"gated": settings.gated, "compute": compute}
        self.blocks = make_stack(partial(ClipBlock, shared, messages=settings.cross_frame, **options), depth, rngs=rngs)
        # None if all rates are 0, so that no masks are drawn.
        rates = tuple(settings.drop_path * (1 - i / max(depth - 1, 1)) for i in reversed(range(depth)))
        self.drop_path_rates = rates if any(rates) else None
        self.post_norm = layer_norm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.head = AttentionPool(shared, compute=compute, rngs=rngs) if settings.pooling == "attention" else None
        project = partial(Linear, width, output_width, use_bias=False, dtype=dtype, rngs=rngs)
        self.project = project() if has_class_token or output_width != width else None
        vectors = BlockSettings(output_width, settings.integration_heads, settings.activation)
        integrate = partial(FrameIntegration, vectors, settings.integration_depth, settings.max_frames, **options)
        self.integration = integrate(rngs=rngs) if settings.integration_depth else None

    def __call__(
        self, frames_BTHWC: UInt8[Array, "B T H W 3"], mask_BT: Bool[Array, "B T"], *, rngs: DropoutRngs | None = None
    ) -> VisionFeatures:
        """Encodes one clip per example.

        Args:
            frames_BTHWC: RGB pixels, 0–255.
            mask_BT: False for frames without influence on their clip. A clip without frames gives 0.
            rngs: Keys of the examples for training; None for evaluation.
        """
        return self.encode_clips([(frames_BTHWC, mask_BT)], rngs=rngs)[0]

    def encode_clips(
        self, clips: Sequence[tuple[UInt8[Array, "B _ H W 3"], Bool[Array, "B _"]]], *, rngs: DropoutRngs | None = None
    ) -> list[VisionFeatures]:
        """Encodes several clips per example, of any lengths, with one pass of all frames through the blocks.

        Each layer's parameters are read once, and their gradients summed over devices once. Clips are joined along the
        axis of frames, since examples are on different devices.
        """
        frames, masks = (jnp.concatenate(arrays, axis=1) for arrays in zip(*clips, strict=True))
        lengths = [mask.shape[1] for _, mask in clips]
        x = self.encode_pixels(normalize(frames, self.settings.normalisation), masks, lengths=lengths, rngs=rngs)
        ends = [sum(lengths[: i + 1]) for i in range(len(lengths) - 1)]
        vectors = zip(jnp.split(x, ends, axis=1), (mask for _, mask in clips), strict=True)
        return self.integrate(list(vectors))

    def integrate(self, clips: Sequence[tuple[Float[Array, "B _ D"], Bool[Array, "B _"]]]) -> list[VisionFeatures]:
        """Returns the features of clips from the vectors of their frames, in one pass of clips of the same length."""
        if self.integration is not None:
            copies = [
                self.settings.max_frames if self.settings.broadcast_single_frame and mask.shape[1] == 1 else 1
                for _, mask in clips
            ]
            sizes = [mask.shape[1] * n for (_, mask), n in zip(clips, copies, strict=True)]

            def pad(array: Array, n: int) -> Array:
                array = jnp.repeat(array, n, axis=1)
                return jnp.pad(array, [(0, 0), (0, max(sizes) - array.shape[1]), *[(0, 0)] * (array.ndim - 2)])

            x, mask = (jnp.stack(list(map(pad, arrays, copies)), axis=1) for arrays in zip(*clips, strict=True))
            B, K, T, D = x.shape
            x = self.integration(x.reshape(B * K, T, D), mask.reshape(B * K, T)).reshape(B, K, T, D)
            mixed = [x[:, i, :size] for i, size in enumerate(sizes)]
            clips = [
                (x if n == 1 else x.mean(axis=1, keepdims=True), mask)
                for x, n, (_, mask) in zip(mixed, copies, clips, strict=True)
            ]
        return [VisionFeatures(masked_mean(x, mask), x) for x, mask in clips]

    def encode_pixels(
        self,
        pixels_BTHWC: Pixels,
        mask_BT: Bool[Array, "B T"],
        *,
        lengths: Sequence[int],
        rngs: DropoutRngs | None = None,
    ) -> Float[Array, "B T D"]:
        """Returns the vectors of normalized frames, before integration."""
        if self.settings.max_frames < max(lengths):
            raise ValueError(f"clips of {max(lengths)} frames exceed max_frames = {self.settings.max_frames}")
        x = self.frame_tokens(pixels_BTHWC, mask_BT, lengths=lengths, rngs=rngs)
        vectors = self.pool(x)
        return vectors if self.project is None else self.project(vectors)

    def pool(self, x_BTND: FrameTokens) -> Float[Array, "B T D"]:
        """Returns the vectors of frames, before the projection."""
        if self.head is not None:
            B, T, N, D = x_BTND.shape
            return self.head(self.post_norm(x_BTND).reshape(B * T, N, D)).reshape(B, T, D)
        patches = x_BTND if self.class_token is None else x_BTND[:, :, 1:]
        return self.post_norm(x_BTND[:, :, 0] if self.settings.pooling == "class" else patches.mean(axis=-2))

    def frame_tokens(
        self, pixels_BTHWC: Pixels, mask_BT: Bool[Array, "B T"], *, lengths: Sequence[int], rngs: DropoutRngs | None
    ) -> FrameTokens:
        """Returns the tokens of the last block: the class token, if there is one, and the patches."""
        B, T, *image = pixels_BTHWC.shape
        x = self.stem(pixels_BTHWC.reshape(B * T, *image).astype(self.compute.dtype))
        if self.class_token is not None:
            first = jnp.broadcast_to(self.class_token.astype(x.dtype), (B * T, 1, x.shape[-1]))
            x = jnp.concatenate([first, x], axis=-2)
        x = x + self.position[None].astype(x.dtype)
        x, N = x if self.pre_norm is None else self.pre_norm(x), x.shape[-2]
        if self.settings.cross_frame and not self.settings.gated:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))  # the place of the message
        rates = self.drop_path_rates
        layerwise = {} if rates is None else {"drop_path_rate": jnp.asarray(rates, jnp.float32)}
        x = x.reshape(B, T, *x.shape[1:])
        x = run_stack(
            self.blocks, x, within_clips(mask_BT, lengths), compute=self.compute, layerwise=layerwise, rngs=rngs
        )
        return x[:, :, :N]


def within_clips(mask_BT: Bool[Array, "B T"], lengths: Sequence[int]) -> FrameMask:
    """Returns which frames a frame sees: the unmasked ones of its clip. One clip needs no second axis."""
    if len(lengths) == 1:
        return mask_BT
    clip_T = np.repeat(np.arange(len(lengths)), lengths)
    return mask_BT[:, None, :] & (clip_T[:, None] == clip_T[None, :])[None]
