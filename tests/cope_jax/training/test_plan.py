"""Counts of operations against formulas."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from cope_jax.parallel.mesh import make_mesh
from cope_jax.runs.config_validation import replace_fields
from cope_jax.training.plan import count_operations, step_flops

A, B, C, D = 2, 3, 5, 7


def count(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return count_operations(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_a_product_multiplies_and_adds_for_each_contracted_index():
    assert count(lambda a, b: jnp.sin(a @ b), (A, B), (B, C)) == 2 * A * B * C
    assert count(lambda a, b: jnp.einsum("abc,adc->abd", a, b), (A, B, C), (A, D, C)) == 2 * A * B * D * C
    gradients = jax.value_and_grad(lambda a, b: (a @ b).sum(), argnums=(0, 1))
    assert count(gradients, (A, B), (B, C)) == 3 * 2 * A * B * C


def convolve(stride, x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_a_product_of_patches(stride):
    side = 1 + (9 - 3) // stride
    forward = 2 * A * side**2 * 3**2 * C * D
    shapes = (A, 9, 9, C), (3, 3, C, D)
    assert count(lambda x, kernel: convolve(stride, x, kernel), *shapes) == forward
    of_kernel = jax.value_and_grad(lambda x, kernel: convolve(stride, x, kernel).sum(), argnums=1)
    assert count(of_kernel, *shapes) == 2 * forward
    # At the edges, the gradient of the input is computed with zeros.
    of_input = count(jax.value_and_grad(lambda x, kernel: convolve(stride, x, kernel).sum()), *shapes)
    assert 2 * forward < of_input < 3.7 * forward


def test_loops_branches_and_shards_count_as_often_as_they_run():
    def loop(a, b):
        return jax.lax.scan(lambda carry, _: (carry @ b, None), a, length=11)[0]

    assert count(loop, (A, B), (B, B)) == 11 * 2 * A * B * B
    assert count(jax.checkpoint(loop), (A, B), (B, B)) == 11 * 2 * A * B * B

    def branch(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a @ b @ b)

    assert count(branch, (A, B), (B, B)) == 2 * 2 * A * B * B
    mesh = make_mesh(data=2, fsdp=4, tensor=1)
    specs = {"in_specs": (PartitionSpec("fsdp"), PartitionSpec()), "out_specs": PartitionSpec("fsdp")}
    product = jax.shard_map(lambda a, b: a @ b, mesh=mesh, **specs)
    assert count(product, (8, B), (B, C)) == 2 * (2 * 8 * B * C)  # twice: `data` repeats it


@pytest.mark.slow
def test_no_option_of_the_computation_changes_the_count(tiny_config):
    """Otherwise, cuDNN's attention would be a call of unknown operations."""
    whole = {"model.head_norm": "none", "model.principal_axes": False}
    config = replace_fields(tiny_config, whole | {"model.dtype": "bfloat16"})
    expected = step_flops(config, 100)
    changes = {"model.attention": "cudnn", "model.scan_layers": False, "model.remat": "block", "train.microbatch": 4}
    assert step_flops(replace_fields(config, changes | {"train.shard_optimizer": True}), 100) == expected
