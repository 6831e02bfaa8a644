"""Which items belong together, and how alike they are: the few pairs that retrieval is judged by."""

import numpy as np

CHUNK = 1 << 11  # pairs scored at once: they stay in the cache


def shared_products(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a row of a and a row of b that have a product in common, each once, sorted.

    Products (1), (2, 3) and (3), (2, 3), (1) give the pairs 0–2, 1–0 and 1–1.

    Args:
      a, b: i32[A, M] and i32[B, N] product ids, padded with -1.

    Returns:
      i64[K] rows of a, and i64[K] those of b.
    """
    (rows_a, ids_a), (rows_b, ids_b) = _listed(a), _listed(b)
    order = np.argsort(ids_b, kind="stable")
    rows_b, ids_b = rows_b[order], ids_b[order]
    starts, ends = (np.searchsorted(ids_b, ids_a, side) for side in ("left", "right"))
    sizes = ends - starts
    skipped = np.cumsum(sizes) - sizes  # pairs of the rows before
    places = np.arange(sizes.sum()) + np.repeat(starts - skipped, sizes)
    # Two products in common make a pair twice.
    pairs = np.unique(np.repeat(rows_a, sizes) * len(b) + rows_b[places])
    return pairs // max(len(b), 1), pairs % max(len(b), 1)


def pair_scores(a: np.ndarray, b: np.ndarray, rows_a: np.ndarray, rows_b: np.ndarray) -> np.ndarray:
    """Dot products f64[K] of row rows_a[k] of a f32[A, E] with row rows_b[k] of b f32[B, E]."""
    scores = np.empty(len(rows_a))
    for start in range(0, len(rows_a), CHUNK):
        part = slice(start, start + CHUNK)
        left, right = a[rows_a[part]].astype(np.float64), b[rows_b[part]].astype(np.float64)
        scores[part] = np.einsum("ke,ke->k", left, right)
    return scores


def _listed(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and id of every product of every item."""
    rows, columns = np.nonzero(products >= 0)
    return rows, products[rows, columns]
