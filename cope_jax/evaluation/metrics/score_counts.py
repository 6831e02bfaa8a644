"""Counts of scores above thresholds, tile by tile: what the ranks of positives need of the similarity matrix.

A tile of scores serves both directions: its rows ask about its columns, and its columns about its rows. It is
thrown away when both have counted. On CPUs numpy does this three times faster than XLA; elsewhere it is one jitted
function over all local devices. The hosts share the rows' blocks.

Scores are float64 on a CPU; elsewhere float32, but computed from embeddings cut in two such that the error is below
1e-11: far less than the thresholds leave room for, so that both count the same.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from threadpoolctl import threadpool_limits

from cope_jax.parallel.processes import allgather

HOST_BLOCK = 8160  # items of a block on a CPU, a multiple of 8 × 255: eight bytes count side by side, up to 255 each
HOST_ROWS = 128  # of a tile that a core makes at once, 8 MB; at most 255
STRIP = 32  # rows that are compared at once, 1 MB: they stay in the core's cache
DEVICE_BLOCK = 8192  # elsewhere: a tile takes 256 MB, three with its two corrections
GRID = 4096.0  # embeddings of length 1 cut to this grid have dot products that float32 holds exactly


@dataclass(frozen=True)
class Asked:
    """Items and, of each, some thresholds: how many scores of the item reach each?

    Attributes:
      vectors: f32[N, E] embeddings.
      offsets: i64[N + 1]; item n's thresholds are thresholds[offsets[n]:offsets[n + 1]].
      thresholds: f32[K].
    """

    vectors: np.ndarray
    offsets: np.ndarray
    thresholds: np.ndarray


@dataclass(frozen=True)
class Block:
    """Some items with about equally many thresholds.

    Attributes:
      items: i64[n] numbers of the items, those with the most thresholds first.
      vectors: f32[n, E].
      thresholds: f32[P, n], filled up with infinity, which no score reaches.
      reach: of each p, how many items have more than p thresholds.
      counts: i64[P, n], what has been counted; where a threshold is infinite it means nothing.
    """

    items: np.ndarray
    vectors: np.ndarray
    thresholds: np.ndarray
    reach: list[int]
    counts: np.ndarray


Tile = Callable[[Block, Sequence[Block]], None]  # counts the first block's scores with each of the others


def count_between(a: Asked, b: Asked, *, block: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """How many items of b reach each threshold of a, and how many items of a each threshold of b.

    Args:
      a, b: of the same width of embeddings.
      block: items of a block; counts do not depend on it.

    Returns:
      i64[Ka] and i64[Kb], in the order of the thresholds.
    """
    tile, size = _tile_of_backend(block)
    rows, columns = blocks(a, size), blocks(b, size)
    for row in rows[jax.process_index() :: jax.process_count()]:
        tile(row, columns)
    return allgather(collected(rows, a)).sum(axis=0), allgather(collected(columns, b)).sum(axis=0)


def count_within(a: Asked, *, block: int | None = None) -> np.ndarray:
    """How many items of a, an item itself among them, reach each of its thresholds: i64[K]."""
    tile, size = _tile_of_backend(block)
    rows = blocks(a, size)
    for i in range(jax.process_index(), len(rows), jax.process_count()):
        tile(rows[i], rows[i:])  # a tile above the diagonal serves the one below, too
    return allgather(collected(rows, a)).sum(axis=0)


def blocks(asked: Asked, size: int) -> list[Block]:
    """Cuts items, sorted by their numbers of thresholds, into blocks of `size`, so that they are filled up little."""
    numbers = np.diff(asked.offsets)
    order = np.argsort(-numbers, kind="stable")
    return [_block(asked, order[start : start + size], numbers) for start in range(0, len(order), size)]


def _block(asked: Asked, items: np.ndarray, numbers: np.ndarray) -> Block:
    numbers = numbers[items]
    p = np.arange(numbers[0])[:, None]
    there = p < numbers
    thresholds = np.full(there.shape, np.inf, np.float32)
    thresholds[there] = asked.thresholds[(asked.offsets[items] + p)[there]]
    reach = there.sum(axis=-1).tolist()
    return Block(items, asked.vectors[items], thresholds, reach, np.zeros(there.shape, np.int64))


def collected(counted: Sequence[Block], asked: Asked) -> np.ndarray:
    """The blocks' counts i64[K] in the order of the thresholds."""
    counts = np.empty(len(asked.thresholds), np.int64)
    for block in counted:
        p, n = np.nonzero(np.isfinite(block.thresholds))
        counts[asked.offsets[block.items[n]] + p] = block.counts[p, n]
    return counts


def _tile_of_backend(block: int | None) -> tuple[Tile, int]:
    if jax.default_backend() == "cpu":
        return host_tiles, min(block or HOST_BLOCK, HOST_BLOCK)
    return device_tiles, block or DEVICE_BLOCK


def host_tiles(rows: Block, columns: Sequence[Block]) -> None:
    """Counts with numpy: each core multiplies some rows with a block, and counts while they are in its cache."""
    left = rows.vectors.astype(np.float64)
    # Products are on one core each: BLAS's own threads would wait for each other, spinning, while others count.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        for block in columns:
            tile = partial(_host_tile, left, rows, block.vectors.astype(np.float64).T, block)
            for counts in pool.map(tile, range(0, len(left), HOST_ROWS)):
                if block is not rows:  # to whose counts others may be adding at this moment
                    block.counts[...] += counts


def _host_tile(left: np.ndarray, rows: Block, right: np.ndarray, columns: Block, start: int) -> np.ndarray:
    """Counts the scores of HOST_ROWS rows from `start` on: adds to these rows' counts, returns the columns'.

    Of a block with itself only the rows count.

    Args:
      left: f64[n, E] vectors of the rows.
      right: f64[E, m] of the columns.
    """
    scores = left[start : start + HOST_ROWS] @ right
    m = len(columns.items)
    reached = np.zeros((STRIP, HOST_BLOCK), bool)  # False behind column m
    bytes_of_eight = reached.view(np.uint64)  # eight are added at once, in bytes
    sums = np.zeros((len(columns.reach), HOST_BLOCK // 8), np.uint64)
    for offset in range(0, len(scores), STRIP):
        strip = scores[offset : offset + STRIP].astype(np.float32)
        first, n = start + offset, len(strip)
        for p, reach in enumerate(rows.reach):
            k = min(reach - first, n)
            if k <= 0:
                break
            wanted = rows.thresholds[p, first : first + k, None]
            np.greater_equal(strip[:k], wanted, out=reached[:k, :m])
            eights = np.add.reduce(bytes_of_eight[:k].reshape(k, -1, 255), axis=-1)
            rows.counts[p, first : first + k] += eights.view(np.uint8).reshape(k, -1).sum(axis=-1, dtype=np.int64)
        for p, k in enumerate(() if columns is rows else columns.reach):
            np.greater_equal(strip[:, :k], columns.thresholds[p, :k], out=reached[:n, :k])
            eights = -(-k // 8)
            sums[p, :eights] += np.add.reduce(bytes_of_eight[:n, :eights], axis=0)
    return sums.view(np.uint8)[:, :m].astype(np.int64)  # of columns without a p-th threshold anything


def device_tiles(rows: Block, columns: Sequence[Block]) -> None:
    """Counts on all local devices: each has a share of the rows, and the columns whole."""
    mesh = Mesh(np.asarray(jax.local_devices()), ("rows",))
    size = -(-max(len(block.items) for block in (rows, *columns)) // mesh.size) * mesh.size
    left = _padded(rows, size)
    for block in columns:
        for_rows, for_columns = _tile_function(mesh)(*left, *_padded(block, size))
        _add(rows, for_rows)
        if block is not rows:
            _add(block, for_columns)


def _padded(block: Block, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and thresholds in few shapes, for few compilations.

    Added vectors are NaN, so that their scores reach nothing; added thresholds are reached by nothing.
    """
    P, n = block.thresholds.shape
    more = (1 << max(P - 1, 0).bit_length()) - P
    vectors = np.pad(block.vectors, ((0, size - n), (0, 0)), constant_values=np.nan)
    return vectors, np.pad(block.thresholds, ((0, more), (0, size - n)), constant_values=np.inf)


def _add(block: Block, counts: jax.Array) -> None:
    P, n = block.counts.shape
    block.counts[...] += np.asarray(counts)[:P, :n]


@cache
def _tile_function(mesh: Mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
    rows, row_thresholds, whole = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec("rows"), PartitionSpec(None, "rows"), PartitionSpec())
    )
    return jax.jit(_tile, in_shardings=(rows, row_thresholds, whole, whole), out_shardings=(row_thresholds, whole))


def _tile(a: jax.Array, a_thresholds: jax.Array, b: jax.Array, b_thresholds: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Counts i32[Pa, R] of rows and i32[Pb, C] of columns of the tile of a f32[R, E] and b f32[C, E]."""
    scores = close_scores(a, b)
    of_rows = jax.lax.map(lambda t: (scores >= t[:, None]).sum(axis=1, dtype=jnp.int32), a_thresholds)
    of_columns = jax.lax.map(lambda t: (scores >= t[None]).sum(axis=0, dtype=jnp.int32), b_thresholds)
    return of_rows, of_columns


def close_scores(a: jax.Array, b: jax.Array) -> jax.Array:
    """Dot products f32[R, C] of rows of length 1, rounded once.

    On the grid, a product is a multiple of 2⁻²⁴ and a sum of them at most 1: exact in any order. The rest is so small
    that its own rounding does not show.
    """
    on_grid_a, on_grid_b = (jnp.round(x * GRID) / GRID for x in (a, b))

    def dot(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum("re,ce->rc", x, y, precision=jax.lax.Precision.HIGHEST)

    return dot(on_grid_a, on_grid_b) + (dot(on_grid_a, b - on_grid_b) + dot(a - on_grid_a, b))
