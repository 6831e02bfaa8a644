"""Ways of computing the same: layers scanned or not, rematerialised or not, half the bits, cuDNN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cope_jax.models.compute import Compute
from cope_jax.models.cope import FUSIONS

PARTS = {"vision": {"drop_path": 0.2}, "text": {"dropout": 0.1}, "fusion": "transformer"}


def loss_and_gradients(model, items):
    """Of a training step, with dropout."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        found = nnx.merge(graphdef, params, rest)(items, rngs=nnx.Rngs(dropout=7))
        return sum(jnp.sin(5 * e.fused).sum() + jnp.cos(3 * e.text).sum() for e in found.values())

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    return float(value), nnx.to_pure_dict(gradients)


@pytest.fixture(scope="module")
def items(random_items):
    items = random_items(3, 4)
    items["frame_mask"][0, 2:] = False
    items["text"][1, 3:] = 0
    return {"video": items}


@pytest.fixture(scope="module")
def scanned(make_cope, items):
    """Loss and gradients of the model as it is by default."""
    return loss_and_gradients(make_cope(**PARTS), items)


@pytest.mark.parametrize(("scan_layers", "remat"), [(False, "dots"), (True, "block")])
def test_the_whole_model_trains_the_same_whichever_way_its_layers_run(make_cope, items, scanned, scan_layers, remat):
    value, gradients = loss_and_gradients(make_cope(**PARTS, scan_layers=scan_layers, remat=remat), items)
    assert value == pytest.approx(scanned[0], rel=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6 * largest), gradients, scanned[1])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_bfloat16_embeddings_point_where_float32_ones_do(call, make_cope, random_items, fusion):
    sizes = {
        "vision": {"width": 96, "output_width": 64, "drop_path": 0.1},
        "text": {"width": 64},
        "fusion": fusion,
        "noise": 0.02,
    }
    items = {"page": random_items(3, 1), "live": random_items(3, 5, seed=1)}
    exact = call(make_cope(**sizes), items)
    rounded = call(make_cope(**sizes, dtype=jnp.dtype("bfloat16")), items)
    for domain in items:
        for view in ("fused", "vision", "text"):
            a, b = getattr(exact[domain], view), getattr(rounded[domain], view)
            assert b.dtype == jnp.float32
            assert float((a * b).sum(-1).min()) > 0.999, (domain, view)
            assert np.abs(a - b).max() > 1e-5  # that is, bfloat16 was at work


def test_cudnn_is_used_where_it_fits(monkeypatch):
    def choice(head_size=64, *, dtype="bfloat16", attention="auto", masked=False):
        return Compute(jnp.dtype(dtype), attention=attention).attention_implementation(head_size, masked=masked)

    assert choice() == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choice() == choice(128) == choice(dtype="float16") == "cudnn"
    assert choice(dtype="float32") == choice(60) == choice(136) == choice(masked=True) == "xla"
    assert choice(attention="xla") == "xla"
    assert choice(60, attention="cudnn") == "cudnn"  # asked for by name: an error is better than another way
    assert choice(attention="cudnn", masked=True) == "xla"


def test_cudnn_by_name_reaches_the_attention(make_cope, items):
    """There is none here to run on, and jax says so."""
    with pytest.raises(RuntimeError, match=r"cuDNN is not detected"):
        make_cope(dtype=jnp.dtype("bfloat16"), attention="cudnn")(items)
