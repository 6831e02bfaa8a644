"""Charts of how a run's training went."""

from pathlib import Path

import numpy as np

from cope_jax.evaluation.report.svg_charts import Axis, Chart, Curve, chart
from cope_jax.evaluation.report.training_history import (
    Curves,
    accuracies,
    evaluations,
    losses,
    read_history,
    throughput,
)
from cope_jax.runs.config import RunConfig
from cope_jax.runs.schedule import rate_schedule


def training_charts(workdir: Path, config: RunConfig) -> list[Chart]:
    """Loss, accuracy of its terms within the batch, evaluations, learning rate and throughput; none without a log."""
    history = read_history(workdir)
    if not history:
        return []
    steps = Axis("step", 0, history[-1]["step"])
    charts = [_chart("Loss", losses(history), steps, "loss", style=_term_style)]
    for term, curves in accuracies(history).items():
        charts.append(_chart(f"{term}: nearest of the batch is right", curves, steps, "share", style=pair_style, top=1))
    if evaluated := evaluations(workdir):
        charts.append(_chart("Mean R@1 on some products", evaluated, steps, "mean R@1", style=_average_style, top=1))
    charts.append(_chart("Learning rate", {"learning rate": rates(config, history[-1]["step"])}, steps, "rate"))
    speeds = throughput(workdir)
    if len(speeds[0]):
        charts.append(_chart("Throughput", {"products a second": speeds}, steps, "products a second"))
    return charts


def rates(config: RunConfig, last: int) -> tuple[np.ndarray, np.ndarray]:
    """The learning rate at 200 steps up to the last one, as the config has it."""
    optimizer = config.optimizer
    schedule = rate_schedule(rate=optimizer.rate, warmup_steps=optimizer.warmup_steps, steps=config.train.steps)
    steps = np.unique(np.linspace(0, last, 200).astype(int))
    return steps.astype(float), np.asarray(schedule(steps), float)


def pair_style(name: str) -> str:
    """Classes for a pair of sides: its domains give the colour, a side of text or vision alone the dashes.

    "page text – live" → "page-live text"; "video" → "video"
    """
    words = name.replace("–", " ").split()
    domains = [word for word in words if word not in ("text", "vision")]
    return " ".join(["-".join(domains), *(word for word in words if word in ("text", "vision"))])


def _term_style(name: str) -> str:
    return "main" if name == "loss" else f"term {name}"


def _average_style(name: str) -> str:
    return "main" if name == "the model" else "term"


def _chart(title: str, curves: Curves, steps: Axis, label: str, *, style=lambda name: "main", top: float = 0) -> Chart:
    """Named curves over the steps, from 0 up; to `top` where it is given."""
    highest = max((float(ys.max()) for _, ys in curves.values() if len(ys)), default=1.0)
    lowest = min((float(ys.min()) for _, ys in curves.values() if len(ys)), default=0.0)
    drawn = [Curve(name, style(name), xs, ys) for name, (xs, ys) in curves.items()]
    return chart(title, drawn, steps, Axis(label, min(lowest, 0), top or highest))
