"""A tiny model and items for it, all sizes distinct."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cope_jax.models.compute import Compute
from cope_jax.models.cope import CopeModel

VISION = {
    "image_size": 16,
    "normalisation": "imagenet",
    "stem": "patch",
    "patch_size": 8,
    "stem_widths": (),
    "stem_blocks": (),
    "width": 12,
    "depth": 2,
    "heads": 3,
    "pooling": "class",
    "activation": "quick_gelu",
    "cross_frame": True,
    "integration_depth": 1,
    "integration_heads": 2,
    "output_width": 10,
    "max_frames": 5,
    "drop_path": 0.0,
}
TEXT = {
    "vocab_size": 23,
    "max_length": 7,
    "width": 8,
    "depth": 2,
    "heads": 2,
    "pooling": "pooler",
    "dropout": 0.0,
}
FUSION = {"kind": "linear", "width": 14, "depth": 2, "heads": 2}


@pytest.fixture(scope="session")
def encoder_settings():
    """The arguments of the tiny model's encoders."""
    return {"vision": VISION, "text": TEXT}


@pytest.fixture(scope="session")
def make_cope():
    """A function that makes the tiny model with some settings changed."""

    def make(
        *,
        vision=None,
        text=None,
        fusion="linear",
        text_domains=("page", "video", "live"),
        head_norm="none",
        noise=0.3,
        **compute,
    ) -> CopeModel:
        model = CopeModel(
            embedding=6,
            vision=VISION | (vision or {}),
            text=TEXT | (text or {}),
            fusion=FUSION | {"kind": fusion},
            text_domains=text_domains,
            head_norm=head_norm,
            compute=Compute(**{"dtype": jnp.dtype("float32")} | compute),
            rngs=nnx.Rngs(params=3),
        )
        # Fresh biases are 0, and a bias that gets past a mask would not show.
        rng = np.random.default_rng(0)
        graphdef, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
        noisy = jax.tree.map(lambda x: x + noise * rng.normal(size=x.shape).astype(np.float32), params)
        return nnx.merge(graphdef, noisy, statistics)

    return make


@pytest.fixture(scope="session")
def call():
    """A function that calls a module compiled: op by op, each shape would compile a hundred small programs."""
    return nnx.jit(lambda module, *args: module(*args))


@pytest.fixture(scope="session")
def cope(make_cope) -> CopeModel:
    """The tiny model as it is."""
    return make_cope()


@pytest.fixture(scope="session")
def random_items():
    """A function that makes items with every frame and full texts."""

    def make(B: int, T: int, *, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {
            "frames": rng.integers(0, 256, (B, T, 16, 16, 3), dtype=np.uint8),
            "frame_mask": np.ones((B, T), bool),
            "text": rng.integers(1, 23, (B, 7), dtype=np.int32),
        }

    return make
