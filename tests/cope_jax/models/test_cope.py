"""The whole model: shapes, masks, encoders shared by domains, and options that must not change its results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cope_jax.models.dropout import DropoutRngs
from cope_jax.models.fusion import FUSIONS

PARTS = {"vision": {"drop_path": 0.2}, "text": {"dropout": 0.1}, "fusion": "transformer"}


@pytest.fixture(scope="module", params=FUSIONS)
def cope(make_cope, request):
    """The tiny model with each kind of fusion."""
    return make_cope(fusion=request.param)


def test_embeddings_have_length_one_and_the_documented_shapes(call, cope, random_items):
    found = call(cope, {"page": random_items(4, 1), "live": random_items(4, 5)})
    assert found["page"].fused.shape == (4, 6)
    assert found["live"].text.shape == (4, 6)
    for embeddings in found.values():
        for vectors in (embeddings.fused, embeddings.vision, embeddings.text):
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1.0, rtol=1e-5)
            assert vectors.dtype == np.float32


@pytest.mark.slow
def test_domains_encoded_together_equal_each_encoded_alone(call, cope, random_items):
    items = {
        "page": random_items(3, 1),
        "video": random_items(3, 4, seed=1),
        "live": random_items(3, 2, seed=2),
    }
    together = call(cope, items)
    for domain, item in items.items():
        alone = call(cope, {domain: item})[domain]
        np.testing.assert_allclose(together[domain].fused, alone.fused, rtol=2e-4, atol=1e-5)


def test_domains_have_different_fusion_heads(call, cope, random_items):
    items = random_items(3, 2)
    found = call(cope, {"page": items, "video": items})
    assert np.abs(found["page"].fused - found["video"].fused).max() > 0.05


def test_training_measures_the_second_moments_of_whole_embeddings(make_cope, random_items):
    cope = make_cope(axes="measured")
    items = {"page": random_items(3, 1), "live": random_items(3, 4, seed=1)}
    rngs = DropoutRngs(jax.random.split(jax.random.key(0), 3))
    found = nnx.jit(lambda module, batch: module(batch, rngs=rngs))(cope, items)
    vectors = np.concatenate([found["page"].fused, found["live"].fused]).astype(np.float64)
    expected = 0.99 * np.eye(6) + 0.01 * vectors.T @ vectors / 6
    np.testing.assert_allclose(cope.moments[...], expected, atol=1e-6)


def test_principal_axes_rotate_embeddings_in_evaluation(call, make_cope, random_items):
    items, cope = random_items(4, 3), make_cope(axes="principal")
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0].astype(np.float32)
    plain = call(make_cope(), {"live": items})["live"]
    cope.axes[...] = axes
    rotated = call(cope, {"live": items})["live"]
    for kind in ("fused", "vision", "text"):
        np.testing.assert_allclose(getattr(rotated, kind), getattr(plain, kind) @ axes, rtol=1e-4, atol=1e-6)
    masked = nnx.jit(lambda module, batch: module.embed_masked(batch))(cope, {"live": items})
    np.testing.assert_allclose(masked[:, 0], rotated.fused, rtol=1e-4, atol=1e-6)


def test_masked_frames_do_not_change_an_embedding(call, cope, random_items):
    items = random_items(3, 4)
    items["frame_mask"][:, 2:] = False
    changed = items | {"frames": items["frames"].copy()}
    changed["frames"][:, 2:] = 255 - changed["frames"][:, 2:]
    before, after = (call(cope, {"video": i})["video"].fused for i in (items, changed))
    np.testing.assert_array_equal(before, after)
    unmasked = call(cope, {"video": changed | {"frame_mask": np.ones((3, 4), bool)}})["video"].fused
    assert np.abs(unmasked - before).max() > 1e-3


def test_a_masked_clip_equals_a_shorter_one(call, cope, random_items):
    items = random_items(3, 4)
    items["frame_mask"][:, 3:] = False
    shorter = {
        "frames": items["frames"][:, :3],
        "frame_mask": items["frame_mask"][:, :3],
        "text": items["text"],
    }
    long, short = (call(cope, {"video": i})["video"].fused for i in (items, shorter))
    np.testing.assert_allclose(long, short, rtol=2e-4, atol=1e-5)


def test_the_order_of_frames_matters(call, cope, random_items):
    items = random_items(3, 4)
    forward, backward = (
        call(cope, {"video": items | {"frames": frames}})["video"].fused
        for frames in (items["frames"], items["frames"][:, ::-1].copy())
    )
    assert np.abs(forward - backward).max() > 1e-3


def test_a_missing_text_is_zero_and_changes_the_fused_embedding(call, cope, random_items):
    items = random_items(4, 2)
    items["text"][1] = 0
    embeddings = call(cope, {"live": items})["live"]
    assert embeddings.has_text.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(embeddings.text[1], np.zeros(6))
    full = call(cope, {"live": random_items(4, 2)})["live"]
    np.testing.assert_allclose(embeddings.vision, full.vision, rtol=2e-4, atol=1e-5)
    assert np.abs(embeddings.fused[1] - full.fused[1]).max() > 1e-3


def test_masked_embeddings_equal_those_of_items_without_frames_or_texts(cope, random_items):
    items = random_items(4, 3)
    items["text"][1], items["frame_mask"][2] = 0, False
    items["frame_mask"][3, 1:] = False
    found = nnx.jit(lambda model, item: model.embed_masked({"video": item}))(cope, items)
    no_text, no_frames = items | {"text": 0 * items["text"]}, items | {"frame_mask": 0 * items["frame_mask"] > 0}
    embed = nnx.jit(lambda model, item: model({"video": item})["video"].fused)
    for part, changed in enumerate((items, no_text, no_frames)):
        np.testing.assert_allclose(found[:, part], embed(cope, changed), rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(np.linalg.norm(found, axis=-1).round(5)[1:3], [[1, 1, 0], [1, 0, 1]])


def test_mean_fusion_is_the_mean_of_the_unit_vectors_there_are(call, make_cope, random_items):
    items = random_items(3, 2)
    items["text"][1] = 0
    found = call(make_cope(fusion="mean"), {"live": items})["live"]
    mean = (found.vision + found.text) / np.linalg.norm(found.vision + found.text, axis=-1, keepdims=True)
    np.testing.assert_allclose(found.fused, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.fused[1], found.vision[1], rtol=1e-5, atol=1e-6)


def test_padding_tokens_do_not_change_a_text(call, cope, random_items):
    items = random_items(3, 1)
    items["text"][:, 4:] = 0
    shorter = items | {"text": items["text"][:, :5]}
    long, short = (call(cope, {"page": i})["page"].text for i in (items, shorter))
    np.testing.assert_allclose(long, short, rtol=2e-4, atol=1e-5)


def test_a_missing_item_is_zero(call, cope, random_items):
    items = random_items(2, 3)
    items["frame_mask"][1], items["text"][1] = False, 0
    embeddings = call(cope, {"video": items})["video"]
    for vectors in (embeddings.fused, embeddings.vision, embeddings.text):
        np.testing.assert_array_equal(vectors[1], np.zeros(6))
        assert np.abs(vectors[0]).max() > 0


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_domain_without_text_ignores_its_texts(call, make_cope, random_items, fusion):
    model = make_cope(text_domains=("page",), fusion=fusion)
    items = random_items(3, 2)
    other = items | {"text": items["text"][::-1].copy()}
    before, after = (call(model, {"video": i, "page": i}) for i in (items, other))
    np.testing.assert_array_equal(before["video"].fused, after["video"].fused)
    np.testing.assert_array_equal(before["video"].fused, before["video"].vision)
    assert not before["video"].has_text.any()
    assert np.abs(before["page"].fused - after["page"].fused).max() > 1e-3


def test_without_text_domains_there_is_no_text_encoder(call, make_cope, random_items):
    model = make_cope(text_domains=())
    assert model.text is None
    assert call(model, {"page": random_items(2, 1)})["page"].fused.shape == (2, 6)


def test_an_unknown_text_domain_is_reported(make_cope):
    with pytest.raises(ValueError, match=r"unknown text domains \['shop'\]: choose from page, video, live"):
        make_cope(text_domains=("page", "shop"))


def test_an_unknown_fusion_is_reported(make_cope):
    with pytest.raises(ValueError, match="unknown fusion 'sum': choose one of linear, mean, transformer"):
        make_cope(fusion="sum")


def loss_and_gradients(model, items):
    """Returns those of a training step, with dropout."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    keys = jax.random.split(jax.random.key(7), 3)

    def loss(params):
        found = nnx.merge(graphdef, params, rest)(items, rngs=DropoutRngs(keys))
        return sum(jnp.sin(5 * e.fused).sum() + jnp.cos(3 * e.text).sum() for e in found.values())

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    return float(value), nnx.to_pure_dict(gradients)


@pytest.fixture(scope="module")
def items(random_items):
    items = random_items(3, 4)
    items["frame_mask"][0, 2:] = False
    items["text"][1, 3:] = 0
    return {"video": jax.tree.map(jnp.asarray, items)}


@pytest.fixture(scope="module")
def scanned(make_cope, items):
    """Loss and gradients with the default options."""
    return loss_and_gradients(make_cope(**PARTS), items)


@pytest.mark.slow
@pytest.mark.parametrize(("scan_layers", "remat"), [(False, "dots"), (True, "block")])
def test_loss_and_gradients_do_not_depend_on_how_layers_run(make_cope, items, scanned, scan_layers, remat):
    value, gradients = loss_and_gradients(make_cope(**PARTS, scan_layers=scan_layers, remat=remat), items)
    assert value == pytest.approx(scanned[0], rel=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6 * largest), gradients, scanned[1])


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_bfloat16_embeddings_are_close_to_float32_ones(call, make_cope, random_items, fusion):
    sizes = {
        "vision": {"width": 96, "output_width": 64, "drop_path": 0.1},
        "text": {"width": 64},
        "fusion": fusion,
        "noise": 0.02,
    }
    items = {"page": random_items(12, 1), "live": random_items(12, 5, seed=1)}
    exact = call(make_cope(**sizes), items)
    rounded = call(make_cope(**sizes, dtype=jnp.dtype("bfloat16")), items)
    for domain in items:
        for kind in ("fused", "vision", "text"):
            a, b = getattr(exact[domain], kind), getattr(rounded[domain], kind)
            assert b.dtype == jnp.float32
            assert float((a * b).sum(-1).mean()) > 0.999, (domain, kind)
            assert np.abs(a - b).max() > 1e-5  # bfloat16 was really used


def test_requesting_cudnn_reaches_the_attention(make_cope, items):
    """JAX reports that this machine has no cuDNN."""
    with pytest.raises(RuntimeError, match=r"cuDNN (is )?not (detected|found)"):
        make_cope(dtype=jnp.dtype("bfloat16"), attention="cudnn")(items)
