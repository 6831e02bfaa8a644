"""The whole model: shapes, masks, and one encoder for all domains."""

import numpy as np
import pytest
from flax import nnx

from cope_jax.models.cope import FUSIONS


@pytest.fixture(scope="module", params=FUSIONS)
def cope(make_cope, request):
    """The tiny model, with either kind of fusion."""
    return make_cope(fusion=request.param)


def test_embeddings_have_length_one_and_the_stated_shapes(call, cope, random_items):
    found = call(cope, {"page": random_items(4, 1), "live": random_items(3, 5)})
    assert found["page"].fused.shape == (4, 6)
    assert found["live"].text.shape == (3, 6)
    for embeddings in found.values():
        for vectors in (embeddings.fused, embeddings.vision, embeddings.text):
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1.0, rtol=1e-5)
            assert vectors.dtype == np.float32


def test_domains_encoded_together_equal_each_alone(call, cope, random_items):
    items = {
        "page": random_items(3, 1),
        "video": random_items(3, 4, seed=1),
        "live": random_items(2, 4, seed=2),
    }
    together = call(cope, items)
    for domain, item in items.items():
        alone = call(cope, {domain: item})[domain]
        np.testing.assert_allclose(together[domain].fused, alone.fused, rtol=2e-4, atol=1e-5)


def test_domains_share_encoders_but_not_fusion(call, cope, random_items):
    items = random_items(3, 2)
    found = call(cope, {"page": items, "video": items})
    assert np.abs(found["page"].fused - found["video"].fused).max() > 0.05


def test_encode_takes_every_frame_unless_told(cope, random_items):
    items = random_items(2, 3)
    found = nnx.jit(lambda model, frames, text: model.encode("live", frames, text))(
        cope, items["frames"], items["text"]
    )
    expected = nnx.jit(lambda model, item: model({"live": item}))(cope, items)["live"]
    np.testing.assert_allclose(found.fused, expected.fused, rtol=2e-4, atol=1e-5)


def test_a_masked_frame_cannot_change_an_embedding(call, cope, random_items):
    items = random_items(3, 4)
    items["frame_mask"][:, 2:] = False
    changed = items | {"frames": items["frames"].copy()}
    changed["frames"][:, 2:] = 255 - changed["frames"][:, 2:]
    before, after = (call(cope, {"video": i})["video"].fused for i in (items, changed))
    np.testing.assert_array_equal(before, after)
    unmasked = call(cope, {"video": changed | {"frame_mask": np.ones((3, 4), bool)}})["video"].fused
    assert np.abs(unmasked - before).max() > 1e-3


def test_masked_frames_equal_a_shorter_clip(call, cope, random_items):
    items = random_items(3, 4)
    items["frame_mask"][:, 3:] = False
    shorter = {
        "frames": items["frames"][:, :3],
        "frame_mask": items["frame_mask"][:, :3],
        "text": items["text"],
    }
    long, short = (call(cope, {"video": i})["video"].fused for i in (items, shorter))
    np.testing.assert_allclose(long, short, rtol=2e-4, atol=1e-5)


def test_the_order_of_a_video_s_frames_matters(call, cope, random_items):
    items = random_items(3, 4)
    there, back = (
        call(cope, {"video": items | {"frames": frames}})["video"].fused
        for frames in (items["frames"], items["frames"][:, ::-1].copy())
    )
    assert np.abs(there - back).max() > 1e-3


def test_a_missing_text_is_not_invented(call, cope, random_items):
    items = random_items(4, 2)
    items["text"][1] = 0
    embeddings = call(cope, {"live": items})["live"]
    assert embeddings.has_text.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(embeddings.text[1], np.zeros(6))
    full = call(cope, {"live": random_items(4, 2)})["live"]
    np.testing.assert_allclose(embeddings.vision, full.vision, rtol=2e-4, atol=1e-5)
    assert np.abs(embeddings.fused[1] - full.fused[1]).max() > 1e-3


def test_padding_tokens_cannot_change_a_text(call, cope, random_items):
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


def test_no_domain_with_text_means_no_text_encoder(call, make_cope, random_items):
    model = make_cope(text_domains=())
    assert model.text is None
    assert call(model, {"page": random_items(2, 1)})["page"].fused.shape == (2, 6)


def test_an_unknown_text_domain_is_named(make_cope):
    with pytest.raises(ValueError, match=r"unknown text domains \['shop'\]: choose from page, video, live"):
        make_cope(text_domains=("page", "shop"))


def test_an_unknown_fusion_is_refused(make_cope):
    with pytest.raises(ValueError, match="unknown fusion 'sum': choose one of linear, transformer"):
        make_cope(fusion="sum")
