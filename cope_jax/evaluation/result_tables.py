"""Evaluation results for people (aligned tables) and for programs (JSON)."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_prep.common.text_table import text_table

METRICS = (("R@1", "r1"), ("R@5", "r5"), ("R@10", "r10"), ("mAP", "map"))

Results = Mapping[str, Mapping[str, float | int]]  # direction → metric → value


def collect(retrieval: Results, few_shot: Results, *, step: int) -> dict[str, object]:
    """Puts the results of both `six_directions` into one dict of plain numbers, with means over directions.

    Returns:
      {"step": …, "retrieval": {"p2v": {"r1": …, …}, …}, "few_shot": {"p2v": {"accuracy": …, …}, …},
      "retrieval_mean": {"mean_r1": …, "mean_r5": …, "mean_r10": …, "mean_map": …}}
    """
    return {"step": step, "retrieval": dict(retrieval), "retrieval_mean": means(retrieval), "few_shot": dict(few_shot)}


def means(retrieval: Results) -> dict[str, float]:
    """Means over the directions: "mean_r1", "mean_r5", "mean_r10", "mean_map"."""
    return {f"mean_{key}": sum(metrics[key] for metrics in retrieval.values()) / len(retrieval) for _, key in METRICS}


def write_metrics(path: Path, metrics: Mapping[str, object]) -> None:
    """Writes `metrics` as JSON, whole or not at all. Raises a ValueError for a NaN: JSON has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def tables(
    metrics: Mapping[str, object],
    beside: Mapping[str, object] | None = None,
    *,
    names: tuple[str, str] = ("trained", "untrained"),
) -> str:
    """The retrieval and the few-shot table as text.

    Args:
      metrics: as `evaluation.run.measure` makes them.
      beside: another one of the same data, shown in every cell after a slash.
      names: what the two results are, for the titles.
    """
    results = [metrics] if beside is None else [metrics, beside]
    suffix = f" ({names[0]} / {names[1]})" if beside is not None else ""
    return "\n".join(
        [
            f"Cross-domain retrieval{suffix}",
            text_table(_retrieval_rows(results)),
            "",
            f"Few-shot classification{suffix}",
            text_table(_few_shot_rows(results)),
        ]
    )


def _retrieval_rows(results: Sequence[Mapping[str, Results]]) -> list[list[str]]:
    rows = [["direction", "queries", "gallery", *(title for title, _ in METRICS), "median rank"]]
    for name, first in results[0]["retrieval"].items():
        each = [result["retrieval"][name] for result in results]
        shares = [_cell(f"{metrics[key]:.3f}" for metrics in each) for _, key in METRICS]
        ranks = _cell(f"{metrics['median_rank']:g}" for metrics in each)
        rows.append([arrow(name), str(first["queries"]), str(first["gallery"]), *shares, ranks])
    overall = [result["retrieval_mean"] for result in results]
    shares = [_cell(f"{mean[f'mean_{key}']:.3f}" for mean in overall) for _, key in METRICS]
    bounds = [result["intervals"]["retrieval_mean"] for result in results]
    halves = [_cell(f"±{half_width(bound[f'mean_{key}']):.3f}" for bound in bounds) for _, key in METRICS]
    return [*rows, ["mean", "", "", *shares, ""], ["95% interval", "", "", *halves, ""]]


def _few_shot_rows(results: Sequence[Mapping[str, Results]]) -> list[list[str]]:
    rows = [["direction", "ways", "shots", "episodes", "accuracy"]]
    for name, first in results[0]["few_shot"].items():
        each = [result["few_shot"][name] for result in results]
        accuracies = _cell(f"{metrics['accuracy']:.3f} ± {metrics['ci95']:.3f}" for metrics in each)
        rows.append([arrow(name), *(str(first[key]) for key in ("ways", "shots", "episodes")), accuracies])
    return rows


def half_width(bounds: Sequence[float]) -> float:
    """Half of an interval [low, high]."""
    low, high = bounds
    return (high - low) / 2


def _cell(values: Iterable[str]) -> str:
    return " / ".join(values)


def arrow(name: str) -> str:
    """ "p2v" → "P → V"."""
    source, target = name.upper().split("2")
    return f"{source} → {target}"
