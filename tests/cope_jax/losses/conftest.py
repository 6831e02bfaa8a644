"""Batches to compare losses on: products that return across the batch, items in several products, missing items."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cope_jax.losses.pairs import Pair, Side
from cope_jax.parallel.mesh import make_mesh

PAIRS = (Pair("page", "video"), Pair("page", "live", 0.5), Pair("video", "live"))


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def make_sides():
    """A function that makes the three sides of a batch of B examples."""

    def make(B: int, *, E: int = 5, seed: int = 0, missing: bool = True) -> dict[str, Side]:
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, max(2 * B // 3, 1), B)  # so that some products are in the batch twice
        sides = {}
        for name in ("page", "video", "live"):
            products = np.full((B, 3), -1, np.int32)
            products[:, 0] = drawn
            products[: B // 3, 1] = rng.integers(0, B, B // 3)  # items in two products, one of them another's
            present = rng.random(B) > 0.2 if missing else np.ones(B, bool)
            sides[name] = Side(unit(rng.normal(size=(B, E))), products, present, np.arange(B, dtype=np.int32))
        return jax.tree.map(jnp.asarray, sides)

    return make


@pytest.fixture(params=[(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2)], ids=str)
def mesh(request):
    """Meshes of one device and of eight."""
    data, fsdp, tensor = request.param
    return make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=jax.devices()[: data * fsdp * tensor])


@pytest.fixture
def one_device():
    """The mesh of one device."""
    return make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


def as_float64(sides):
    """The same as numpy, vectors in float64."""
    return {name: side._replace(vectors=np.asarray(side.vectors, np.float64)) for name, side in sides.items()}


def shared(a: Side, b: Side) -> np.ndarray:
    """Which items share a product, by Python's sets."""
    a_sets, b_sets = ([set(np.asarray(row).tolist()) - {-1} for row in side.products] for side in (a, b))
    return np.array([[bool(x & y) for y in b_sets] for x in a_sets])
