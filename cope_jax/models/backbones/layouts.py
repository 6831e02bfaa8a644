"""How torch and this code lay out the same parameter, and how positions are carried to another size.

numpy throughout: tensors are rearranged on the host, one at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a parameter, or one layer of a stacked one, is made of tensors of a checkpoint.

    Attributes:
        source_shape: from the parameter's shape to that which each of the tensors must have.
        convert: from the tensors, float32, and the parameter's shape to its value.
    """

    source_shape: Callable[[Shape], Shape]
    convert: Callable[[Sequence[np.ndarray], Shape], np.ndarray]


def join_kernels(tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
    """Kernels [heads·d, D] of queries, keys and values → [D, 3, heads, d]."""
    return np.stack([tensor.T for tensor in tensors], axis=1).reshape(shape)


COPY = Layout(lambda shape: shape, lambda tensors, shape: tensors[0])
LINEAR = Layout(lambda shape: shape[::-1], lambda tensors, shape: tensors[0].T)  # torch: [out, in]
PATCHES = Layout(  # torch: [D, 3, P, P]
    lambda shape: (shape[3], shape[2], *shape[:2]), lambda tensors, shape: tensors[0].transpose(2, 3, 1, 0)
)
QKV_KERNEL = Layout(lambda shape: (shape[2] * shape[3], shape[0]), join_kernels)
QKV_BIAS = Layout(  # [heads·d] each → [3, heads, d]
    lambda shape: (shape[1] * shape[2],), lambda tensors, shape: np.stack(tensors).reshape(shape)
)
OUT_KERNEL = Layout(  # [D, heads·d] → [heads, d, D]
    lambda shape: (shape[2], shape[0] * shape[1]), lambda tensors, shape: tensors[0].T.reshape(shape)
)


def grid_positions(rows: int) -> Layout:
    """Positions of the class token and of a square grid of patches: `rows` in the source, class first."""
    return Layout(lambda shape: (rows, shape[1]), lambda tensors, shape: resize_grid(tensors[0], shape[0]))


def frame_positions(frames: int) -> Layout:
    """Positions of the frames of a clip: [1, frames, D] in the source."""
    return Layout(lambda shape: (1, frames, shape[1]), lambda tensors, shape: resize_line(tensors[0][0], shape[0]))


def first_rows(rows: int) -> Layout:
    """Positions of words, `rows` in the source: the first ones, for a shorter longest text."""
    return Layout(lambda shape: (rows, shape[1]), lambda tensors, shape: tensors[0][: shape[0]])


def resize_grid(table: np.ndarray, rows: int) -> np.ndarray:
    """Positions [1 + side², D] → [rows, D] by bicubic interpolation of the grid; the class token's row stays.

    The same interpolation as `interpolate_pos_encoding` of transformers, so that its models at another resolution
    agree with ours.
    """
    if rows == len(table):
        return table
    old, new = (round((n - 1) ** 0.5) for n in (len(table), rows))
    weights = interpolation(old, new, cubic, reach=2)
    grid = np.einsum("ai,bj,ijd->abd", weights, weights, table[1:].reshape(old, old, -1), optimize=True)
    return np.concatenate([table[:1], grid.reshape(new * new, -1).astype(table.dtype)])


def resize_line(table: np.ndarray, rows: int) -> np.ndarray:
    """Positions [T, D] → [rows, D] by linear interpolation."""
    if rows == len(table):
        return table
    return (interpolation(len(table), rows, linear, reach=1) @ table).astype(table.dtype)


def interpolation(old: int, new: int, kernel: Callable[[np.ndarray], np.ndarray], *, reach: int) -> np.ndarray:
    """Weights float64[new, old] of the old points in each new one, both the middles of equal parts of one line.

    Args:
        kernel: from distances, in old points, to weights; 0 from `reach` on.
        reach: points further out than the ends count as the end itself.
    """
    middles = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for offset in range(1 - reach, reach + 1):
        points = np.floor(middles).astype(int) + offset
        np.add.at(weights, (np.arange(new), points.clip(0, old - 1)), kernel(np.abs(middles - points)))
    return weights


def linear(distance: np.ndarray) -> np.ndarray:
    """The triangle: 1 at 0, 0 from 1 on."""
    return np.maximum(1 - distance, 0)


def keys(distance: np.ndarray, *, a: float) -> np.ndarray:
    """Keys's cubic convolution kernel with slope `a` at distance 1."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


cubic = partial(keys, a=-0.75)  # torch's; jax.image uses −0.5
