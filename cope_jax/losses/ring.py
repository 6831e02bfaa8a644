"""The devices that share a batch as a ring: every chunk of examples visits every device once.

A device holds its own chunk and the visiting one, never the whole batch, so that memory does not grow with the number
of devices. Nothing of a visit is kept: losses compute their gradients by hand while the chunks go round, and what
belongs to the visitor travels on with it until it is home again.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

AXES = ("data", "fsdp")  # of the mesh: the devices that share a batch
TILE = 256  # rows of a block that are compared at once; a block of all would grow with the square of the chunk

Function = Callable[..., tuple[Any, Any]]


def over_chunks(function: Function, mesh: Mesh) -> Function:
    """Runs a function on every device's chunk of a batch, in a mesh whose other axes hold copies.

    Args:
        function: (vectors, rest, scalars) → ((loss, watched), (gradients of vectors, of scalars)); vectors and
            rest are trees of one chunk's arrays; loss, watched and the scalars' gradients are equal on all devices.

    Returns:
        The same on arrays of the whole batch: (vectors, rest, scalars) → (loss, watched), which JAX can differentiate
        by vectors and scalars. The gradients are made together with the loss, and are all that is kept for the
        backward pass; `watched` has none.
    """
    chunked, whole = PartitionSpec(AXES), PartitionSpec()
    run = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(chunked, chunked, whole),
        out_specs=((whole, whole), (chunked, whole)),
        check_vma=False,  # it cannot see that sums over AXES are equal on all devices
    )

    @jax.custom_vjp
    def loss(vectors: Any, rest: Any, scalars: Any) -> Any:
        return run(vectors, rest, scalars)[0]

    def backward(gradients: Any, cotangents: Any) -> Any:
        vectors, scalars = jax.tree.map(lambda gradient: cotangents[0] * gradient, gradients)
        return vectors, None, scalars

    loss.defvjp(run, backward)
    return loss


def go_round(visit: Callable[[Any, Any, Any], tuple[Any, Any]], *, stays: Any, guest: Any, returns: Any) -> Any:
    """Lets every device's chunk visit every device, on one of them in `over_chunks`.

    Args:
        visit: (stays, guest, returns) → (stays, returns), with a guest of any device.
        stays: what this device gathers.
        guest: this device's chunk, which the others see unchanged.
        returns: what its hosts gather for this chunk; it travels along.

    Returns:
        stays and returns after all visits; returns are this device's own again.
    """

    def stop(_: Any, state: Any) -> Any:
        stays, guest, returns = state
        following = to_next_device(guest)  # under way while the visit is computed
        stays, returns = visit(stays, guest, returns)
        return stays, following, to_next_device(returns)

    stays, _, returns = jax.lax.fori_loop(0, jax.lax.axis_size(AXES), stop, (stays, guest, returns))
    return stays, returns


def to_next_device(tree: Any) -> Any:
    """Sends all arrays of a tree on, in one message for each type: many small ones would each take their latency."""
    devices = jax.lax.axis_size(AXES)
    leaves, structure = jax.tree.flatten(tree)
    sent = list(leaves)
    for dtype in sorted({leaf.dtype for leaf in leaves}, key=str):  # in one order on all hosts
        places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        message = jnp.concatenate([leaves[i].ravel() for i in places])
        message = jax.lax.ppermute(message, AXES, perm=[(i, (i + 1) % devices) for i in range(devices)])
        ends = list(itertools.accumulate(leaves[i].size for i in places))[:-1]
        for i, part in zip(places, jnp.split(message, ends), strict=True):
            sent[i] = part.reshape(leaves[i].shape)
    return structure.unflatten(sent)


def each(function: Callable[..., tuple[Any, Any]], *columns: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Calls a function with one entry of each column and puts its two results apart."""
    results = [function(*row) for row in zip(*columns, strict=True)]
    return [first for first, _ in results], [second for _, second in results]


def over_tiles(tile: Callable[[Any, Any], tuple[Any, Any]], carry: Any, rows: Any) -> tuple[Any, Any]:
    """Goes through arrays TILE rows at a time.

    Args:
        tile: (carry, rows of a tile) → (carry, results with as many rows).
        rows: tree of arrays with equal numbers of rows A. Where A is no multiple of TILE the last tile is filled
            up with zeros: rows that are not present.

    Returns:
        The last carry and the results of all rows.
    """
    A = len(jax.tree.leaves(rows)[0])
    tiles = -(-A // TILE)
    if tiles == 1:
        return tile(carry, rows)

    def cut(array: jax.Array) -> jax.Array:
        filled = jnp.pad(array, [(0, tiles * TILE - A)] + [(0, 0)] * (array.ndim - 1))
        return filled.reshape(tiles, TILE, *array.shape[1:])

    carry, results = jax.lax.scan(tile, carry, jax.tree.map(cut, rows))
    return carry, jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:A], results)
