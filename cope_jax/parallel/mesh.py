"""The device mesh, and how batches are distributed over it."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

AXES = ("data", "fsdp", "tensor")


def make_mesh(*, data: int, fsdp: int, tensor: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with axes `data`, `fsdp` and `tensor`; a size of −1 takes the remaining devices.

    If no size is −1, a single process may use fewer than the given devices (by default all): the first ones. Raises
    ValueError if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    known = prod(size for size in sizes.values() if size > 0)
    sizes = {axis: len(devices) // known if size == -1 else size for axis, size in sizes.items()}
    used = len(devices)
    if min(data, fsdp, tensor) > 0 and jax.process_count() == 1:
        used = min(used, known)
    if prod(sizes.values()) != used or min(sizes.values()) < 1:
        raise ValueError(
            f"config.mesh.data={data}, mesh.fsdp={fsdp}, mesh.tensor={tensor} do not multiply to {len(devices)} "
            f"devices; set one to −1 to take the remaining ones, and the others so that they divide {len(devices)}"
        )
    if used < len(devices):
        return Mesh(np.asarray(devices[:used]).reshape(tuple(sizes.values())), AXES)
    return Mesh(_arrange(devices, tuple(sizes.values())), AXES)


def _arrange(devices: Sequence[Any], sizes: tuple[int, ...]) -> np.ndarray:
    """Arranges devices so that neighbors in the mesh are neighbors in hardware, and only `data` spans slices."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and sizes[0] % slices == 0:
        within = (sizes[0] // slices, *sizes[1:])
        return mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: examples over data × fsdp, the same ones on all devices of a tensor group."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of values that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def with_shardings(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Returns a tree of shapes that include their shardings, as needed to restore a checkpoint."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding), shapes, shardings
    )


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Returns which share of each batch this process reads, and the number of shares; see `share_of`."""
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return share_of(jax.process_index(), owners.reshape(-1, mesh.shape["tensor"]))


def share_of(process: int, owners: np.ndarray) -> tuple[int, int]:
    """Returns `batch_share` of a process, given the process of each device, i32[data · fsdp, tensor].

    With owners [[0, 0], [1, 1]], each process has its own share; with [[0, 1], [0, 1]], both read everything. Raises
    ValueError if the devices of some process do not make up whole shares.
    """
    rows = {int(owner): tuple(np.flatnonzero((owners == owner).any(-1)).tolist()) for owner in np.unique(owners)}
    shares = sorted(set(rows.values()))
    if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) != len(owners):
        raise ValueError(
            f"config.mesh.tensor={owners.shape[1]} does not fit processes with {np.sum(owners == process)} devices: "
            "one must be a multiple of the other"
        )
    return shares.index(rows[process]), len(shares)


def to_devices(batch: PyTree, mesh: Mesh) -> PyTree:
    """Returns the global, sharded arrays of a batch, given this process's share (NumPy, leading axis B / shares)."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), batch)
