"""Losses over a batch that is sharded over a ring of devices: each chunk of examples visits each device once.

A device holds its own chunk and the visiting one, never the whole batch, so memory does not grow with the number of
devices. Nothing of a visit is kept for the backward pass: losses compute their gradients by hand during the visits, and
the gradients of a visiting chunk travel with it until it is back home.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

BATCH_AXES = ("data", "fsdp")  # mesh axes over which a batch is sharded
SHARDED = PartitionSpec(BATCH_AXES)
TILE = 256  # maximum number of rows compared at once: a whole block would grow with the square of the chunk

LossAndGradients = tuple[tuple[Array, PyTree], tuple[PyTree, PyTree]]  # (loss, statistics), (of vectors, of scalars)
ChunkLoss = Callable[[PyTree, PyTree, PyTree], LossAndGradients]
Visit = Callable[[int, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
ShardedLoss = Callable[[PyTree, PyTree, PyTree], tuple[Array, PyTree]]


def shard_loss(chunk_loss: ChunkLoss, mesh: Mesh, *, specs: tuple[PyTree, PyTree] = (SHARDED, SHARDED)) -> ShardedLoss:
    """Turns a loss on one device's chunk into a differentiable loss on the whole batch.

    Args:
        chunk_loss: (vectors, labels, scalars) → ((loss, statistics), (gradients of vectors, gradients of scalars)).
            Vectors and labels are trees of one chunk's arrays. Loss, statistics and the gradients of scalars must be
            equal on all devices.
        mesh: Mesh with BATCH_AXES; devices along other axes compute the same.
        specs: Partition specs of vectors and labels, by default over BATCH_AXES.

    Returns:
        (vectors, labels, scalars) → (loss, statistics), differentiable in vectors and scalars. The gradients are
        computed together with the loss and are all that is kept for the backward pass.
    """
    replicated = PartitionSpec()
    run = jax.shard_map(
        chunk_loss,
        mesh=mesh,
        in_specs=(*specs, replicated),
        out_specs=((replicated, replicated), (specs[0], replicated)),
        check_vma=False,  # it cannot infer that sums over the mesh are equal on all devices
    )

    @jax.custom_vjp
    def loss(vectors: PyTree, labels: PyTree, scalars: PyTree) -> tuple[Array, PyTree]:
        return run(vectors, labels, scalars)[0]

    def backward(gradients: PyTree, cotangents: PyTree) -> tuple[PyTree, None, PyTree]:
        vectors, scalars = jax.tree.map(lambda gradient: cotangents[0] * gradient, gradients)
        return vectors, None, scalars

    loss.defvjp(run, backward)
    return loss


def ring_loop(visit: Visit, *, local: list[PyTree], visitor: PyTree, for_visitor: list[PyTree]) -> tuple[list, list]:
    """Lets each device's chunk visit all devices. Call it inside `shard_loss`.

    Args:
        visit: (i, visitor, local[i], for_visitor[i]) → (local[i], for_visitor[i]), for the i-th of several pairs.
        local: Accumulators of this device, one for each pair.
        visitor: This device's chunk, which the other devices see unchanged.
        for_visitor: Accumulators of all devices for this chunk, one for each pair; they travel with it.

    Returns:
        `local` and `for_visitor` of this device after all visits.
    """

    def step(_: Array, state: PyTree) -> PyTree:
        local, visitor, for_visitor = state
        following = send_to_next_device(visitor)  # overlaps with the computation of the visit
        results = [visit(i, visitor, *own) for i, own in enumerate(zip(local, for_visitor, strict=True))]
        local, for_visitor = ([result[part] for result in results] for part in (0, 1))
        return local, following, send_to_next_device(for_visitor)

    devices = jax.lax.axis_size(BATCH_AXES)
    local, _, for_visitor = jax.lax.fori_loop(0, devices, step, (local, visitor, for_visitor))
    return local, for_visitor


def send_to_next_device(tree: PyTree) -> PyTree:
    """Sends a tree's arrays in one message per dtype: many small messages would each take their latency."""
    devices = jax.lax.axis_size(BATCH_AXES)
    leaves, structure = jax.tree.flatten(tree)
    sent = list(leaves)
    for dtype in sorted({leaf.dtype for leaf in leaves}, key=str):  # the same order on all hosts
        places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        message = jnp.concatenate([leaves[i].ravel() for i in places])
        message = jax.lax.ppermute(message, BATCH_AXES, perm=[(i, (i + 1) % devices) for i in range(devices)])
        ends = list(itertools.accumulate(leaves[i].size for i in places))[:-1]
        for i, part in zip(places, jnp.split(message, ends), strict=True):
            sent[i] = part.reshape(leaves[i].shape)
    return structure.unflatten(sent)


def scan_tiles(
    tile: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], carry: PyTree, rows: PyTree
) -> tuple[PyTree, PyTree]:
    """Scans over the rows of arrays, in as few tiles of equal size as TILE allows.

    Args:
        tile: (carry, rows of a tile) → (carry, results for these rows).
        carry: Initial carry.
        rows: Tree of arrays with the same number of rows. The last tile is padded with zeros, which must not count.

    Returns:
        The last carry and the results of all rows.
    """
    A = len(jax.tree.leaves(rows)[0])
    tiles = -(-A // TILE)
    if tiles == 1:
        return tile(carry, rows)

    def split(array: Array) -> Array:
        padded = jnp.pad(array, [(0, -A % tiles)] + [(0, 0)] * (array.ndim - 1))
        return padded.reshape(tiles, -1, *array.shape[1:])

    carry, results = jax.lax.scan(tile, carry, jax.tree.map(split, rows))
    return carry, jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:A], results)
