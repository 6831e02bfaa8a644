"""Counts scores above thresholds, tile by tile, so that the similarity matrix is never in memory.

Each tile of scores is computed once and counted in both directions: along its rows and along its columns. On a CPU,
NumPy does this three times faster than XLA. On other devices, it is one jitted function.

A CPU computes scores in float64. Other devices compute them in float32, from embeddings that are split in two so that
the error stays below 1e-11. Thresholds leave more room than that, so both give the same counts.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int64
from threadpoolctl import threadpool_limits

from cope_jax.parallel.processes import allgather
from data_prep.common.process_pool import usable_cores

BYTE = 255  # flags that a byte can count
HOST_TILE = (128, 32 * BYTE)  # at most BYTE rows; an 8 MB tile keeps BLAS busy
DEVICE_TILE = 8192  # rows and columns; a tile of scores takes 256 MB, and as much for each of its two corrections
GRID = 4096.0  # float32 holds the dot product of unit vectors with entries on this grid exactly


@dataclass(frozen=True)
class ItemThresholds:
    """Items and the thresholds of each item's scores.

    Attributes:
        vectors: Embeddings of unit length.
        offsets: The thresholds of item n are `thresholds[offsets[n] : offsets[n + 1]]`.
        thresholds: Thresholds of all items.
    """

    vectors: Float[np.ndarray, "N E"]
    offsets: Int64[np.ndarray, " _"]
    thresholds: Float32[np.ndarray, " K"]


@dataclass(frozen=True)
class Block:
    """Items with similar numbers of thresholds; those with the most come first.

    Attributes:
        items: Numbers of the items.
        vectors: Their embeddings.
        thresholds: The p-th threshold of each item, or infinity, which no score reaches.
    """

    items: Int64[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n E"]
    thresholds: Float32[np.ndarray, "P n"]


Counts = tuple[Int64[np.ndarray, "P n"], Int64[np.ndarray, "Q m"]]  # for rows and for columns


def count_between(
    a: ItemThresholds, b: ItemThresholds, *, block: int | None = None
) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, " L"]]:
    """Counts how many items of the other side reach each threshold.

    All processes must call this; each counts some blocks of rows. Tiles have at most `block` rows and columns.
    """
    on_cpu = jax.local_devices()[0].platform == "cpu"
    sizes = HOST_TILE if on_cpu else (DEVICE_TILE, DEVICE_TILE)
    rows, columns = (_blocks(items, min(block or size, size)) for items, size in zip((a, b), sizes, strict=True))
    row_counts, column_counts = ([np.zeros(own.thresholds.shape, np.int64) for own in side] for side in (rows, columns))
    tiles = [(i, j) for i in range(jax.process_index(), len(rows), jax.process_count()) for j in range(len(columns))]
    # One thread per core multiplies and counts. BLAS's own threads would compete with them.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(usable_cores() if on_cpu else 1) as pool:
        kernel = count_on_host if on_cpu else count_on_devices
        for (i, j), (of_row, of_column) in zip(
            tiles, pool.map(lambda tile: kernel(rows[tile[0]], columns[tile[1]]), tiles), strict=True
        ):
            row_counts[i] += of_row
            column_counts[j] += of_column
    return _gathered(rows, row_counts, a), _gathered(columns, column_counts, b)


def _blocks(items: ItemThresholds, size: int) -> list[Block]:
    """Sorts items by their numbers of thresholds, so that little padding is needed, and cuts them into blocks."""
    numbers = np.diff(items.offsets)
    order = np.argsort(-numbers, kind="stable")
    return [_block(items, order[start : start + size]) for start in range(0, len(order), size)]


def _block(items: ItemThresholds, chosen: np.ndarray) -> Block:
    starts, ends = items.offsets[chosen], items.offsets[chosen + 1]
    places = starts + np.arange(ends[0] - starts[0])[:, None]
    thresholds = np.full(places.shape, np.inf, np.float32)
    thresholds[places < ends] = items.thresholds[places[places < ends]]
    return Block(chosen, items.vectors[chosen].astype(np.float64), thresholds)


def _gathered(blocks: list[Block], counts: list[np.ndarray], items: ItemThresholds) -> np.ndarray:
    """Returns the counts of all processes in the order of the items' thresholds."""
    result = np.empty(len(items.thresholds), np.int64)
    for block, own in zip(blocks, counts, strict=True):
        p, n = np.nonzero(np.isfinite(block.thresholds))
        result[items.offsets[block.items[n]] + p] = own[p, n]
    return allgather(result).sum(axis=0)


def count_on_host(rows: Block, columns: Block) -> Counts:
    """Counts one tile with NumPy. Up to 255 flags are summed in a byte, which is what makes it fast."""
    scores = (rows.vectors @ columns.vectors.T).astype(np.float32)
    n, m = scores.shape
    groups = np.zeros((n, -(-m // BYTE), BYTE), np.uint8)
    reached = groups.reshape(n, -1)[:, :m].view(bool)
    of_rows = np.zeros(rows.thresholds.shape, np.int64)
    for p, wanted in enumerate(rows.thresholds):
        np.greater_equal(scores, wanted[:, None], out=reached)
        of_rows[p] = np.einsum("ngi->ng", groups).sum(axis=1)  # einsum sums bytes five times faster than np.sum
    of_columns = np.zeros(columns.thresholds.shape, np.int64)
    for p, wanted in enumerate(columns.thresholds):
        k = np.count_nonzero(np.isfinite(wanted))  # the first k items have a p-th threshold
        np.greater_equal(scores[:, :k], wanted[:k], out=reached[:, :k])
        of_columns[p, :k] = reached[:, :k].view(np.uint8).sum(axis=0, dtype=np.uint8)
    return of_rows, of_columns


def count_on_devices(rows: Block, columns: Block) -> Counts:
    """Counts one tile on all local devices, which share its rows."""
    mesh = Mesh(np.asarray(jax.local_devices()), ("rows",))
    by_rows, by_columns, whole = (NamedSharding(mesh, P(*axes)) for axes in (("rows",), (None, "rows"), ()))
    size = -(-max(len(rows.items), len(columns.items)) // mesh.size) * mesh.size
    left, right = _padded(rows, size), _padded(columns, size)
    counts = _count_tile(*jax.device_put((*left, *right), (by_rows, by_columns, whole, whole)))
    of_rows, of_columns = (
        np.asarray(padded)[tuple(map(slice, block.thresholds.shape))].astype(np.int64)
        for block, padded in zip((rows, columns), counts, strict=True)
    )
    return of_rows, of_columns


def _padded(block: Block, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads vectors with NaN and thresholds with infinity to a few shapes, so that there are few compilations."""
    number, n = block.thresholds.shape
    more = (1 << max(number - 1, 0).bit_length()) - number
    vectors = np.pad(block.vectors.astype(np.float32), ((0, size - n), (0, 0)), constant_values=np.nan)
    return vectors, np.pad(block.thresholds, ((0, more), (0, size - n)), constant_values=np.inf)


@jax.jit
def _count_tile(a: Array, a_thresholds: Array, b: Array, b_thresholds: Array) -> tuple[Array, Array]:
    scores = close_scores(a, b)
    of_rows = jax.lax.map(lambda wanted: (scores >= wanted[:, None]).sum(axis=1, dtype=jnp.int32), a_thresholds)
    of_columns = jax.lax.map(lambda wanted: (scores >= wanted[None]).sum(axis=0, dtype=jnp.int32), b_thresholds)
    return of_rows, of_columns


def close_scores(a: Float32[Array, "R E"], b: Float32[Array, "C E"]) -> Float32[Array, "R C"]:
    """Computes dot products of unit vectors that are rounded only once.

    On the grid, a product is a multiple of 2⁻²⁴ and a sum of products is at most 1, so float32 sums are exact in any
    order. The remainders are so small that their rounding errors do not matter.
    """
    on_grid_a, on_grid_b = (jnp.round(x * GRID) / GRID for x in (a, b))

    def dot(x: Array, y: Array) -> Array:
        return jnp.einsum("re,ce->rc", x, y, precision=jax.lax.Precision.HIGHEST)

    return dot(on_grid_a, on_grid_b) + (dot(on_grid_a, b - on_grid_b) + dot(a - on_grid_a, b))
