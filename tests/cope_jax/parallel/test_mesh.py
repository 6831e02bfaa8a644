"""The device mesh, and how batches are distributed over it."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest

from cope_jax.parallel.mesh import make_mesh, share_of, to_devices


def test_minus_one_takes_the_remaining_devices():
    assert dict(make_mesh(data=-1, fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(data=1, fsdp=8, tensor=1).shape) == {"data": 1, "fsdp": 8, "tensor": 1}


def test_a_single_process_may_leave_devices_out(monkeypatch):
    mesh = make_mesh(data=3, fsdp=1, tensor=2)
    assert mesh.devices.ravel().tolist() == jax.devices()[:6]
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # each must have devices in the mesh
    with pytest.raises(ValueError, match="do not multiply to 8 devices"):
        make_mesh(data=3, fsdp=1, tensor=2)


@pytest.mark.parametrize("sizes", [(3, 3, 1), (-1, 3, 1), (-1, -1, 1), (0, 8, 1), (-1, 16, 1)])
def test_sizes_that_do_not_multiply_to_the_devices_are_errors(sizes):
    with pytest.raises(ValueError, match=r"mesh.data=.* do not multiply to 8 devices; set one to −1 .* divide 8"):
        make_mesh(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))


def test_batches_are_sharded_over_data_and_fsdp_in_order():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    batch = to_devices({"x": np.arange(24).reshape(8, 3)}, mesh)["x"]
    np.testing.assert_array_equal(batch, np.arange(24).reshape(8, 3))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 3)}


@pytest.mark.parametrize(
    ("owners", "shares"),
    [
        ([[0], [0], [1], [1]], [(0, 2), (1, 2)]),
        ([[0, 0], [1, 1]], [(0, 2), (1, 2)]),
        ([[0, 1], [0, 1]], [(0, 1), (0, 1)]),
        ([[0, 1], [2, 3]], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([[0], [1], [1], [0]], [(0, 2), (1, 2)]),
    ],
)
def test_processes_in_one_tensor_group_read_the_same_share(owners, shares):
    assert [share_of(process, np.array(owners)) for process in range(len(shares))] == shares


@pytest.mark.parametrize("owners", [[[0, 0, 0], [0, 1, 1], [1, 1, 2], [2, 2, 2]], [[0], [0], [1]]])
def test_processes_that_would_read_parts_of_shares_are_errors(owners):
    with pytest.raises(ValueError, match=r"config.mesh.tensor=\d does not fit processes with \d devices"):
        share_of(0, np.array(owners))


@dataclass(frozen=True)
class FakeDevice:
    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100"


@pytest.mark.parametrize(("slices", "data"), [(2, 4), (4, 4), (2, 2)])
def test_only_the_data_axis_spans_slices(slices, data):
    """The devices of a slice are listed one after the other or in turn."""
    for order in (lambda i: i // (16 // slices), lambda i: i % slices):
        devices = [FakeDevice(i, order(i)) for i in range(16)]
        mesh = make_mesh(data=data, fsdp=-1, tensor=2, devices=devices)
        assert mesh.devices.shape == (data, 16 // data // 2, 2)
        for row in mesh.devices:
            assert len({device.slice_index for device in row.flat}) == 1
        assert {device.id for device in mesh.devices.flat} == set(range(16))
