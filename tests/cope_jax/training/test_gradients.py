"""Gradients of a batch in microbatches against those of the whole batch."""

from contextlib import closing

import jax
import numpy as np
import pytest
from flax import nnx

from cope_jax.parallel.mesh import make_mesh, to_devices
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import run_tokenizer, training_batches
from cope_jax.runs.model import split_model
from cope_jax.training.gradients import batch_gradients, cached_gradients
from cope_jax.training.objective import init_losses, make_loss


@pytest.fixture(scope="module")
def setting(make_tiny_config, tmp_path_factory):
    """A config without batch normalization, its tokenizer and a batch of 16 products."""
    config = make_tiny_config(
        {
            "model.head_norm": "none",
            "model.vision.drop_path": 0.0,
            "model.text.dropout": 0.0,
            "train.batch_size": 16,
            "losses.infonce.weight": 0.5,
        }
    )
    tokenizer = run_tokenizer(config, tmp_path_factory.mktemp("run"))
    with closing(training_batches(config, tokenizer, start_step=0)) as batches:
        return config, tokenizer, next(batches)


def make_embed(config, vocab_size):
    """A function that embeds a batch, and initial parameters."""
    graphdef, initialize = split_model(config, vocab_size=vocab_size)
    params, statistics = jax.jit(initialize)()

    def embed(model, statistics, batch, key):
        return nnx.merge(graphdef, model, statistics)(batch, rngs=nnx.Rngs(dropout=key)), statistics

    return embed, statistics, {"model": params, "loss": init_losses(config)}


def gradients(setting, mesh, *, parts):
    """Gradients of the initial model."""
    config, tokenizer, batch = setting
    embed, statistics, params = make_embed(config, len(tokenizer))

    def compute(params, batch, key):
        arguments = embed, make_loss(config, mesh), params, statistics, batch, key
        if parts == 1:
            return batch_gradients(*arguments)
        return cached_gradients(*arguments, parts=parts, mesh=mesh)

    return jax.device_get(jax.jit(compute)(params, to_devices(batch, mesh), jax.random.key(0)))


def assert_close(found, expected):
    """Within 1e-5 of an array's largest entry; 1e-9 is rounding if all of it should be 0."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(y).max() + 1e-9), found, expected
    )


@pytest.fixture(scope="module")
def whole(setting):
    return gradients(setting, one_device(), parts=1)


def one_device():
    return make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "parts"), [((1, 1, 1), 16), ((2, 2, 2), 2)])
def test_microbatches_give_the_gradients_of_the_whole_batch(setting, whole, sizes, parts):
    data, fsdp, tensor = sizes
    mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=jax.devices()[: data * fsdp * tensor])
    cached = gradients(setting, mesh, parts=parts)
    assert_close(cached.params, whole.params)
    assert cached.metrics.keys() == whole.metrics.keys()
    np.testing.assert_allclose(cached.loss, whole.loss, rtol=1e-5)


@pytest.mark.slow
def test_both_passes_use_the_same_random_draws(setting):
    """Against automatic differentiation of a loss whose microbatches have dropout with those draws."""
    config, tokenizer, batch = setting
    config = replace_fields(config, {"model.text.dropout": 0.5})
    drawn = config, tokenizer, batch
    cached = gradients(drawn, one_device(), parts=2)
    embed, statistics, params = make_embed(config, len(tokenizer))
    embed_key, loss_key = jax.random.split(jax.random.key(0))
    batch = jax.tree.map(jax.numpy.asarray, batch)
    halves = [jax.tree.map(lambda leaf: leaf[:8], batch), jax.tree.map(lambda leaf: leaf[8:], batch)]

    def loss(params):
        parts = [
            embed(params["model"], statistics, half, jax.random.fold_in(embed_key, i))[0]
            for i, half in enumerate(halves)
        ]
        joined = jax.tree.map(lambda *leaves: jax.numpy.concatenate(leaves), *parts)
        return make_loss(config, one_device())(params["loss"], joined, batch, loss_key)[0]

    value, expected = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(cached.loss, value, rtol=1e-6)
    assert_close(cached.params, jax.device_get(expected))
