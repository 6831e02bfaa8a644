"""How parameters are sharded over the mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from configs import default
from cope_jax.models.layers import BlockSettings, ComputeOptions, PreNormBlock, make_stack, run_stack
from cope_jax.parallel.mesh import batch_sharding, make_mesh
from cope_jax.parallel.path_rules import apply_rules
from cope_jax.parallel.program import analyze
from cope_jax.parallel.sharding_rules import LARGE, PARAMETER_RULES, parameter_shardings, shard_over_data
from cope_jax.runs.config_validation import resolve_config
from cope_jax.runs.model import split_model


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_the_rules_cover_all_models_and_each_rule_is_used():
    used = set()
    siglip = {"family": "siglip", "pooling": "attention", "across_frames": "gated"}
    for changed in (
        {"model.vision.stem": "patch", "model.fusion.kind": "linear"},
        {"model.vision.stem": "conv", "model.fusion.kind": "transformer"},
        {f"model.vision.{name}": value for name, value in siglip.items()},
    ):
        config = resolve_config(default.get_config(), changed)
        _, initialize = split_model(config, vocab_size=100)
        params = {"model": jax.eval_shape(initialize).params, "loss": {"classifier": {"table": shape(3072, 128)}}}
        parameter_shardings(params, make_mesh(data=2, fsdp=2, tensor=2))
        values = jax.tree.leaves(
            apply_rules(
                [(pattern, i) for i, (pattern, _) in enumerate(PARAMETER_RULES)],
                params,
                name="rules",
                require_all_used=False,
                exempt=lambda leaf: leaf.size < LARGE,
            )
        )
        used |= set(values)
    assert used == set(range(len(PARAMETER_RULES)))


def test_kernels_are_sharded_by_the_rules():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params = {"b": {"qkv": {"kernel": shape(8, 3, 4, 2), "bias": shape(3, 4, 2)}}}
    shardings = parameter_shardings(params, mesh)["b"]["qkv"]
    assert shardings["kernel"].shard_shape((8, 3, 4, 2)) == (4, 3, 2, 2)
    assert shardings["bias"].shard_shape((3, 4, 2)) == (3, 4, 2)


def test_the_axis_that_stacks_layers_is_not_sharded():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params = {"blocks": {"qkv": {"kernel": shape(4, 8, 3, 6, 2)}, "up": {"kernel": shape(4, 8, 6)}}}
    shardings = parameter_shardings(params, mesh)["blocks"]
    assert shardings["qkv"]["kernel"].shard_shape((4, 8, 3, 6, 2)) == (4, 4, 3, 3, 2)
    assert shardings["up"]["kernel"].shard_shape((4, 8, 6)) == (4, 4, 3)


def test_large_parameters_need_a_rule_and_small_ones_are_replicated():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params = {"a": shape(256, 255), "b": shape()}
    assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(parameter_shardings(params, mesh)))
    params |= {"c": shape(256, 256), "d": {"kernel": shape(1, 65536)}}
    with pytest.raises(
        ValueError,
        match=r"PARAMETER_RULES in parallel/sharding_rules.py: no rule matches the parameters c, d/kernel; add",
    ):
        parameter_shardings(params, mesh)


def test_all_parameters_that_the_mesh_does_not_divide_are_listed():
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    params = {
        "b": {
            "up": {"kernel": shape(6, 8)},
            "down": {"kernel": shape(7, 8)},
            "out": {"kernel": shape(2, 2, 8)},
        }
    }
    with pytest.raises(ValueError, match=r"b/down/kernel \(7, 8\) by .*; b/up/kernel \(6, 8\) by"):
        parameter_shardings(params, mesh)


def test_moments_are_sharded_over_data_as_well():
    mesh = make_mesh(data=4, fsdp=2, tensor=1)

    def sharded(spec, *sizes):
        return shard_over_data(shape(*sizes), NamedSharding(mesh, PartitionSpec(*spec))).spec

    assert sharded(("fsdp", None), 8, 12) == PartitionSpec("fsdp", "data")
    assert sharded((), 8, 12, 6) == PartitionSpec(None, "data", None)  # the largest axis that 4 divides
    assert sharded(("fsdp", None), 8, 6) == PartitionSpec(("fsdp", "data"), None)
    assert sharded(("fsdp", None), 4, 6) == PartitionSpec("fsdp", None)
    assert sharded((("data", "fsdp"), None), 8, 12) == PartitionSpec(("data", "fsdp"), None)
    assert sharded(()) == PartitionSpec()


def loss_of_blocks(compute):
    """Returns the parameters of a stack of two blocks, and a loss of them and their inputs, f32[B, N, 16]."""
    graphdef, params = nnx.split(
        make_stack(partial(PreNormBlock, BlockSettings(16, 2, "gelu"), compute=compute), 2, rngs=nnx.Rngs(params=0))
    )

    def loss(params, x):
        state = nnx.State(params["blocks"])
        return (run_stack(nnx.merge(graphdef, state), x, compute=compute) ** 3).sum()

    return {"blocks": nnx.to_pure_dict(params)}, loss


@pytest.mark.parametrize("batch_size", [8, 32])
def test_gradients_of_sharded_blocks_equal_those_on_one_device(batch_size):
    """XLA gets gradients wrong under other rules if a device has as many tokens as values of a sharded axis."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params, loss = loss_of_blocks(ComputeOptions(jnp.dtype("float32")))
    _, sharded_loss = loss_of_blocks(ComputeOptions(jnp.dtype("float32"), batch_sharding=batch_sharding(mesh)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(batch_size, 4, 16)), jnp.float32)
    expected = jax.grad(loss)(params, x)
    shardings = parameter_shardings(params, mesh)
    jitted = partial(jax.jit, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=shardings)
    for found in (jitted(jax.grad(loss))(params, x), jitted(jax.grad(sharded_loss))(params, x)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()), found, expected
        )


def test_fsdp_sums_gradients_and_no_activations():
    """Sharded stems and word vectors give activations whose channels are sharded; blocks must not keep them so."""
    mesh = make_mesh(data=1, fsdp=8, tensor=1)
    params, loss = loss_of_blocks(ComputeOptions(jnp.dtype("float32"), batch_sharding=batch_sharding(mesh)))
    shardings = parameter_shardings(params, mesh)
    x = jax.ShapeDtypeStruct((64, 64, 16), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, None, "fsdp")))
    step = jax.jit(jax.grad(loss), in_shardings=(shardings, x.sharding), out_shardings=shardings)
    program = analyze(step.lower(params, x).compile().as_text())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert program.collectives["all-reduce"].bytes < 2 * size
