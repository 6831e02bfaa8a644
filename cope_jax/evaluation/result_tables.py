"""Tables of evaluation results as text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_prep.common.text_table import text_table

METRICS = (("R@1", "r1"), ("R@5", "r5"), ("R@10", "r10"), ("mAP", "map"))  # titles and keys


def format_tables(
    metrics: Mapping[str, Any],
    baseline: Mapping[str, Any] | None = None,
    *,
    names: tuple[str, str] = ("trained", "untrained"),
) -> str:
    """Returns the retrieval and the few-shot table. Every cell shows the baseline, if any, after a slash."""
    results = [metrics] if baseline is None else [metrics, baseline]
    suffix = f" ({names[0]} / {names[1]})" if baseline is not None else ""
    return "\n".join(
        [
            f"Cross-domain retrieval{suffix}",
            text_table(_retrieval_rows(results)),
            "",
            f"Few-shot classification{suffix}",
            text_table(_few_shot_rows(results)),
        ]
    )


def _retrieval_rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["direction", "queries", "gallery", *(title for title, _ in METRICS), "median rank"]]
    for name, first in results[0]["retrieval"].items():
        own = [result["retrieval"][name] for result in results]
        shares = [_cell(f"{metrics[key]:.3f}" for metrics in own) for _, key in METRICS]
        ranks = _cell(f"{metrics['median_rank']:g}" for metrics in own)
        rows.append([arrow(name), str(first["queries"]), str(first["gallery"]), *shares, ranks])
    means = [result["retrieval_mean"] for result in results]
    shares = [_cell(f"{mean[f'mean_{key}']:.3f}" for mean in means) for _, key in METRICS]
    bounds = [result["intervals"]["retrieval_mean"] for result in results]
    halves = [_cell(f"±{half_width(bound[f'mean_{key}']):.3f}" for bound in bounds) for _, key in METRICS]
    return [*rows, ["mean", "", "", *shares, ""], ["95% interval", "", "", *halves, ""]]


def _few_shot_rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["direction", "ways", "shots", "episodes", "accuracy"]]
    for name, first in results[0]["few_shot"].items():
        own = [result["few_shot"][name] for result in results]
        accuracies = _cell(f"{metrics['accuracy']:.3f} ± {metrics['ci95']:.3f}" for metrics in own)
        rows.append([arrow(name), *(str(first[key]) for key in ("ways", "shots", "episodes")), accuracies])
    return rows


def half_width(bounds: Sequence[float]) -> float:
    """Returns half the width of an interval [low, high]."""
    low, high = bounds
    return (high - low) / 2


def _cell(values: Iterable[str]) -> str:
    return " / ".join(values)


def arrow(name: str) -> str:
    """Formats the name of a direction: "p2v" → "P → V"."""
    source, target = name.upper().split("2")
    return f"{source} → {target}"
