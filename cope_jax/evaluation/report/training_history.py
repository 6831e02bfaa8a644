"""How a run's training went, from its logs."""

from pathlib import Path
from typing import Any

import numpy as np

from cope_jax.domains import DOMAINS
from cope_jax.runs.config import AVERAGE_PREFIX
from cope_jax.runs.log_files import EVALUATIONS, read_json_lines

SIDES = (*DOMAINS, "page_text", "page_vision")

Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # name → steps and values, f64[n] each


def read_history(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    return read_json_lines(workdir / "metrics.jsonl")


def losses(history: list[dict[str, Any]]) -> Curves:
    """The whole loss, and where it has several terms each of them, without its weight."""
    terms = sorted({name for line in history for name in line if name.endswith("/loss")})
    names = ["loss", *(terms if len(terms) > 1 else [])]
    return {name.removesuffix("/loss"): _curve(history, [name]) for name in names}


def accuracies(history: list[dict[str, Any]]) -> dict[str, Curves]:
    """How often the nearest of the batch was right, by term of the loss.

    Of a pair of sides, the mean over both directions: "page_video" and "video_page" make "page – video".
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted({name for line in history for name in line if "/accuracy/" in name}):
        term, _, what = name.partition("/accuracy/")
        found.setdefault(term, {}).setdefault(pair_name(what), []).append(name)
    return {
        term: {pair: _curve(history, names) for pair, names in sorted(pairs.items())} for term, pairs in found.items()
    }


def pair_name(metric: str) -> str:
    """ "live_page_text" → "page text – live": sides in the domains' order, fused ones first."""
    for a in SIDES:
        if metric.startswith(f"{a}_") and (b := metric.removeprefix(f"{a}_")) in SIDES:
            order = sorted((a, b), key=lambda side: (DOMAINS.index(side.split("_")[0]), side))
            return " – ".join(side.replace("_", " ") for side in order)
    return metric


def evaluations(workdir: Path) -> Curves:
    """Mean R@1 on some products, of the model and of its moving average where the run kept one."""
    found = read_json_lines(workdir / EVALUATIONS)
    curves = {
        "the model": _curve(found, ["mean_r1"]),
        "its moving average": _curve(found, [f"{AVERAGE_PREFIX}mean_r1"]),
    }
    return {name: curve for name, curve in curves.items() if len(curve[0])}


def throughput(workdir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Products a second by step: f64[n] each. Of a step that was done twice the last time counts."""
    speeds = {line["step"]: line["examples_per_s"] for line in read_json_lines(workdir / "speed.jsonl")}
    steps = sorted(speeds)
    return np.array(steps, float), np.array([speeds[step] for step in steps], float)


def _curve(history: list[dict[str, Any]], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of some metrics over the steps that have all of them; values that are no number are left out."""
    lines = [line for line in history if all(line.get(name) is not None for name in names)]
    steps = np.array([line["step"] for line in lines], float)
    return steps, np.array([np.mean([line[name] for name in names]) for line in lines])
