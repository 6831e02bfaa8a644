"""Every item is embedded once and in order, whatever the batches."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cope_jax.data.records import InvalidItems
from cope_jax.evaluation.embed_items import LoadedRun, embed_function, gather_shares, load_run, lookahead
from cope_jax.parallel.mesh import make_mesh, replicated
from cope_jax.runs.checkpoints import Checkpoints
from cope_jax.runs.config_file import load_config
from cope_jax.runs.model import split_model


def batches(rows: list[list[int]]):
    """Batches of eight. The text of a row is its number plus 1; row -1 is padding."""
    for numbers in rows:
        numbers = np.array(numbers + [-1] * (8 - len(numbers)))
        yield {
            "row": numbers,
            "item_id": np.where(numbers >= 0, 1000 - numbers, -1),
            "frame_count": np.where(numbers >= 0, numbers % 3, 0).astype(np.int32),
            "page": {
                "frames": np.zeros((8, 1, 2, 2, 3), np.uint8),
                "frame_mask": np.ones((8, 1), bool),
                "text": (numbers[:, None] + 1).astype(np.int32),
                "products": np.stack([numbers, numbers - 1], axis=1).astype(np.int32),
            },
        }


def circle(model, batch):
    """An encoder that embeds a row at the angle row / 10."""
    angle = (batch["page"]["text"][:, 0] - 1) / 10
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1) * model


def embed_pages(batches, embed, model, invalid_items=None):
    """Embeds batches with an encoder on all devices."""
    run = LoadedRun(None, None, make_mesh(data=-1, fsdp=1, tensor=1), embed, model)
    return run.embed_batches(batches, "page", invalid_items=invalid_items)


def test_padding_is_removed_and_the_order_kept():
    rows = [list(range(8)), list(range(8, 13))]
    items = embed_pages(batches(rows), circle, 1.0)
    angles = np.arange(13) / 10
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    np.testing.assert_allclose(items.vectors, vectors, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(items.products[:, 0], np.arange(13))
    np.testing.assert_array_equal(items.rows, np.arange(13))
    np.testing.assert_array_equal(items.item_ids, 1000 - np.arange(13))
    np.testing.assert_array_equal(items.frames, np.arange(13) % 3)
    assert items.has_text.all()


def test_whole_items_come_before_their_frames_and_their_texts():
    def turned(model, batch):
        return jnp.stack([circle(turn, batch) for turn in (1.0, -1.0, 0.0)], axis=1)

    items = embed_pages(batches([list(range(8))]), turned, 1.0)
    angles = np.arange(8) / 10
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    np.testing.assert_allclose(items.vectors, vectors, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(items.masked, np.stack([-vectors, 0 * vectors], axis=1), rtol=1e-5, atol=1e-6)


def test_shares_of_hosts_are_joined_in_order(monkeypatch):
    """Two hosts with two batches of two rows each: batch 0 is rows 0, 1 | 2, 3."""
    shares = np.array([[[0, 1], [4, 5]], [[2, 3], [6, 7]]])
    monkeypatch.setattr("cope_jax.evaluation.embed_items.allgather", lambda own: shares)
    assert gather_shares(shares[0]).tolist() == list(range(8))


def test_has_text_is_false_without_tokens():
    (batch,) = batches([[0, 1, 2]])
    batch["page"]["text"][1] = 0
    items = embed_pages([batch], lambda model, batch: jnp.ones((8, 1)), 1.0)
    assert items.has_text.tolist() == [True, False, True]


@pytest.mark.parametrize("scale", [0.0, np.nan, 2.0])
def test_error_names_items_with_invalid_embeddings(scale):
    with pytest.raises(ValueError, match=r"3 page embeddings do not have length 1, of items \[1000, 999, 998\]"):
        embed_pages(batches([[0, 1, 2]]), circle, scale)


def test_items_with_invalid_embeddings_are_skipped_and_reported():
    invalid = InvalidItems()
    scale = np.array([[1.0], [np.nan], [1.0], [0.0], *[[1.0]] * 4], np.float32)
    items = embed_pages(batches([list(range(5))]), circle, scale, invalid)
    assert items.rows.tolist() == [0, 2, 4]
    assert list(invalid.last) == [
        f"the embedding of page item {number} does not have length 1" for number in (999, 997)
    ]
    with pytest.raises(ValueError, match="3 page embeddings do not have length 1"):
        embed_pages(batches([[0, 1, 2]]), circle, np.nan, invalid)


def test_lookahead_requests_the_next_item_before_yielding_one():
    made = []

    def make():
        for i in range(3):
            made.append(i)
            yield i

    seen = [(item, list(made)) for item in lookahead(make())]
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2])]
    assert list(lookahead([])) == []


@pytest.mark.slow
def test_a_run_embeds_along_the_principal_axes_of_training(workdir):
    run = load_run(load_config(workdir), workdir, 6)
    graphdef, initialize = split_model(run.config, vocab_size=len(run.tokenizer), mesh=run.mesh)
    with Checkpoints(workdir) as checkpoints:
        model = checkpoints.restore_model(6, jax.device_put(initialize(), replicated(run.mesh)))
    axes, moments = (np.asarray(own.statistics[name]) for own, name in ((run.model, "axes"), (model, "moments")))
    np.testing.assert_allclose(axes.T @ axes, np.eye(16), atol=1e-6)
    rotated = axes.T @ moments @ axes
    np.testing.assert_allclose(rotated, np.diag(np.linalg.eigvalsh(moments)[::-1]), atol=1e-6)
    plain = replace(run, embed=embed_function(graphdef, model, run.mesh), model=model)
    vectors, trained = (own.embed_rows("page", range(11)).vectors for own in (run, plain))
    np.testing.assert_allclose(vectors, trained @ axes, atol=1e-5)
    assert np.abs(vectors - trained).max() > 0.1
