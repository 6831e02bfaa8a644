"""Fusion heads and their normalization against NumPy in float64."""

from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cope_jax.models.fusion import Features, HeadNorm, Projection, l2_normalize
from cope_jax.models.text import TextFeatures
from cope_jax.models.vision import VisionFeatures

B, T, L, HEADS = 4, 3, 5, 2
FRAME_MASK = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
WORD_MASK = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
ROWS = np.array([True, True, False, True, True])


@pytest.fixture(scope="module")
def features():
    """Features of four items: complete, without words, without frames, without both."""
    rng = np.random.default_rng(0)
    shapes = (B, 10), (B, T, 10), (B, 8), (B, L, 8)
    clip, frames, text, words = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    features = Features(VisionFeatures(clip, frames), FRAME_MASK, TextFeatures(text, words), WORD_MASK)
    return jax.tree.map(jnp.asarray, features)


@pytest.fixture(scope="module")
def fuse():
    """Returns a function that runs a compiled head."""
    return nnx.jit(lambda head, features: head(features, train=False))


def weights(module) -> dict:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def linear(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def norm(x, layer):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * layer["scale"] + layer["bias"]


def unit(x):
    length = np.linalg.norm(x)
    return x / length if length else x


def block(x_ND, layer):
    """Applies a pre-norm block to the tokens of one item."""
    h = norm(x_ND, layer["norm1"])
    qkv, out = layer["attention"]["qkv"], layer["attention"]["out"]
    for k in range(HEADS):
        q, key, value = (h @ qkv["kernel"][:, i, k] + qkv["bias"][i, k] for i in range(3))
        scores = np.exp(q @ key.T / np.sqrt(q.shape[-1]))
        x_ND = x_ND + scores / scores.sum(-1, keepdims=True) @ value @ out["kernel"][k]
    x_ND = x_ND + out["bias"]
    h = linear(norm(x_ND, layer["norm2"]), layer["mlp"]["up"])
    return x_ND + linear(h * (1 + np.vectorize(erf)(h / np.sqrt(2))) / 2, layer["mlp"]["down"])


def query_output(w, tokens):
    """Returns the transformer's output at the query for the existing tokens of one item."""
    if not tokens:
        return np.zeros(6)
    x = np.stack([w["query"], *tokens])
    for i in range(2):
        x = block(x, jax.tree.map(lambda stacked, i=i: stacked[i], w["blocks"]))
    return unit(linear(norm(x[0], w["post_norm"]), w["project"]))


def test_transformer_fusion_uses_the_query_and_the_existing_tokens(make_cope, features, fuse):
    head = make_cope(fusion="transformer").fusion["video"]
    found, w = fuse(head, features), weights(head)
    for b in range(B):
        frames = [linear(x, w["frames"]) + w["modality"][0] for x in features.vision.frames[b][FRAME_MASK[b]]]
        words = [linear(x, w["words"]) + w["modality"][1] for x in features.text.words[b][WORD_MASK[b]]]
        for kind, tokens in (("fused", [*frames, *words]), ("vision", frames), ("text", words)):
            np.testing.assert_allclose(
                getattr(found, kind)[b], query_output(w, tokens), rtol=1e-4, atol=1e-5, err_msg=f"{kind} {b}"
            )
    assert found.has_vision.tolist() == [True, True, False, False]
    assert found.has_text.tolist() == [True, False, True, False]


def test_linear_fusion_is_a_layer_per_modality_and_one_for_both(make_cope, features, fuse):
    head = make_cope().fusion["live"]
    found, w = fuse(head, features), weights(head)
    for b in range(B):
        has_vision, has_text = FRAME_MASK[b].any(), WORD_MASK[b].any()
        vision = linear(features.vision.vector[b], w["vision"]["linear"]) * has_vision
        text = linear(features.text.vector[b], w["text"]["linear"]) * has_text
        fused = linear(np.concatenate([vision, text]), w["merge"]["linear"]) * (has_vision or has_text)
        for kind, expected in (("fused", fused), ("vision", vision), ("text", text)):
            np.testing.assert_allclose(
                getattr(found, kind)[b], unit(expected), rtol=1e-4, atol=1e-5, err_msg=f"{kind} {b}"
            )


def test_mean_fusion_is_the_direction_between_the_modalities_that_exist(make_cope, features, fuse):
    head = make_cope(fusion="mean").fusion["live"]
    found, w = fuse(head, features), weights(head)
    for b in range(B):
        vision = unit(linear(features.vision.vector[b], w["vision"]["linear"])) * FRAME_MASK[b].any()
        text = unit(linear(features.text.vector[b], w["text"]["linear"])) * WORD_MASK[b].any()
        np.testing.assert_allclose(found.fused[b], unit(vision + text), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", ["linear", "transformer"])
def test_each_kind_of_embedding_has_its_own_batch_statistics(make_cope, features, fusion):
    head = make_cope(fusion=fusion, head_norm="batch").fusion["page"]

    @nnx.jit
    def train(head):
        embeddings = head(features, train=True)
        return embeddings, nnx.state(head, nnx.BatchStat)

    embeddings, statistics = train(head)
    means = jax.tree.leaves(jax.tree.map(np.asarray, nnx.to_pure_dict(statistics)))[::2]
    assert len(means) == 3
    assert min(np.abs(a - b).max() for a, b in ((means[0], means[1]), (means[0], means[2]))) > 1e-3
    # The mean of each column over the two existing rows is 0, so they are opposite.
    np.testing.assert_allclose(embeddings.text[0], -embeddings.text[2], rtol=1e-4, atol=1e-5)


def rows(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, size=(5, 4)).astype(np.float32)


def test_training_normalizes_each_column_over_the_existing_rows():
    found = np.asarray(HeadNorm("batch", 4)(jnp.asarray(rows()), jnp.asarray(ROWS), train=True))
    kept = rows()[ROWS].astype(np.float64)
    expected = (kept - kept.mean(0)) / np.sqrt(kept.var(0) + 1e-5)
    np.testing.assert_allclose(found[ROWS], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[2], np.zeros(4))


def test_evaluation_uses_the_running_statistics():
    norm = HeadNorm("batch", 4, momentum=0.75)
    norm(jnp.asarray(rows()), jnp.asarray(ROWS), train=True)
    mean, variance = 0.25 * rows()[ROWS].mean(0), 0.75 + 0.25 * rows()[ROWS].var(0)
    other = rows(seed=1)
    found = norm(jnp.asarray(other[:1]), jnp.asarray([True]), train=False)
    np.testing.assert_allclose(found, (other[:1] - mean) / np.sqrt(variance + 1e-5), rtol=1e-4)


def test_a_missing_row_changes_neither_outputs_nor_statistics():
    results = []
    for value in (0.0, 1e4):
        x = rows()
        x[2] = value
        norm = HeadNorm("batch", 4)
        results.append((norm(jnp.asarray(x), jnp.asarray(ROWS), train=True), norm.mean[...], norm.variance[...]))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_without_rows_updates_no_statistics():
    norm = HeadNorm("batch", 4)
    found = norm(jnp.asarray(rows()), jnp.zeros(5, bool), train=True)
    np.testing.assert_array_equal(found, np.zeros((5, 4)))
    np.testing.assert_array_equal(norm.mean[...], np.zeros(4))
    np.testing.assert_array_equal(norm.variance[...], np.ones(4))


def test_l2_normalize_has_a_gradient_at_zero():
    gradient = jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros((1, 3)))
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(l2_normalize(jnp.array([[3.0, 4.0]])), [[0.6, 0.8]], rtol=1e-6)


def test_an_unknown_norm_is_reported():
    with pytest.raises(ValueError, match="unknown head norm 'layer': choose one of none, batch"):
        Projection(3, 4, "layer", dtype=jnp.dtype("float32"), rngs=nnx.Rngs(params=0))
