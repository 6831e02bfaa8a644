"""The device mesh, and how parameters and batches lie on it."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cope_jax.parallel.rules import apply_rules, paths

AXES = ("data", "fsdp", "tensor")

# Parameter paths → how their last axes are cut; axes in front of those, which stack layers, stay whole. `tensor` cuts
# heads and hidden layers, so that a block communicates once behind attention and once behind MLP.
PARAMETER_RULES = (
    (r"/qkv/kernel$", PartitionSpec("fsdp", None, "tensor", None)),
    (r"/out/kernel$", PartitionSpec("tensor", None, "fsdp")),
    (r"/up/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"/down/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"/(message_fc|project|pooler)/kernel$", PartitionSpec("fsdp", None)),
    (r"fusion/\w+/\w+/linear/kernel$", PartitionSpec("fsdp", None)),
    (r"fusion/\w+/(frames|words)/kernel$", PartitionSpec("fsdp", None)),
    (r"/words/embedding$", PartitionSpec(None, "fsdp")),
    (r"/stem/.*kernel$", PartitionSpec(None, None, None, "fsdp")),
    (r"^loss/classifier/table$", PartitionSpec(("data", "fsdp", "tensor"), None)),
    # Large only where a model is very deep or its images have many patches; whole on every device.
    (r"/(bias|scale|position)$", PartitionSpec()),
)
LARGE = 65_536  # elements from which on a parameter must have a rule; smaller ones without are whole everywhere


def make_mesh(*, data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes `data`, `fsdp` and `tensor`; a size of −1 takes what is left of the devices.

    Where all three are given, a single process may use fewer devices than there are: the first ones.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    known = prod(size for size in sizes.values() if size > 0)
    sizes = {axis: len(devices) // known if size == -1 else size for axis, size in sizes.items()}
    used = len(devices)
    if min(data, fsdp, tensor) > 0 and jax.process_count() == 1:
        used = min(used, known)
    if prod(sizes.values()) != used or min(sizes.values()) < 1:
        wanted = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, (data, fsdp, tensor), strict=True))
        raise ValueError(
            f"config.{wanted} do not multiply to {len(devices)} devices; set one to −1 to take what is left, and the "
            f"others so that they divide {len(devices)}"
        )
    devices = devices[:used]
    return Mesh(np.asarray(devices).reshape(tuple(sizes.values())), AXES)


def parameter_shardings(params: Any, mesh: Mesh) -> Any:
    """The sharding of each parameter by PARAMETER_RULES.

    Args:
        params: tree of arrays or shapes.

    Raises:
        ValueError: large parameters that no rule covers, or some that their rules cannot cut evenly on this mesh; all
            are listed.
    """
    specs = apply_rules(
        PARAMETER_RULES,
        params,
        what="PARAMETER_RULES in training/mesh.py",
        require_all_used=False,
        exempt=lambda leaf: leaf.size < LARGE,
        default=PartitionSpec(),
    )
    specs = jax.tree.map(lambda leaf, spec: trailing(spec, len(leaf.shape)), params, specs)
    uneven = [
        f"{path} {leaf.shape} by {spec}"
        for path, leaf, spec in zip(*map(jax.tree.leaves, (paths(params), params, specs)), strict=True)
        if any(leaf.shape[i] % parts(axes, mesh) for i, axes in enumerate(spec))
    ]
    if uneven:
        raise ValueError(f"the mesh {dict(mesh.shape)} does not divide these parameters evenly: {'; '.join(uneven)}")
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def parts(axes: str | Sequence[str] | None, mesh: Mesh) -> int:
    """In how many parts an entry of a PartitionSpec cuts its axis."""
    return prod(mesh.shape[axis] for axis in ([axes] if isinstance(axes, str) else axes or ()))


def trailing(spec: PartitionSpec, ndim: int) -> PartitionSpec:
    """A spec moved to the last of `ndim` axes: PartitionSpec("fsdp") and 2 give PartitionSpec(None, "fsdp")."""
    return PartitionSpec(*[None] * (ndim - len(spec)), *spec)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples are cut over data × fsdp; every device of a tensor group sees the same ones."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes with its shardings written into it, as restoring a checkpoint wants it."""
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Which share of each batch this process reads, and how many shares there are.

    Raises:
        ValueError: the devices of some processes do not make up whole shares.
    """
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return share_of(jax.process_index(), owners.reshape(-1, mesh.shape["tensor"]))


def share_of(process: int, owners: np.ndarray) -> tuple[int, int]:
    """`batch_share` of a process: [[0, 0], [1, 1]] gives it its own share; in [[0, 1], [0, 1]] both read everything.

    Args:
        owners: i32[rows of a batch's devices, tensor], the process that each device belongs to.
    """
    rows = {int(owner): tuple(np.flatnonzero((owners == owner).any(-1)).tolist()) for owner in np.unique(owners)}
    shares = sorted(set(rows.values()))
    if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) != len(owners):
        raise ValueError(
            f"config.mesh.tensor={owners.shape[1]} does not fit processes of {np.sum(owners == process)} devices: one "
            "must be a multiple of the other"
        )
    return shares.index(rows[process]), len(shares)


def to_devices(batch: Any, mesh: Mesh) -> Any:
    """This process's share of a batch (numpy, leading axis B / shares) → the global, sharded arrays."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), batch)
