"""Conversion of torch's tensors to parameters, and of positions to other sizes; in NumPy, one parameter at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a parameter, or one layer of a stacked parameter, is made from tensors."""

    source_shape: Callable[[Shape], Shape]  # shape of the parameter → required shape of each tensor
    convert: Callable[[Sequence[np.ndarray], Shape], np.ndarray]  # (float32 tensors, shape of the parameter) → value


COPY = Layout(lambda shape: shape, lambda tensors, shape: tensors[0])
LINEAR = Layout(lambda shape: shape[::-1], lambda tensors, shape: tensors[0].T)  # torch: [out, in]
PATCHES = Layout(  # torch: [D, 3, P, P]
    lambda shape: (shape[3], shape[2], *shape[:2]), lambda tensors, shape: tensors[0].transpose(2, 3, 1, 0)
)
QKV_KERNEL = Layout(  # [heads·d, D] each → [D, 3, heads, d]
    lambda shape: (shape[2] * shape[3], shape[0]),
    lambda tensors, shape: np.stack([tensor.T for tensor in tensors], axis=1).reshape(shape),
)
QKV_BIAS = Layout(  # [heads·d] each → [3, heads, d]
    lambda shape: (shape[1] * shape[2],), lambda tensors, shape: np.stack(tensors).reshape(shape)
)
OUT_KERNEL = Layout(  # [D, heads·d] → [heads, d, D]
    lambda shape: (shape[2], shape[0] * shape[1]), lambda tensors, shape: tensors[0].T.reshape(shape)
)
PROBE = Layout(lambda shape: (1, 1, *shape), lambda tensors, shape: tensors[0][0, 0])  # of attention pooling


def fused_kernel(first: int, layers: int) -> Layout:
    """Layout of one or several layers [D, …, heads, d] from `first` on of `layers` stacked in one tensor."""
    return Layout(
        lambda shape: (layers * shape[-2] * shape[-1], shape[0]),
        lambda tensors, shape: _fused_rows(tensors[0], first, prod(shape[1:]), prod(shape[-2:])).T.reshape(shape),
    )


def fused_bias(first: int, layers: int) -> Layout:
    """Layout of the biases [heads, d] or [layers, heads, d] of `fused_kernel`."""
    return Layout(
        lambda shape: (layers * shape[-2] * shape[-1],),
        lambda tensors, shape: _fused_rows(tensors[0], first, prod(shape), prod(shape[-2:])).reshape(shape),
    )


def _fused_rows(tensor: np.ndarray, first: int, rows: int, width: int) -> np.ndarray:
    return tensor[first * width : first * width + rows]


def grid_positions(rows: int, *, class_token: bool = True) -> Layout:
    """Layout of `rows` positions: the class token, if there is one, then a square grid of patches."""
    first = int(class_token)
    return Layout(lambda shape: (rows, shape[1]), lambda tensors, shape: resize_grid(tensors[0], shape[0], first=first))


def frame_positions(frames: int) -> Layout:
    """Layout of the positions of frames, [1, frames, D]."""
    return Layout(lambda shape: (1, frames, shape[1]), lambda tensors, shape: resize_line(tensors[0][0], shape[0]))


def first_rows(rows: int) -> Layout:
    """Layout of `rows` vectors, of which the first are used; the last one is repeated if there are too few."""
    return Layout(
        lambda shape: (rows, shape[1]), lambda tensors, shape: tensors[0][np.minimum(np.arange(shape[0]), rows - 1)]
    )


def words(rows: int, *, padding: int) -> Layout:
    """Layout like `first_rows`, with the vector of padding, which the checkpoint has in another row, in row 0."""

    def convert(tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        table = first_rows(rows).convert(tensors, shape).copy()
        table[0] = tensors[0][padding]
        return table

    return Layout(lambda shape: (rows, shape[1]), convert)


def resize_grid(table: np.ndarray, rows: int, *, first: int = 1) -> np.ndarray:
    """Resizes positions [first + side², D] to [rows, D] by bicubic interpolation; the `first` ones (class token) stay.

    The interpolation is that of `interpolate_pos_encoding` in transformers, so outputs at other resolutions agree.
    """
    if rows == len(table):
        return table
    old, new = (round((n - first) ** 0.5) for n in (len(table), rows))
    weights = interpolation(old, new, cubic, reach=2)
    grid = np.einsum("ai,bj,ijd->abd", weights, weights, table[first:].reshape(old, old, -1), optimize=True)
    return np.concatenate([table[:first], grid.reshape(new * new, -1).astype(table.dtype)])


def resize_line(table: np.ndarray, rows: int) -> np.ndarray:
    """Resizes positions [T, D] to [rows, D] by linear interpolation."""
    if rows == len(table):
        return table
    return (interpolation(len(table), rows, triangle, reach=1) @ table).astype(table.dtype)


def interpolation(old: int, new: int, kernel: Callable[[np.ndarray], np.ndarray], *, reach: int) -> np.ndarray:
    """Returns the weights [new, old] of the old points in each new point, both at the centers of equal segments.

    Args:
        old, new: Number of points.
        kernel: Distances in old points → weights; 0 from `reach` on. Points beyond the ends count as the end.
        reach: Radius of the kernel.
    """
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for offset in range(1 - reach, reach + 1):
        points = np.floor(centers).astype(int) + offset
        np.add.at(weights, (np.arange(new), points.clip(0, old - 1)), kernel(np.abs(centers - points)))
    return weights


def triangle(distance: np.ndarray) -> np.ndarray:
    """Kernel of linear interpolation."""
    return np.maximum(1 - distance, 0)


def cubic(distance: np.ndarray, *, a: float = -0.75) -> np.ndarray:
    """Keys's cubic convolution kernel with slope `a` at distance 1: torch uses −0.75, jax.image −0.5."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
