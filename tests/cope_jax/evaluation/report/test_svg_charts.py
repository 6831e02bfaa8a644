"""Paths and ticks of charts."""

import re

import numpy as np
import pytest

from cope_jax.evaluation.report.report import PAGES
from cope_jax.evaluation.report.svg_charts import Axis, Curve, chart, round_ticks, short_number, svg_path
from data_prep.common.html_pages import page_environment


def test_curves_are_scaled_to_the_axes():
    curve = Curve("loss", "main", np.array([0.0, 50, 100]), np.array([3.0, 1, 0]))
    drawn = chart("Loss", [curve], Axis("step", 0, 100), Axis("loss", 0, 3))
    left, right, top, bottom = drawn.left, drawn.right, drawn.top, drawn.bottom
    middle = (left + right) / 2
    assert drawn.lines == [
        (
            "loss",
            "main",
            f"M{left:.1f} {top:.1f}L{middle:.1f} {bottom - (bottom - top) / 3:.1f}L{right:.1f} {bottom:.1f}",
            False,
        )
    ]
    assert drawn.description == "loss from 3 to 0"
    assert drawn.y_ticks == [(pytest.approx(bottom - (bottom - top) * i / 3, abs=0.05), str(i)) for i in range(4)]


def test_filled_curves_end_on_the_x_axis():
    curve = Curve("pairs", "positive", np.array([0.0, 1]), np.array([0.5, 1]), filled=True)
    drawn = chart("Pairs", [curve], Axis("x", 0, 1), Axis("y", 0, 1))
    assert drawn.lines[0][2].startswith(f"M{drawn.left:.1f} {drawn.bottom:.1f}L")
    assert drawn.lines[0][2].endswith(f"L{drawn.right:.1f} {drawn.bottom:.1f}Z")


def test_points_and_a_single_point_are_visible():
    x, y = Axis("x", 0, 1), Axis("y", 0, 1)
    points = svg_path(Curve("pairs", "positive", np.array([0.0, 1]), np.array([0, 0]), points=True), x, y)
    assert points.count("M") == 2
    assert points.count("a3.5 3.5") == 4
    single = svg_path(Curve("loss", "main", np.array([0.0]), np.array([1])), x, y)
    start, end = single.removeprefix("M").split("L")
    assert start == end


def test_the_legend_marks_points_as_points():
    xs = np.array([0.0, 1])
    curves = [Curve("wrong", "nearest", xs, xs), Curve("pairs", "positive", xs, xs, points=True)]
    drawn = chart("Pairs", curves, Axis("x", 0, 1), Axis("y", 0, 1))
    source = '{% from "chart.html.jinja" import draw %}{{ draw(drawn, "pairs") }}'
    html = page_environment(PAGES).from_string(source).render(drawn=drawn)
    marks = re.findall('<path class="line ([a-z]+)" d="([^"]+)"/></svg>([a-z]+)</li>', html)
    assert marks == [
        ("nearest", "M1 5L25 5", "wrong"),
        ("positive", "M9.5 5a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0", "pairs"),
    ]


def test_logarithmic_axes():
    assert Axis("k", 1, 100, log=True, ticks=(1, 10, 100)).labeled_ticks() == [
        (pytest.approx(0), "1"),
        (pytest.approx(0.5), "10"),
        (pytest.approx(1), "100"),
    ]


def test_axis_of_length_zero_and_empty_curve():
    assert Axis("x", 2, 2).fraction(np.array([2.0])).tolist() == [0.5]
    assert svg_path(Curve("none", "main", np.zeros(0), np.zeros(0)), Axis("x", 0, 1), Axis("y", 0, 1)) == ""


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 7, [0, 2, 4, 6]), (0, 35.6, [0, 10, 20, 30]), (0, 0.002, [0, 0.0005, 0.001, 0.0015, 0.002]), (3, 3, [3])],
)
def test_ticks_are_round(low, high, ticks):
    assert round_ticks(low, high) == pytest.approx(ticks)


def test_short_numbers():
    assert [short_number(value) for value in (0, 0.00051, 0.5, 35.58, 1200, 12000)] == [
        "0",
        "0.00051",
        "0.5",
        "35.6",
        "1200",
        "12k",
    ]
