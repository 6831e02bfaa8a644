"""Layouts against loops over indices, interpolation against formulas."""

import numpy as np
import pytest

from cope_jax.models.backbones.layouts import (
    LINEAR,
    OUT_KERNEL,
    PATCHES,
    QKV_BIAS,
    QKV_KERNEL,
    cubic,
    first_rows,
    frame_positions,
    grid_positions,
    interpolation,
    resize_grid,
    resize_line,
)

rng = np.random.default_rng(0)
D, HEADS, SIZE = 6, 3, 2


def test_queries_keys_and_values_keep_their_heads():
    """Output feature head·size + i of torch's layer is entry (head, i) of ours."""
    q, k, v = rng.normal(size=(3, D, D))
    kernel = QKV_KERNEL.convert([q, k, v], (D, 3, HEADS, SIZE))
    bias = QKV_BIAS.convert([q[0], k[0], v[0]], (3, HEADS, SIZE))
    for n, source in enumerate((q, k, v)):
        for head in range(HEADS):
            for i in range(SIZE):
                np.testing.assert_array_equal(kernel[:, n, head, i], source[head * SIZE + i])
                assert bias[n, head, i] == source[0, head * SIZE + i]
    assert QKV_KERNEL.source_shape((5, 3, HEADS, SIZE)) == (6, 5)
    assert QKV_BIAS.source_shape((3, HEADS, SIZE)) == (6,)


def test_attention_outputs_and_linear_layers_equal_torch():
    weight, x = rng.normal(size=(5, D)), rng.normal(size=D)
    out = OUT_KERNEL.convert([weight], (HEADS, SIZE, 5))
    np.testing.assert_allclose(np.einsum("hd,hde->e", x.reshape(HEADS, SIZE), out), weight @ x, rtol=1e-12)
    np.testing.assert_allclose(x @ LINEAR.convert([weight], (D, 5)), weight @ x, rtol=1e-12)
    assert OUT_KERNEL.source_shape((HEADS, SIZE, 5)) == LINEAR.source_shape((D, 5)) == (5, 6)


def test_patches_keep_rows_columns_and_colors():
    weight = rng.normal(size=(5, 3, 2, 4))
    kernel = PATCHES.convert([weight], (2, 4, 3, 5))
    assert kernel[1, 2, 0, 4] == weight[4, 0, 1, 2]
    assert PATCHES.source_shape((2, 4, 3, 5)) == (5, 3, 2, 4)


def test_positions_of_the_same_size_are_copied():
    table = rng.normal(size=(5, D)).astype(np.float32)
    np.testing.assert_array_equal(grid_positions(5).convert([table], (5, D)), table)
    np.testing.assert_array_equal(frame_positions(5).convert([table[None]], (5, D)), table)
    np.testing.assert_array_equal(first_rows(5).convert([table], (3, D)), table[:3])
    assert grid_positions(5).source_shape((10, D)) == first_rows(5).source_shape((3, D)) == (5, D)
    assert frame_positions(5).source_shape((10, D)) == (1, 5, D)


def test_frame_positions_are_interpolated_between_the_centers_of_frames():
    """4 → 2: new frames are midway between two old ones; 2 → 4: at quarters, and the ends repeat."""
    np.testing.assert_allclose(resize_line(np.asarray([[0.0], [1.0], [5.0], [7.0]]), 2), [[0.5], [6.0]])
    np.testing.assert_allclose(resize_line(np.asarray([[0.0], [4.0]]), 4), [[0.0], [1.0], [3.0], [4.0]])


def test_grid_positions_follow_rows_and_columns_and_keep_the_class_token():
    """Away from the border, a resized plane is the same plane up to the ripple of a = −0.75."""
    side, new = 8, 12
    rows, columns = np.mgrid[:side, :side]
    table = np.stack([rows.ravel(), columns.ravel(), np.full(side * side, 7)], axis=1).astype(float)
    resized = resize_grid(np.concatenate([[[-1.0, -2.0, -3.0]], table]), 1 + new * new)
    np.testing.assert_array_equal(resized[0], [-1, -2, -3])
    grid = resized[1:].reshape(new, new, 3)
    centers = (np.arange(new) + 0.5) * side / new - 0.5
    inner = slice(3, -3)
    np.testing.assert_allclose(grid[inner, inner, 0], np.repeat(centers[inner, None], new - 6, axis=1), atol=0.05)
    np.testing.assert_allclose(grid[inner, inner, 1], np.repeat(centers[None, inner], new - 6, axis=0), atol=0.05)
    np.testing.assert_allclose(grid[..., 2], 7)


def test_the_cubic_kernel_is_that_of_torch():
    """At 0.5 and 1.5: 0.59375 and −0.09375 with a = −0.75; a = −0.5 would give 0.5625 and −0.0625."""
    np.testing.assert_allclose(cubic(np.asarray([0.0, 0.5, 1.0, 1.5, 2.0])), [1, 0.59375, 0, -0.09375, 0])
    np.testing.assert_allclose(interpolation(4, 2, cubic, reach=2).sum(axis=1), 1)


@pytest.mark.parametrize("new", [1, 3, 9])
def test_interpolation_weights_sum_to_one(new):
    np.testing.assert_allclose(interpolation(5, new, cubic, reach=2).sum(axis=1), 1)
