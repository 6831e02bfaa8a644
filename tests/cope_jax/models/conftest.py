"""A tiny model and items for it; all sizes are different."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cope_jax.models.cope import CopeModel
from cope_jax.models.layers import ComputeOptions

VISION = {
    "image_size": 16,
    "normalisation": "imagenet",
    "stem": "patch",
    "patch_size": 8,
    "family": "clip",
    "stem_widths": (),
    "stem_blocks": (),
    "width": 12,
    "depth": 2,
    "heads": 3,
    "mlp_width": 0,
    "pooling": "class",
    "activation": "quick_gelu",
    "across_frames": "xclip",
    "cross_frame": True,
    "integration_depth": 1,
    "integration_heads": 2,
    "output_width": 10,
    "max_frames": 5,
    "broadcast_single_frame": False,
    "drop_path": 0.0,
}
TEXT = {
    "vocab_size": 23,
    "max_length": 7,
    "family": "bert",
    "width": 8,
    "depth": 2,
    "heads": 2,
    "mlp_width": 0,
    "activation": "gelu",
    "output_width": 0,
    "pooling": "pooler",
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
FUSION = {"kind": "linear", "width": 14, "depth": 2, "heads": 2}


@pytest.fixture(scope="session")
def encoder_settings():
    """Arguments of the tiny model's encoders."""
    return {"vision": VISION, "text": TEXT}


@pytest.fixture(scope="session")
def make_cope():
    """Returns a function that makes the tiny model with changed settings."""

    def make(
        *,
        vision=None,
        text=None,
        fusion="linear",
        text_domains=("page", "video", "live"),
        head_norm="none",
        axes="learned",
        noise=0.3,
        **compute,
    ) -> CopeModel:
        model = CopeModel(
            embedding=6,
            vision=VISION | (vision or {}),
            text=TEXT | (text or {}),
            fusion=FUSION | {"kind": fusion},
            domains=("page", "video", "live"),
            text_domains=text_domains,
            head_norm=head_norm,
            axes=axes,
            compute=ComputeOptions(**{"dtype": jnp.dtype("float32")} | compute),
            rngs=nnx.Rngs(params=3),
        )
        # Initial biases are 0, so a bias that passes a mask would not be visible.
        rng = np.random.default_rng(0)
        graphdef, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
        noisy = jax.tree.map(lambda x: x + noise * rng.normal(size=x.shape).astype(np.float32), params)
        return nnx.merge(graphdef, noisy, statistics)

    return make


@pytest.fixture(scope="session")
def call():
    """Returns a function that calls a compiled module: op by op, each shape would compile a hundred small programs."""
    return nnx.jit(lambda module, *args: module(*args))


@pytest.fixture(scope="session")
def cope(make_cope) -> CopeModel:
    """The tiny model."""
    return make_cope()


@pytest.fixture(scope="session")
def random_items():
    """Returns a function that makes items with all frames and full texts."""

    def make(B: int, T: int, *, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {
            "frames": rng.integers(0, 256, (B, T, 16, 16, 3), dtype=np.uint8),
            "frame_mask": np.ones((B, T), bool),
            "text": rng.integers(1, 23, (B, 7), dtype=np.int32),
        }

    return make
