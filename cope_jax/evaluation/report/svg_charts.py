"""Curves → what a template needs to draw them as SVG: places in pixels, ticks, and a description in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 340, 210  # of a chart
LEFT, TOP, RIGHT, BOTTOM = 54, 10, 12, 38  # what its axes leave free


@dataclass(frozen=True)
class Axis:
    """An axis from low to high; with `log` its places are logarithms, and `ticks` must be given."""

    label: str
    low: float
    high: float
    log: bool = False
    ticks: Sequence[float] | None = None

    def place(self, values: np.ndarray) -> np.ndarray:
        """Values → 0 at low, 1 at high."""
        low, high, values = (np.log(v) if self.log else v for v in (self.low, self.high, np.asarray(values, float)))
        return (values - low) / (high - low) if high > low else np.full_like(values, 0.5)

    def labelled(self) -> list[tuple[float, str]]:
        """Places and texts of the ticks."""
        ticks = self.ticks if self.ticks is not None else round_ticks(self.low, self.high)
        return list(zip(self.place(np.array(ticks)).tolist(), map(short, ticks), strict=True))


@dataclass(frozen=True)
class Curve:
    """A named curve through f64[n] xs and ys; `style` is the class that the style sheet knows it by."""

    name: str
    style: str
    xs: np.ndarray
    ys: np.ndarray
    filled: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
      title, description: in words.
      lines: (name, style, path) of each curve, paths in SVG's language.
      x_ticks, y_ticks: (pixel, text) of each tick.
      x_label, y_label: of the axes.
    """

    title: str
    description: str
    lines: list[tuple[str, str, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_label: str
    y_label: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def chart(title: str, curves: Sequence[Curve], x: Axis, y: Axis, *, description: str = "") -> Chart:
    """Draws curves; the description ends with where each of them begins and ends, unless one is given."""
    return Chart(
        title=title,
        description=description or "; ".join(map(course, curves)),
        lines=[(curve.name, curve.style, path(curve, x, y)) for curve in curves],
        x_ticks=[(across(place), text) for place, text in x.labelled()],
        y_ticks=[(down(place), text) for place, text in y.labelled()],
        x_label=x.label,
        y_label=y.label,
    )


def path(curve: Curve, x: Axis, y: Axis) -> str:
    """The curve as an SVG path; filled ones go down to the axis and back."""
    places = zip(x.place(curve.xs).tolist(), y.place(curve.ys).tolist(), strict=True)
    steps = [f"{across(a)} {down(b)}" for a, b in places]
    if not steps:
        return ""
    if curve.filled:
        first, last = (across(float(place)) for place in x.place(curve.xs[[0, -1]]))
        steps = [f"{first} {down(0)}", *steps, f"{last} {down(0)}"]
    return "M" + "L".join(steps) + ("Z" if curve.filled else "")


def across(place: float) -> float:
    """0 … 1 → pixels from the left."""
    return round(float(LEFT + place * (WIDTH - LEFT - RIGHT)), 1)


def down(place: float) -> float:
    """0 … 1 → pixels from the top."""
    return round(float(HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)), 1)


def course(curve: Curve) -> str:
    """A curve in words: "loss from 35.6 to 13.6"."""
    return f"{curve.name} from {short(curve.ys[0])} to {short(curve.ys[-1])}" if len(curve.ys) else curve.name


def round_ticks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Round numbers between low and high, some `about` of them: 0, 7 → 0, 2, 4, 6."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min((unit * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in few characters: 1200 → 1200, 0.002 → 0.002, 12000 → 12k."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
