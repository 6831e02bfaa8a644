"""The text encoder: poolings, positions, missing texts."""

import jax
import numpy as np
import pytest
from flax import nnx

from cope_jax.models.dropout import DropoutRngs

TOKENS = np.array([[2, 7, 9, 3, 0, 0, 0], [2, 9, 7, 3, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]], np.int32)


@pytest.mark.parametrize("pooling", ["pooler", "class", "mean"])
def test_order_matters_and_missing_texts_are_zero(call, make_cope, pooling):
    vectors = call(make_cope(text={"pooling": pooling}).text, TOKENS).vector
    assert vectors.shape == (3, 8)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    np.testing.assert_array_equal(vectors[2], np.zeros(8))


def test_the_pooler_is_a_dense_layer_and_tanh_on_the_class_token(call, make_cope):
    pooled, first = (make_cope(text={"pooling": pooling}).text for pooling in ("pooler", "class"))
    kernel, bias = np.asarray(pooled.pooler.kernel[...]), np.asarray(pooled.pooler.bias[...])
    first.words, first.position, first.segment = pooled.words, pooled.position, pooled.segment
    first.norm, first.blocks = pooled.norm, pooled.blocks
    expected = np.tanh(np.asarray(call(first, TOKENS).vector)[:2] @ kernel + bias)
    np.testing.assert_allclose(call(pooled, TOKENS).vector[:2], expected, rtol=2e-4, atol=1e-5)


CLIP = {"family": "clip", "pooling": "end", "activation": "quick_gelu", "output_width": 5}
SIGLIP = {"family": "siglip", "pooling": "last", "activation": "gelu_tanh", "mlp_width": 6}


def test_words_of_clip_see_no_later_ones_and_texts_are_pooled_at_their_end(call, make_cope):
    encoder = make_cope(text=CLIP).text
    longer = np.where(np.arange(7) == 4, 5, TOKENS)
    before, after = (call(encoder, tokens) for tokens in (TOKENS, longer))
    np.testing.assert_allclose(after.words[:2, :4], before.words[:2, :4], rtol=2e-4, atol=1e-5)
    kernel = encoder.project.kernel[...]
    np.testing.assert_allclose(before.vector[:2], before.words[:2, 3] @ kernel, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(after.vector[:2], after.words[:2, 4] @ kernel, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(before.vector[2], np.zeros(5))


def test_padding_is_a_part_of_siglips_texts_which_are_pooled_at_the_last_position(call, make_cope):
    encoder = make_cope(text=SIGLIP).text
    features = call(encoder, TOKENS)
    expected = features.words[:2, 6] @ encoder.project.kernel[...] + encoder.project.bias[None]
    np.testing.assert_allclose(features.vector[:2], expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(features.vector[2], np.zeros(8))
    encoder.words.embedding.set_value(encoder.words.embedding[...].at[0, 3].add(1.0))
    assert np.abs(call(encoder, TOKENS).words - features.words)[:2, 0].max() > 1e-3


def test_attention_has_dropout_in_training_only(call, make_cope):
    plain, dropping = (make_cope(text={"attention_dropout": rate}).text for rate in (0.0, 0.5))
    np.testing.assert_array_equal(call(dropping, TOKENS).vector, call(plain, TOKENS).vector)

    @nnx.jit
    def train(encoder, tokens, seed):
        keys = jax.random.split(jax.random.key(seed), len(tokens))
        return encoder(tokens, rngs=DropoutRngs(keys)).vector

    np.testing.assert_allclose(train(plain, TOKENS, 1), call(plain, TOKENS).vector, rtol=2e-4, atol=1e-5)
    assert np.abs(train(dropping, TOKENS, 1) - train(dropping, TOKENS, 2))[:2].max() > 1e-2


def test_an_unknown_pooling_is_reported(make_cope):
    with pytest.raises(ValueError, match="unknown pooling 'max': choose one of pooler, class, mean, end, last"):
        make_cope(text={"pooling": "max"})
