"""Batches with repeated products, items of several products, and missing items."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cope_jax.losses.pairs import Pair, View
from cope_jax.parallel.mesh import make_mesh

PAIRS = (
    *(Pair("page", "video"), Pair("page", "live", 0.5), Pair("video", "live")),
    *(Pair("page.text", "page.vision", 0.25), Pair("page", "page_2", 2.0)),
)


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def make_views():
    """Returns a function that makes the views of a batch of B examples. Views of a page alone have its products."""

    def make(B: int, *, E: int = 5, seed: int = 0, missing: bool = True) -> dict[str, View]:
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, max(2 * B // 3, 1), B)  # some products are in the batch twice
        views = {}
        for name in ("page", "video", "live", "page_2"):
            products = np.full((B, 3), -1, np.int32)
            products[:, 0] = drawn
            products[: B // 3, 1] = rng.integers(0, B, B // 3)  # items of two products
            present = rng.random(B) > 0.2 if missing else np.ones(B, bool)
            views[name] = View(unit(rng.normal(size=(B, E))), products, present, np.arange(B, dtype=np.int32))
        for name in ("page.text", "page.vision"):
            present = views["page"].present & (rng.random(B) > 0.2 if missing else True)
            views[name] = views["page"]._replace(vectors=unit(rng.normal(size=(B, E))), present=present)
        return jax.tree.map(jnp.asarray, views)

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


def relative_error(found, expected) -> float:
    """Returns the norm of the difference of two trees, relative to the norm of the second one."""
    found, expected = (
        np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])
        for tree in (found, expected)
    )
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


PRECISIONS = pytest.mark.parametrize(("precision", "least", "most"), [("highest", 0.0, 1e-6), ("bfloat16", 1e-4, 1e-2)])


def check_rounding(found, expected, *, least: float, most: float) -> None:
    """Checks (loss, gradients) against float64: rounded factors change gradients by some thousandths of their norm."""
    (loss, gradients, *_), (expected_loss, expected_gradients, *_) = found, expected
    assert least < relative_error(gradients, expected_gradients) < most
    assert relative_error(loss, expected_loss) < most / 4


def as_float64(views):
    """Returns the views with float64 NumPy vectors."""
    return {name: view._replace(vectors=np.asarray(view.vectors, np.float64)) for name, view in views.items()}


def shared(a: View, b: View) -> np.ndarray:
    """Returns which items share a product, from Python sets."""
    a_sets, b_sets = ([set(np.asarray(row).tolist()) - {-1} for row in view.products] for view in (a, b))
    return np.array([[bool(x & y) for y in b_sets] for x in a_sets])
