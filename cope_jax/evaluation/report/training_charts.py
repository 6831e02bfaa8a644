"""Charts of a run's training, from its logs."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cope_jax.evaluation.report.svg_charts import Axis, Chart, Curve, chart
from cope_jax.runs.config import AVERAGE_PREFIX, RunConfig
from cope_jax.runs.learning_rate import make_schedule
from cope_jax.runs.log_files import EVALUATIONS, read_json_lines
from data_prep.common.domains import DOMAINS, batch_entries

Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # name → steps and values
MODALITIES = {"": "both", "_text": "text", "_vision": "frames"}  # suffix of a view's name → what it embeds


def training_charts(workdir: Path, config: RunConfig) -> list[Chart]:
    """Draws loss, batch accuracies, evaluations, learning rate, and throughput; returns nothing without a log."""
    history = read_json_lines(workdir / "metrics.jsonl")
    if not history:
        return []
    steps = Axis("step", 0, history[-1]["step"])
    charts = [
        _chart("Loss", losses(history), steps, "loss", style=lambda name: "main" if name == "loss" else f"term {name}")
    ]
    for term, curves in accuracies(history, tuple(config.data.domains)).items():
        style = partial(pair_style, others=[*curves])
        charts.append(_chart(f"{term}: nearest in the batch is right", curves, steps, "share", style=style, top=1))
    if evaluated := evaluations(workdir):
        style = {"the model": "main", "its moving average": "term"}.__getitem__
        charts.append(_chart("Mean R@1 on some products", evaluated, steps, "mean R@1", style=style, top=1))
    charts.append(_chart("Learning rate", {"learning rate": rates(config, history[-1]["step"])}, steps, "rate"))
    speeds = throughput(workdir)
    if len(speeds[0]):
        charts.append(_chart("Throughput", {"products per second": speeds}, steps, "products per second"))
    return charts


def losses(history: list[dict[str, Any]]) -> Curves:
    """Returns the total loss and, if there are several terms, each of them without its weight."""
    terms = sorted({name for line in history for name in line if name.endswith("/loss")})
    names = ["loss", *(terms if len(terms) > 1 else [])]
    return {name.removesuffix("/loss"): _mean_curve(history, [name]) for name in names}


def accuracies(history: list[dict[str, Any]], domains: Sequence[str] = DOMAINS) -> dict[str, Curves]:
    """Returns how often the nearest item in the batch was right, by loss term and pair of domains.

    Both directions of a pair are averaged: "page_video" and "video_page" become "page – video". Pairs of single
    modalities are averaged over all domains: "frames – text". Pairs within a domain are left out, because few items of
    a batch have a positive there.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted({name for line in history for name in line if "/accuracy/" in name}):
        term, _, views = name.partition("/accuracy/")
        if not views.endswith("_within"):
            found.setdefault(term, {}).setdefault(pair_name(views, domains), []).append(name)
    return {
        term: {pair: _mean_curve(history, names) for pair, names in sorted(pairs.items())}
        for term, pairs in found.items()
    }


def pair_name(metric: str, domains: Sequence[str] = DOMAINS) -> str:
    """Names a pair of views by domains or modalities: "live_page" → "page – live", "page_text_live" → "both – text"."""
    entries = tuple(batch_entries(domains, domains))
    parts = {f"{entry}{suffix}": part for entry in entries for suffix, part in MODALITIES.items()}
    for a in parts:
        if metric.startswith(f"{a}_") and (b := metric.removeprefix(f"{a}_")) in parts:
            whole = parts[a] == parts[b] == "both"
            return " – ".join(sorted((a, b), key=entries.index) if whole else sorted((parts[a], parts[b])))
    return metric


def evaluations(workdir: Path) -> Curves:
    """Returns the mean R@1 evaluated during training, of the model and of its moving average if there is one."""
    found = read_json_lines(workdir / EVALUATIONS)
    names = {"the model": "mean_r1", "its moving average": f"{AVERAGE_PREFIX}mean_r1"}
    curves = {title: _mean_curve(found, [name]) for title, name in names.items()}
    return {title: curve for title, curve in curves.items() if len(curve[0])}


def throughput(workdir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps and products per second; of a repeated step, the last measurement."""
    speeds = {line["step"]: line["examples_per_s"] for line in read_json_lines(workdir / "speed.jsonl")}
    steps = sorted(speeds)
    return np.array(steps, float), np.array([speeds[step] for step in steps], float)


def rates(config: RunConfig, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the configured learning rate at up to 200 steps."""
    schedule = make_schedule(config.optimizer, config.train.steps)
    steps = np.unique(np.linspace(0, last, 200).astype(int))
    return steps.astype(float), np.asarray(schedule(steps), float)


def pair_style(name: str, others: Sequence[str] = ()) -> str:
    """Returns the classes of a pair: domains set the color, and modalities the dashes.

    "page – live" → "page-live"; "video" → "video"; "frames – text" → "modality frames-text". Pairs with domains other
    than ROPE's get the color of their place among `others`, all pairs of the chart.
    """
    names = name.split(" – ")
    if set(names) <= set(MODALITIES.values()):
        return f"modality {'-'.join(names)}"
    if name in others and not set(names) <= set(DOMAINS):
        return f"pair{others.index(name) % 7}"
    return "-".join(names)


def _mean_curve(history: list[dict[str, Any]], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of some metrics at the steps that have all of them."""
    lines = [line for line in history if all(line.get(name) is not None for name in names)]
    steps = np.array([line["step"] for line in lines], float)
    return steps, np.array([np.mean([line[name] for name in names]) for line in lines])


def _chart(
    title: str,
    curves: Curves,
    steps: Axis,
    label: str,
    *,
    style: Callable[[str], str] = lambda name: "main",
    top: float = 0,
) -> Chart:
    """Draws curves over the steps, from 0 or the lowest value to `top` or the highest value."""
    highest = max((float(ys.max()) for _, ys in curves.values() if len(ys)), default=1.0)
    lowest = min((float(ys.min()) for _, ys in curves.values() if len(ys)), default=0.0)
    drawn = [Curve(name, style(name), xs, ys) for name, (xs, ys) in curves.items()]
    return chart(title, drawn, steps, Axis(label, min(lowest, 0), top or highest))
