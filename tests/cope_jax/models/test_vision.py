"""The vision encoder: messages between frames, integration, stems, pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from cope_jax.models.stems import ConvStem, Patches, PatchStem, conv_patch_size
from cope_jax.models.vision import normalize


def frames_of(items):
    return items["frames"], items["frame_mask"]


@nnx.jit
def last_tokens(encoder, frames, mask):
    """Returns the tokens after the last block."""
    return encoder.frame_tokens(normalize(frames, "imagenet"), mask, lengths=[frames.shape[1]], rngs=None)


def test_without_integration_frames_interact_only_through_messages(make_cope, random_items):
    items = random_items(2, 3)
    changed = items["frames"].copy()
    changed[:, 2] = 0
    for cross_frame in (True, False):
        encoder = make_cope(vision={"cross_frame": cross_frame, "integration_depth": 0}).vision
        x, y = (last_tokens(encoder, frames, items["frame_mask"]) for frames in (items["frames"], changed))
        difference = float(jnp.abs(x[:, :2] - y[:, :2]).max())
        assert (difference > 1e-3) == cross_frame


def test_without_messages_and_integration_a_clip_is_the_mean_of_its_frames(call, make_cope, random_items):
    encoder = make_cope(vision={"cross_frame": False, "integration_depth": 0}).vision
    assert encoder.integration is None
    frames, mask = frames_of(random_items(2, 3))
    alone = [call(encoder, frames[:, t : t + 1], mask[:, t : t + 1]).vector for t in range(3)]
    np.testing.assert_allclose(call(encoder, frames, mask).vector, np.mean(alone, axis=0), rtol=2e-4, atol=1e-5)


def test_the_order_of_frames_matters_with_integration(call, cope, random_items):
    frames, mask = frames_of(random_items(2, 3))
    forward, backward = (call(cope.vision, clip, mask).vector for clip in (frames, frames[:, ::-1]))
    assert np.abs(forward - backward).max() > 1e-3


def test_a_single_frame_can_take_all_positions(call, make_cope, random_items):
    """As if the vector of the frame had been repeated; the weights are the same."""
    first, all_positions = (make_cope(vision={"broadcast_single_frame": flag}).vision for flag in (False, True))
    frames, mask = frames_of(random_items(3, 1))
    mask[1] = False
    alone, broadcast = (call(encoder, frames, mask) for encoder in (first, all_positions))
    x = first.encode_pixels(normalize(jnp.asarray(frames), "imagenet"), jnp.asarray(mask), lengths=[1])
    repeated = jnp.repeat(x, 5, axis=1)
    expected = first.integration(repeated, jnp.broadcast_to(mask, (3, 5))).mean(axis=1)
    np.testing.assert_allclose(broadcast.vector[::2], expected[::2], rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(broadcast.frames[::2, 0], expected[::2], rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(broadcast.vector[1], np.zeros(10))
    assert np.abs(broadcast.vector - alone.vector)[::2].max() > 0.01 * np.abs(alone.vector).max()


def test_pages_with_all_positions_do_not_change_clips(make_cope, random_items):
    encoder = make_cope(vision={"broadcast_single_frame": True}).vision
    page, clip = (jax.tree.map(jnp.asarray, frames_of(random_items(2, T, seed=T))) for T in (1, 3))
    together = nnx.jit(lambda encoder: encoder.encode_clips([page, clip]))(encoder)
    for found, alone in zip(together, (page, clip), strict=True):
        expected = nnx.jit(lambda encoder, alone=alone: encoder(*alone))(encoder)
        np.testing.assert_allclose(found.vector, expected.vector, rtol=2e-4, atol=1e-5)
        assert found.frames.shape == expected.frames.shape


SIGLIP = {"family": "siglip", "pooling": "attention", "across_frames": "gated", "output_width": 12}


@pytest.mark.parametrize("family", [{}, SIGLIP])
def test_gated_messages_and_integration_start_without_effect(call, make_cope, random_items, family):
    """The gates are 0 at first; the other values of both encoders are the same."""
    gated = make_cope(vision=family | {"across_frames": "gated"}).vision
    plain = make_cope(vision=family | {"cross_frame": False, "integration_depth": 0}).vision
    plain.blocks.block, plain.stem, plain.position = gated.blocks.block, gated.stem, gated.position
    for part in ("class_token", "pre_norm", "post_norm", "head", "project"):
        setattr(plain, part, getattr(gated, part))
    frames, mask = frames_of(random_items(2, 3))
    mask[1, 1:] = False
    open_gates = call(gated, frames, mask).vector
    for gate in (gated.blocks.message_gate, gated.integration.gate):
        gate.set_value(jnp.zeros_like(gate[...]))
    expected = call(plain, frames, mask).vector
    np.testing.assert_allclose(call(gated, frames, mask).vector, expected, rtol=2e-4, atol=1e-5)
    assert np.abs(open_gates - expected).max() > 1e-3


def test_gates_are_zero_at_first(make_cope):
    encoder = make_cope(vision={"across_frames": "gated"}, noise=0.0).vision
    for gate in (encoder.blocks.message_gate, encoder.integration.gate):
        np.testing.assert_array_equal(gate[...], np.zeros(gate.shape))


def test_siglips_pooling_is_attention_of_a_probe_to_the_patches(make_cope, random_items):
    """In float64 NumPy."""
    head = make_cope(vision=SIGLIP).vision.head
    x = np.random.default_rng(0).normal(size=(2, 4, 12))
    values = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(head)))
    query = np.einsum("d,dhk->hk", values["probe"], values["query"]["kernel"]) + values["query"]["bias"]
    keys, heads = np.einsum("bnd,dphk->pbnhk", x, values["kv"]["kernel"]) + values["kv"]["bias"][:, None, None]
    logits = np.einsum("hk,bnhk->bhn", query, keys) / np.sqrt(query.shape[-1])
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    y = np.einsum("bhn,bnhk,hkd->bd", weights, heads, values["out"]["kernel"]) + values["out"]["bias"]
    normed = (y - y.mean(axis=1, keepdims=True)) / np.sqrt(y.var(axis=1, keepdims=True) + 1e-6)
    normed = normed * values["norm"]["scale"] + values["norm"]["bias"]
    hidden = normed @ values["mlp"]["up"]["kernel"] + values["mlp"]["up"]["bias"]
    hidden = np.asarray(hidden / (1 + np.exp(-1.702 * hidden)))
    expected = y + hidden @ values["mlp"]["down"]["kernel"] + values["mlp"]["down"]["bias"]
    np.testing.assert_allclose(head(jnp.asarray(x, jnp.float32)), expected, rtol=2e-4, atol=1e-5)


def test_patches_are_in_row_major_order(call):
    stem = PatchStem(5, 8, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(params=0))
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    tokens = call(stem, jnp.asarray(images))
    assert tokens.shape == (2, 6, 5)
    kernel = np.asarray(stem.patches.kernel[...])
    expected = np.einsum("bhwc,hwcd->bd", images[:, 8:, 8:16], kernel)  # second row, second column of 3
    np.testing.assert_allclose(tokens[:, 4], expected, rtol=2e-4, atol=1e-5)


def test_patches_equal_a_convolution(call):
    patches = Patches(3, 5, 4, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(params=0))
    patches.bias.set_value(jnp.arange(5.0))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32))
    kernel, bias = patches.kernel[...], patches.bias[...]
    axes = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(images, kernel, (4, 4), "VALID", dimension_numbers=axes)
    np.testing.assert_allclose(call(patches, images), expected + bias[None, None, None], rtol=2e-4, atol=1e-5)


def test_the_conv_stem_sees_beyond_a_patch(call):
    stem = ConvStem(7, (8, 12), (0, 1), dtype=jnp.dtype("float32"), rngs=nnx.Rngs(params=0))
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    changed = images.copy()
    changed[:, :, 16:] = 0  # the last column of patches of 8 pixels
    before, after = (np.asarray(call(stem, jnp.asarray(i))).reshape(2, 2, 3, 7) for i in (images, changed))
    assert conv_patch_size(2) == 8
    assert np.abs(before - after)[:, :, 1].max() > 1e-4  # the neighboring patch changes, too


def test_pixels_are_normalized_per_channel():
    white = jnp.full((1, 1, 1, 1, 3), 255, jnp.uint8)
    for name, mean, deviation in (
        ("imagenet", IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ("clip", OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        ("siglip", IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
    ):
        wanted = (1 - np.array(mean)) / deviation
        np.testing.assert_allclose(normalize(white, name)[0, 0, 0, 0], wanted, rtol=1e-5)


def test_a_clip_that_is_too_long_is_reported(cope, random_items):
    with pytest.raises(ValueError, match="clips of 6 frames exceed max_frames = 5"):
        cope.vision(*map(jnp.asarray, frames_of(random_items(1, 6))))


def test_an_unknown_stem_is_reported(make_cope):
    with pytest.raises(ValueError, match="unknown stem 'resnet': choose one of patch, conv"):
        make_cope(vision={"stem": "resnet"})


@pytest.mark.parametrize(("depth", "rates"), [(1, (0.3,)), (3, (0.0, 0.15, 0.3))])
def test_drop_path_rises_to_its_rate_at_the_last_block(make_cope, depth, rates):
    assert make_cope(vision={"depth": depth, "drop_path": 0.3}).vision.drop_path_rates == pytest.approx(rates)
