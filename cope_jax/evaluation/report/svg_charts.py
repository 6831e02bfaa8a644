"""Line charts as SVG: paths and ticks in pixels, and a description in words, for the template."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 340, 210  # pixels of a chart
LEFT, TOP, RIGHT, BOTTOM = 54, 10, WIDTH - 12, HEIGHT - 38  # pixels of the plotting area
DOT = 3.5  # pixels, radius of a point
_CIRCLE = f"a{DOT} {DOT} 0 1 0 {2 * DOT} 0a{DOT} {DOT} 0 1 0 {-2 * DOT} 0"


@dataclass(frozen=True)
class Axis:
    """An axis. If it is logarithmic, `ticks` is required."""

    label: str
    low: float
    high: float
    log: bool = False
    ticks: Sequence[float] | None = None

    def fraction(self, values: np.ndarray) -> np.ndarray:
        """Returns positions on the axis: 0 at low, 1 at high."""
        low, high, values = self.low, self.high, np.asarray(values, float)
        if self.log:
            low, high, values = np.log(low), np.log(high), np.log(values)
        return (values - low) / (high - low) if high > low else np.full_like(values, 0.5)

    def labeled_ticks(self) -> list[tuple[float, str]]:
        """Returns the position and the text of each tick."""
        ticks = self.ticks if self.ticks is not None else round_ticks(self.low, self.high)
        return list(zip(self.fraction(np.array(ticks)).tolist(), map(short_number, ticks), strict=True))


@dataclass(frozen=True)
class Curve:
    """A named curve, or points; `style` is its class in the style sheet."""

    name: str
    style: str
    xs: np.ndarray
    ys: np.ndarray
    filled: bool = False
    points: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart as the template draws it.

    `lines` has (name, style, SVG path, whether it is points) of each curve, and ticks are (pixel, text).
    """

    title: str
    description: str
    lines: list[tuple[str, str, str, bool]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_label: str
    y_label: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


def chart(title: str, curves: Sequence[Curve], x: Axis, y: Axis, *, description: str = "") -> Chart:
    """Lays out a chart. By default, the description is the first and last value of each curve."""
    ranges = [
        f"{own.name} from {short_number(own.ys[0])} to {short_number(own.ys[-1])}" if len(own.ys) else own.name
        for own in curves
    ]
    return Chart(
        title=title,
        description=description or "; ".join(ranges),
        lines=[(curve.name, curve.style, svg_path(curve, x, y), curve.points) for curve in curves],
        x_ticks=[(_x_pixel(fraction), text) for fraction, text in x.labeled_ticks()],
        y_ticks=[(_y_pixel(fraction), text) for fraction, text in y.labeled_ticks()],
        x_label=x.label,
        y_label=y.label,
    )


def svg_path(curve: Curve, x: Axis, y: Axis) -> str:
    """Returns a curve as an SVG path, closed along the x axis if it is filled. A single point is a dot."""
    if not len(curve.xs):
        return ""
    points = list(zip(x.fraction(curve.xs).tolist(), y.fraction(curve.ys).tolist(), strict=True))
    if curve.points:
        return "".join(f"M{_x_pixel(a) - DOT} {_y_pixel(b)}{_CIRCLE}" for a, b in points)
    points *= 2 if len(points) == 1 else 1
    if curve.filled:
        points = [(points[0][0], 0), *points, (points[-1][0], 0)]
    return "M" + "L".join(f"{_x_pixel(a)} {_y_pixel(b)}" for a, b in points) + ("Z" if curve.filled else "")


def _x_pixel(fraction: float) -> float:
    return round(LEFT + fraction * (RIGHT - LEFT), 1)


def _y_pixel(fraction: float) -> float:
    return round(float(BOTTOM - fraction * (BOTTOM - TOP)), 1)


def round_ticks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Returns about `about` round numbers between low and high: 0, 7 → 0, 2, 4, 6."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min((unit * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def short_number(value: float) -> str:
    """Formats a number with few characters: 1200 → 1200, 0.002 → 0.002, 12000 → 12k."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
