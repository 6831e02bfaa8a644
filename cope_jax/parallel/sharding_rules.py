"""How parameters are sharded over the mesh, by rules over their paths."""

from collections.abc import Sequence
from math import prod

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from cope_jax.parallel.path_rules import apply_rules, leaf_paths

# Parameter paths → how the last axes are sharded; axes before these, which stack layers, are not. `tensor` splits heads
# and hidden units, so that a block communicates only once after attention and once after the MLP. With `fsdp` and
# `tensor` the other way around in /out and /down, XLA gives wrong gradients on a mesh of 2 × 2 × 2 (tested).
PARAMETER_RULES = (
    (r"/(qkv|kv)/kernel$", PartitionSpec("fsdp", None, "tensor", None)),
    (r"/head/query/kernel$", PartitionSpec("fsdp", "tensor", None)),
    (r"/out/kernel$", PartitionSpec("tensor", None, "fsdp")),
    (r"/up/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"/down/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"/(message_fc|project|pooler)/kernel$", PartitionSpec("fsdp", None)),
    (r"fusion/\w+/\w+/linear/kernel$", PartitionSpec("fsdp", None)),
    (r"fusion/\w+/(frames|words|vision|text)/kernel$", PartitionSpec("fsdp", None)),
    (r"/words/embedding$", PartitionSpec(None, "fsdp")),
    (r"/stem/.*kernel$", PartitionSpec(None, None, None, "fsdp")),
    (r"^loss/classifier/table$", PartitionSpec(("data", "fsdp", "tensor"), None)),
    # Large only in very deep models, for many patches or of high rank; replicated.
    (r"/(bias|scale|position|lora_a|lora_b)$", PartitionSpec()),
)
LARGE = 65_536  # number of elements from which a parameter must have a rule; smaller ones without are replicated


def parameter_shardings(params: PyTree, mesh: Mesh) -> PyTree:
    """Returns the sharding of each parameter (array or shape) by PARAMETER_RULES.

    Raises ValueError listing all large parameters without a rule, or all that the mesh does not divide evenly.
    """
    specs = apply_rules(
        PARAMETER_RULES,
        params,
        name="PARAMETER_RULES in parallel/sharding_rules.py",
        require_all_used=False,
        exempt=lambda leaf: leaf.size < LARGE,
        default=PartitionSpec(),
    )
    specs = jax.tree.map(lambda leaf, spec: PartitionSpec(*[None] * (leaf.ndim - len(spec)), *spec), params, specs)
    uneven = [
        f"{path} {leaf.shape} by {spec}"
        for path, leaf, spec in zip(*map(jax.tree.leaves, (leaf_paths(params), params, specs)), strict=True)
        if any(leaf.shape[i] % shard_count(axes, mesh) for i, axes in enumerate(spec))
    ]
    if uneven:
        raise ValueError(f"the mesh {dict(mesh.shape)} does not divide these parameters evenly: {'; '.join(uneven)}")
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def shard_count(axes: str | Sequence[str] | None, mesh: Mesh | AbstractMesh) -> int:
    """Returns into how many shards an entry of a PartitionSpec splits an axis."""
    return prod(mesh.shape[axis] for axis in ([axes] if isinstance(axes, str) else axes or ()))


def shard_over_data(leaf: PyTree, sharding: NamedSharding) -> NamedSharding:
    """Returns the sharding of an array or shape with its largest possible axis sharded over `data` as well.

    Nothing changes if `data` shards an axis already, or divides none.
    """
    mesh, spec = sharding.mesh, [*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec))]
    axes = [(entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec]
    sizes = [leaf.shape[i] / shard_count(axes[i], mesh) for i in range(leaf.ndim)]  # on one device
    possible = [i for i, size in enumerate(sizes) if size % mesh.shape["data"] == 0]
    if not possible or any("data" in entry for entry in axes):
        return sharding
    largest = max(possible, key=lambda i: sizes[i])
    spec[largest] = (*axes[largest], "data") if axes[largest] else "data"
    return NamedSharding(mesh, PartitionSpec(*spec))
