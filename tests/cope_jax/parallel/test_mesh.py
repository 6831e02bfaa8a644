"""The mesh and how parameters lie on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from cope_jax.parallel.mesh import LARGE, PARAMETER_RULES, make_mesh, parameter_shardings, to_devices
from cope_jax.parallel.rules import apply_rules
from cope_jax.runs.config_validation import resolve_config
from cope_jax.runs.model import split_model


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_one_open_axis_takes_the_rest():
    assert dict(make_mesh(data=-1, fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(data=1, fsdp=8, tensor=1).shape) == {"data": 1, "fsdp": 8, "tensor": 1}


def test_a_mesh_of_given_sizes_may_leave_devices_out(monkeypatch):
    mesh = make_mesh(data=3, fsdp=1, tensor=2)
    assert mesh.devices.ravel().tolist() == jax.devices()[:6]
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # each must have its part
    with pytest.raises(ValueError, match="do not multiply to 8 devices"):
        make_mesh(data=3, fsdp=1, tensor=2)


@pytest.mark.parametrize("sizes", [(3, 3, 1), (-1, 3, 1), (-1, -1, 1), (0, 8, 1), (-1, 16, 1)])
def test_sizes_that_do_not_make_the_devices_are_refused(sizes):
    with pytest.raises(ValueError, match=r"mesh.data=.* do not multiply to 8 devices; set one to −1 .* divide 8"):
        make_mesh(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))


def test_every_rule_serves_the_full_model_and_covers_it():
    used = set()
    for stem, fusion in (("patch", "linear"), ("conv", "transformer")):
        config = resolve_config(default.get_config(), {"model.vision.stem": stem, "model.fusion.kind": fusion})
        _, initialise = split_model(config, vocab_size=100)
        params = {"model": jax.eval_shape(initialise).params, "loss": {"classifier": {"table": shape(3072, 128)}}}
        parameter_shardings(params, make_mesh(data=2, fsdp=2, tensor=2))
        values = jax.tree.leaves(
            apply_rules(
                [(pattern, i) for i, (pattern, _) in enumerate(PARAMETER_RULES)],
                params,
                what="rules",
                require_all_used=False,
                exempt=lambda leaf: leaf.size < LARGE,
            )
        )
        used |= set(values)
    assert used == set(range(len(PARAMETER_RULES)))


def test_kernels_are_cut_as_the_rules_say():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params = {"b": {"qkv": {"kernel": shape(8, 3, 4, 2), "bias": shape(3, 4, 2)}}}
    found = parameter_shardings(params, mesh)["b"]["qkv"]
    assert found["kernel"].shard_shape((8, 3, 4, 2)) == (4, 3, 2, 2)
    assert found["bias"].shard_shape((3, 4, 2)) == (3, 4, 2)


def test_the_axis_that_stacks_layers_stays_whole():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params = {"blocks": {"qkv": {"kernel": shape(4, 8, 3, 6, 2)}, "up": {"kernel": shape(4, 8, 6)}}}
    found = parameter_shardings(params, mesh)["blocks"]
    assert found["qkv"]["kernel"].shard_shape((4, 8, 3, 6, 2)) == (4, 4, 3, 3, 2)
    assert found["up"]["kernel"].shard_shape((4, 8, 6)) == (4, 4, 3)


def test_every_large_parameter_needs_a_rule_and_small_ones_are_whole():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params = {"a": shape(256, 255), "b": shape()}
    assert all(where.is_fully_replicated for where in jax.tree.leaves(parameter_shardings(params, mesh)))
    params |= {"c": shape(256, 256), "d": {"kernel": shape(1, 65536)}}
    with pytest.raises(
        ValueError,
        match=r"PARAMETER_RULES in training/mesh.py: no rule matches the parameters c, d/kernel; add",
    ):
        parameter_shardings(params, mesh)


def test_all_uneven_cuts_are_listed():
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


def test_batches_are_cut_over_data_and_fsdp_and_keep_their_order():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    batch = to_devices({"x": np.arange(24).reshape(8, 3)}, mesh)["x"]
    np.testing.assert_array_equal(batch, np.arange(24).reshape(8, 3))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 3)}
