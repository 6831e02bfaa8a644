"""Counts scores above thresholds, tile by tile, so that the similarity matrix is never in memory.

Each tile of scores is computed once, in float64, and counted in both directions: along its rows and along its columns.
The row `retrieval` of docs/benchmarks.md needs that, and sums of bytes.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from threadpoolctl import threadpool_limits

from cope_jax.parallel.processes import allgather
from data_prep.common.process_pool import usable_cores

BYTE = 255  # flags that a byte can count
TILE = (128, 32 * BYTE)  # rows, at most BYTE, and columns; an 8 MB tile keeps BLAS busy


@dataclass(frozen=True)
class ItemThresholds:
    """Items and thresholds; those for the scores of item n are `thresholds[offsets[n] : offsets[n + 1]]`."""

    vectors: Float[np.ndarray, "N E"]
    offsets: Int64[np.ndarray, " _"]
    thresholds: Float32[np.ndarray, " K"]


@dataclass(frozen=True)
class Block:
    """Items with similar numbers of thresholds; those with the most come first."""

    vectors: Float[np.ndarray, "n E"]
    thresholds: Float32[np.ndarray, "P n"]  # the p-th of each item, or infinity, which no score reaches
    exists: Bool[np.ndarray, "P n"]  # whether the item has a p-th threshold
    places: Int64[np.ndarray, " _"]  # of those that exist in `ItemThresholds.thresholds`
    counts: Int64[np.ndarray, "P n"]  # scores found so far that reach the threshold


def count_between(
    a: ItemThresholds, b: ItemThresholds, *, block: int | None = None
) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, " L"]]:
    """Counts how many items of the other side reach each threshold.

    All processes must call this; each counts some blocks of rows. Tiles have at most `block` rows and columns.
    """
    rows, columns = (_blocks(items, min(block or size, size)) for items, size in zip((a, b), TILE, strict=True))
    own_rows = rows[jax.process_index() :: jax.process_count()]
    tiles = [(row_block, column_block) for row_block in own_rows for column_block in columns]
    # One thread per core multiplies and counts. BLAS's own threads would compete with them.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(usable_cores()) as pool:
        counted = pool.map(lambda tile: _count_tile(*tile), tiles)
        for (row_block, column_block), (of_rows, of_columns) in zip(tiles, counted, strict=True):
            row_block.counts[:] += of_rows
            column_block.counts[:] += of_columns
    return _gathered(rows, len(a.thresholds)), _gathered(columns, len(b.thresholds))


def _blocks(items: ItemThresholds, size: int) -> list[Block]:
    """Sorts items by their numbers of thresholds, so that little padding is needed, and cuts them into blocks."""
    numbers = np.diff(items.offsets)
    order = np.argsort(-numbers, kind="stable")
    blocks = []
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        places = items.offsets[chosen] + np.arange(numbers[chosen].max())[:, None]
        exists = places < items.offsets[chosen + 1]
        thresholds = np.full(places.shape, np.inf, np.float32)
        thresholds[exists] = items.thresholds[places[exists]]
        counts = np.zeros(places.shape, np.int64)
        blocks.append(Block(items.vectors[chosen].astype(np.float64), thresholds, exists, places[exists], counts))
    return blocks


def _count_tile(rows: Block, columns: Block) -> tuple[Int64[np.ndarray, "P n"], Int64[np.ndarray, "Q m"]]:
    """Counts one tile for its rows and its columns. Up to 255 flags are summed in a byte, which makes it fast."""
    scores = (rows.vectors @ columns.vectors.T).astype(np.float32)
    n, m = scores.shape
    groups = np.zeros((n, -(-m // BYTE), BYTE), np.uint8)
    reached = groups.reshape(n, -1)[:, :m].view(bool)
    of_rows, of_columns = np.zeros_like(rows.counts), np.zeros_like(columns.counts)
    for p, wanted in enumerate(rows.thresholds):
        np.greater_equal(scores, wanted[:, None], out=reached)
        of_rows[p] = np.einsum("ngi->ng", groups).sum(axis=1)  # einsum sums bytes five times faster than np.sum
    for p, wanted in enumerate(columns.thresholds):
        k = np.count_nonzero(columns.exists[p])  # the first k items have a p-th threshold
        np.greater_equal(scores[:, :k], wanted[:k], out=reached[:, :k])
        of_columns[p, :k] = reached[:, :k].view(np.uint8).sum(axis=0, dtype=np.uint8)
    return of_rows, of_columns


def _gathered(blocks: list[Block], total: int) -> np.ndarray:
    """Returns the counts of all processes in the order of the items' thresholds."""
    result = np.empty(total, np.int64)
    for block in blocks:
        result[block.places] = block.counts[block.exists]
    return allgather(result).sum(axis=0)
