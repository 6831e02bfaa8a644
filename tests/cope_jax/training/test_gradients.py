"""Gradients of a batch in microbatches and on several devices against those of the whole batch on one."""

from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cope_jax.models.dropout import DropoutRngs
from cope_jax.models.fusion import Embeddings
from cope_jax.parallel.mesh import make_mesh, replicated, to_devices
from cope_jax.parallel.program import analyze
from cope_jax.runs.inputs import run_tokenizer, training_batches
from cope_jax.runs.model import split_model
from cope_jax.training.gradients import batch_gradients, cached_gradients
from cope_jax.training.objective import init_losses, make_loss


@pytest.fixture(scope="module")
def setting(make_tiny_config, tmp_path_factory):
    """A config with dropout and without batch normalization, its tokenizer and a batch of 16 products."""
    config = make_tiny_config(
        {
            "model.head_norm": "none",
            "model.principal_axes": False,
            "model.vision.depth": 2,
            "model.vision.drop_path": 0.3,
            "model.text.dropout": 0.3,
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

    def embed(model, statistics, batch, keys):
        return nnx.merge(graphdef, model, statistics)(batch, rngs=DropoutRngs(keys)), statistics

    return embed, statistics, {"model": params, "loss": init_losses(config)}


def gradients(setting, mesh, *, parts):
    """Gradients of the initial model."""
    config, tokenizer, batch = setting
    embed, statistics, params = make_embed(config, len(tokenizer))

    def compute(params, batch, key):
        arguments = embed, make_loss(config, mesh), params, statistics, batch, key
        if parts == 1:
            return batch_gradients(*arguments, mesh=mesh)
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
@pytest.mark.parametrize(("sizes", "parts"), [((1, 1, 1), 16), ((2, 1, 1), 1), ((2, 1, 1), 4), ((2, 2, 2), 2)])
def test_microbatches_and_devices_give_the_gradients_of_the_whole_batch(setting, whole, sizes, parts):
    """With the same dropout of each example."""
    data, fsdp, tensor = sizes
    mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=jax.devices()[: data * fsdp * tensor])
    found = gradients(setting, mesh, parts=parts)
    assert_close(found.params, whole.params)
    assert found.metrics.keys() == whole.metrics.keys()
    np.testing.assert_allclose(found.loss, whole.loss, rtol=1e-5)


def chain(model, statistics, batch, key):
    """Embeds by three layers, whose parameters are stacked."""
    x, _ = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), batch["x"], model["kernels"])
    present = jnp.ones(len(x), bool)
    return {"page": Embeddings(x, x, x, present, present)}, statistics


def loss_of_chain(params, embeddings, batch, key):
    x = embeddings["page"].fused
    return params["scale"] * ((x @ x.T) ** 2).sum(), {}


@pytest.mark.parametrize("parts", [1, 4])
def test_gradients_are_summed_over_devices_once(parts):
    """Not for each block of a stack, nor for each microbatch."""
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(64, 16)).astype(np.float32)}
    kernels = rng.normal(size=(3, 16, 16)).astype(np.float32) / 4
    params = {"model": {"kernels": kernels}, "loss": {"scale": np.float32(0.1)}}
    key, mesh = jax.random.key(0), make_mesh(data=8, fsdp=1, tensor=1)
    expected = batch_gradients(chain, loss_of_chain, params, {}, batch, key, mesh=one_device()).params
    function = batch_gradients if parts == 1 else partial(cached_gradients, parts=parts)

    @partial(jax.jit, out_shardings=replicated(mesh))
    def compute(params, batch):
        return function(chain, loss_of_chain, params, {}, batch, key, mesh=mesh).params

    arguments = jax.device_put(params, replicated(mesh)), to_devices(batch, mesh)
    program = compute.lower(*arguments).compile()
    assert_close(program(*arguments), expected)
    # Gradients of parameters, those of embeddings, and the loss.
    found = analyze(program.as_text()).collectives["all-reduce"]
    assert found.number <= 3
    assert found.bytes <= kernels.nbytes + batch["x"].nbytes + 4
