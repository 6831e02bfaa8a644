"""First stage of the vision encoder: pixels to tokens."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cope_jax.models.layers import Linear, layer_norm

CONV_PATCH = 4  # side in pixels of the conv stem's first patches; each further stage doubles it


class Patches(nnx.Conv):
    """A linear map of each patch: a convolution without overlap, computed as a matrix product.

    XLA's convolutions with strides, and even more their gradients, are slower on a CPU: 5% of a step of the demo.
    """

    def __init__(
        self, channels: int, width: int, side: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, use_bias: bool = True
    ):
        super().__init__(channels, width, (side, side), strides=side, use_bias=use_bias, dtype=dtype, rngs=rngs)

    def __call__(self, inputs: Float[Array, "B H W C"], out_sharding: None = None) -> Float[Array, "B rows columns D"]:
        B, H, W, C = inputs.shape
        side = self.kernel_size[0]
        pixels = inputs.reshape(B, H // side, side, W // side, side, C).swapaxes(2, 3).reshape(-1, side * side * C)
        bias = None if self.bias is None else self.bias[...]
        pixels, kernel, bias = self.promote_dtype((pixels, self.kernel[...], bias), dtype=self.dtype)
        x = pixels @ kernel.reshape(pixels.shape[1], -1)
        return (x if bias is None else x + bias[None]).reshape(B, H // side, W // side, -1)


class PatchStem(nnx.Module):
    """ViT's stem: one linear map of each patch, in CLIP without bias. Pretrained weights need it."""

    def __init__(self, width: int, patch_size: int, *, use_bias: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.patches = Patches(3, width, patch_size, use_bias=use_bias, dtype=dtype, rngs=rngs)

    def __call__(self, images_BHWC: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """Returns one token per patch, row by row."""
        x = self.patches(images_BHWC)
        return x.reshape(x.shape[0], -1, x.shape[-1])


class ResidualBlock(nnx.Module):
    """A pre-norm residual pair of 3×3 convolutions."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = layer_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.first = nnx.Conv(width, width, (3, 3), dtype=dtype, rngs=rngs)
        self.second = nnx.Conv(width, width, (3, 3), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return x + self.second(jax.nn.relu(self.first(self.norm(x))))


class ConvStage(nnx.Module):
    """Merges patches into coarser ones, normalizes them and refines them with residual blocks."""

    def __init__(self, channels: int, width: int, *, patch_size: int, blocks: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.patches = Patches(channels, width, patch_size, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([ResidualBlock(width, dtype=dtype, rngs=rngs) for _ in range(blocks)])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B rows columns D"]:
        x = self.norm(self.patches(x))
        for block in self.blocks:
            x = block(x)
        return x


class ConvStem(nnx.Module):
    """A small convolutional network in front of the transformer, for training from scratch.

    Convolutions bring the locality that a ViT must learn from more data than is available (arXiv 2106.14881). The stem
    begins with patches of 4×4 pixels, because convolutions of a few channels at full resolution would take most of the
    time. Each further stage halves the resolution, so the patch size is 4·2^(stages − 1).
    """

    def __init__(
        self, width: int, widths: tuple[int, ...], blocks: tuple[int, ...], *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        sizes = (CONV_PATCH, *(2 for _ in widths[1:]))
        stages = zip((3, *widths[:-1]), widths, sizes, blocks, strict=True)
        self.stages = nnx.List(
            [ConvStage(c, w, patch_size=size, blocks=n, dtype=dtype, rngs=rngs) for c, w, size, n in stages]
        )
        self.project = Linear(widths[-1], width, dtype=dtype, rngs=rngs)

    def __call__(self, images_BHWC: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """Returns one token per patch, row by row."""
        x = images_BHWC
        for stage in self.stages:
            x = stage(x)
        x = self.project(x)
        return x.reshape(x.shape[0], -1, x.shape[-1])


def conv_patch_size(stages: int) -> int:
    """Returns the patch size of a conv stem in pixels: 4 for one stage, 16 for three."""
    return CONV_PATCH * 2 ** (stages - 1)
