"""Both kinds of fusion against the same by hand in float64."""

from math import erf

import jax
import numpy as np
import pytest
from flax import nnx

from cope_jax.models.fusion import Features
from cope_jax.models.text import Text
from cope_jax.models.vision import Clip

B, T, L, HEADS = 4, 3, 5, 2
FRAME_MASK = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
WORD_MASK = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)


@pytest.fixture(scope="module")
def features():
    """Of four items: whole, without words, without frames, without either."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return Features(Clip(draw(B, 10), draw(B, T, 10)), FRAME_MASK, Text(draw(B, 8), draw(B, L, 8)), WORD_MASK)


@pytest.fixture(scope="module")
def fuse():
    """A function that runs a head compiled."""
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
    """One pre-norm block on the tokens of one item, all visible."""
    h = norm(x_ND, layer["norm1"])
    qkv, out = layer["attention"]["qkv"], layer["attention"]["out"]
    for k in range(HEADS):
        q, key, value = (h @ qkv["kernel"][:, i, k] + qkv["bias"][i, k] for i in range(3))
        scores = np.exp(q @ key.T / np.sqrt(q.shape[-1]))
        x_ND = x_ND + scores / scores.sum(-1, keepdims=True) @ value @ out["kernel"][k]
    x_ND = x_ND + out["bias"]
    h = linear(norm(x_ND, layer["norm2"]), layer["mlp"]["up"])
    return x_ND + linear(h * (1 + np.vectorize(erf)(h / np.sqrt(2))) / 2, layer["mlp"]["down"])


def query_outcome(w, tokens):
    """What the transformer makes of the existing tokens of one item."""
    if not tokens:
        return np.zeros(6)
    x = np.stack([w["query"], *tokens])
    for i in range(2):
        x = block(x, jax.tree.map(lambda stacked, i=i: stacked[i], w["blocks"]))
    return unit(linear(norm(x[0], w["post_norm"]), w["project"]))


def test_a_transformer_sees_a_query_and_the_tokens_that_exist(make_cope, features, fuse):
    head = make_cope(fusion="transformer").fusion["video"]
    found, w = fuse(head, features), weights(head)
    for b in range(B):
        frames = [linear(x, w["frames"]) + w["modality"][0] for x in features.clip.frames[b][FRAME_MASK[b]]]
        words = [linear(x, w["words"]) + w["modality"][1] for x in features.text.words[b][WORD_MASK[b]]]
        for view, tokens in (("fused", [*frames, *words]), ("vision", frames), ("text", words)):
            np.testing.assert_allclose(
                getattr(found, view)[b], query_outcome(w, tokens), rtol=1e-4, atol=1e-5, err_msg=f"{view} {b}"
            )
    assert found.has_vision.tolist() == [True, True, False, False]
    assert found.has_text.tolist() == [True, False, True, False]


def test_the_release_s_fusion_is_two_linear_layers_and_one_behind(make_cope, features, fuse):
    head = make_cope().fusion["live"]
    found, w = fuse(head, features), weights(head)
    for b in range(B):
        has_vision, has_text = FRAME_MASK[b].any(), WORD_MASK[b].any()
        vision = linear(features.clip.vector[b], w["vision"]["linear"]) * has_vision
        text = linear(features.text.vector[b], w["text"]["linear"]) * has_text
        fused = linear(np.concatenate([vision, text]), w["merge"]["linear"]) * (has_vision or has_text)
        for view, expected in (("fused", fused), ("vision", vision), ("text", text)):
            np.testing.assert_allclose(
                getattr(found, view)[b], unit(expected), rtol=1e-4, atol=1e-5, err_msg=f"{view} {b}"
            )


@pytest.mark.parametrize("fusion", ["linear", "transformer"])
def test_batch_normalised_views_have_statistics_of_their_own(make_cope, features, fusion):
    head = make_cope(fusion=fusion, head_norm="batch").fusion["page"]

    @nnx.jit
    def train(head):
        embeddings = head(features, train=True)
        return embeddings, nnx.state(head, nnx.BatchStat)

    embeddings, statistics = train(head)
    means = jax.tree.leaves(jax.tree.map(np.asarray, nnx.to_pure_dict(statistics)))[::2]
    assert len(means) == 3
    assert min(np.abs(a - b).max() for a, b in ((means[0], means[1]), (means[0], means[2]))) > 1e-3
    # Over the rows that exist each column's mean is 0: two rows are each other's negatives.
    np.testing.assert_allclose(embeddings.text[0], -embeddings.text[2], rtol=1e-4, atol=1e-5)
