"""Gradients of a batch in microbatches against those of the whole batch."""

import itertools
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cope_jax.models.fusion import Embeddings
from cope_jax.parallel.mesh import make_mesh, replicated, to_devices
from cope_jax.parallel.program import analyze
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
            "model.principal_axes": False,
            "model.vision.depth": 2,
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


def chain(model, statistics, batch, key):
    """Embeds by three layers, whose parameters are stacked."""
    x, _ = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), batch["x"], model["kernels"])
    present = jnp.ones(len(x), bool)
    return {"page": Embeddings(x, x, x, present, present)}, statistics


def loss_of_chain(params, embeddings, batch, key):
    x = embeddings["page"].fused
    return params["scale"] * ((x @ x.T) ** 2).sum(), {}


def test_gradients_of_microbatches_are_summed_over_devices_once():
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(64, 16)).astype(np.float32)}
    kernels = rng.normal(size=(3, 16, 16)).astype(np.float32) / 4
    params = {"model": {"kernels": kernels}, "loss": {"scale": np.float32(0.1)}}
    key, mesh = jax.random.key(0), make_mesh(data=8, fsdp=1, tensor=1)
    expected = batch_gradients(chain, loss_of_chain, params, {}, batch, key).params

    @partial(jax.jit, out_shardings=replicated(mesh))
    def compute(params, batch):
        return cached_gradients(chain, loss_of_chain, params, {}, batch, key, parts=4, mesh=mesh).params

    arguments = jax.device_put(params, replicated(mesh)), to_devices(batch, mesh)
    program = compute.lower(*arguments).compile()
    assert_close(program(*arguments), expected)
    # Gradients of parameters, those of embeddings, and the loss.
    assert analyze(program.as_text()).collectives["all-reduce"].bytes <= kernels.nbytes + batch["x"].nbytes + 4


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_both_passes_use_the_same_random_draws(setting, devices):
    """Against automatic differentiation of a loss whose microbatches have dropout with those draws."""
    config, tokenizer, batch = setting
    config = replace_fields(config, {"model.text.dropout": 0.5})
    drawn = config, tokenizer, batch
    cached = gradients(drawn, make_mesh(data=devices, fsdp=1, tensor=1, devices=jax.devices()[:devices]), parts=2)
    embed, statistics, params = make_embed(config, len(tokenizer))
    embed_key, loss_key = jax.random.split(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, batch)
    size = 8 // devices

    def embed_part(model, device, number):
        start = size * (2 * device + number)
        key = jax.random.fold_in(embed_key, number)
        key = key if devices == 1 else jax.random.fold_in(key, device)
        return embed(model, statistics, jax.tree.map(lambda leaf: leaf[start : start + size], batch), key)[0]

    def loss(params):
        parts = [embed_part(params["model"], *part) for part in itertools.product(range(devices), range(2))]
        joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        return make_loss(config, one_device())(params["loss"], joined, batch, loss_key)[0]

    value, expected = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(cached.loss, value, rtol=1e-6)
    assert_close(cached.params, jax.device_get(expected))
