"""Evaluated runs beside each other: which metrics differ by more than their intervals explain."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cope_jax.evaluation.evaluate_run import BEST, LATEST, known_metrics
from cope_jax.evaluation.result_tables import METRICS, arrow, half_width
from data_prep.common.text_table import text_table

SAME = ("data", "split", "subset")  # of what was evaluated: where these differ, differences say little


@dataclass(frozen=True)
class Evaluated:
    """An evaluated step of a run."""

    name: str
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A metric of a run.

    Attributes:
      half: of the width of its 95% interval.
      difference: to the first run's; 0 for that one itself.
      exceeds: whether |difference| > √(half² + half₁²): more than two independent samples of products explain. Runs
        are judged by the same products, so true differences of less can be real, too.
    """

    metric: str
    run: str
    value: float
    half: float
    difference: float
    exceeds: bool


def read(place: Path, step: int | str) -> Evaluated:
    """What an evaluation wrote.

    Args:
      place: a work directory, or a file of metrics.
      step: of a work directory; "latest" is the newest of those evaluated, "best" the one with the highest mean R@1.

    Raises:
      FileNotFoundError: it was not evaluated; says how to.
    """
    if place.is_file():
        metrics = json.loads(place.read_text(encoding="utf-8"))
        return Evaluated(f"{place} ({metrics['step']})", metrics)
    found = {}
    for path in place.glob("eval/*/metrics.json"):
        found[int(path.parent.name)] = known_metrics(place, int(path.parent.name))
    if not found or (isinstance(step, int) and step not in found):
        raise FileNotFoundError(
            f"no evaluation of {place}{f' at step {step}' if isinstance(step, int) else ''}, only of {sorted(found)}; "
            f"make it with ./run.sh eval --workdir={place} --step={step}"
        )
    if step == LATEST:
        step = max(found)
    elif step == BEST:
        step = max(found, key=lambda number: (found[number]["retrieval_mean"]["mean_r1"], number))
    return Evaluated(f"{place} ({step})", found[step])


def compare(runs: Sequence[Evaluated]) -> list[Row]:
    """All metrics of all runs; those of one metric follow each other."""
    each = [dict(headline(run.metrics)) for run in runs]
    rows = []
    for metric in each[0]:
        first, first_half = each[0][metric]
        for run, metrics in zip(runs, each, strict=True):
            value, half = metrics[metric]
            difference = value - first
            rows.append(Row(metric, run.name, value, half, difference, abs(difference) > math.hypot(half, first_half)))
    return rows


def headline(metrics: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Title, value and half of the interval of what runs are compared by."""
    intervals = metrics["intervals"]
    for title, key in METRICS:
        mean = f"mean_{key}"
        yield f"mean {title}", (metrics["retrieval_mean"][mean], half_width(intervals["retrieval_mean"][mean]))
    for name, values in metrics["retrieval"].items():
        yield f"R@1 {arrow(name)}", (values["r1"], half_width(intervals["retrieval"][name]["r1"]))
    for name, values in metrics["few_shot"].items():
        yield f"few-shot {arrow(name)}", (values["accuracy"], values["ci95"])


def table(runs: Sequence[Evaluated], rows: Sequence[Row]) -> str:
    """The comparison for people; * marks what exceeds the intervals."""
    by_metric: dict[str, list[Row]] = {}
    for row in rows:
        by_metric.setdefault(row.metric, []).append(row)
    titles = ["metric", "A", *(cell for letter in letters(runs)[1:] for cell in (letter, f"{letter} − A"))]
    lines = [titles]
    for metric, (first, *others) in by_metric.items():
        line = [metric, f"{first.value:.3f} ±{first.half:.3f}"]
        for row in others:
            line += [f"{row.value:.3f} ±{row.half:.3f}", f"{row.difference:+.3f}{'*' if row.exceeds else ' '}"]
        lines.append(line)
    names = [f"{letter}: {run.name}" for letter, run in zip(letters(runs), runs, strict=True)]
    legend = "* beyond what the 95% intervals (±) of both explain"
    return "\n".join([*names, *differing_data(runs), "", text_table(lines), legend])


def letters(runs: Sequence[Evaluated]) -> list[str]:
    """A name of each run for the titles: A, B, …, Z, A1, …"""
    return [chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "") for i in range(len(runs))]


def differing_data(runs: Sequence[Evaluated]) -> list[str]:
    """A line for each run that was not judged by the first one's items."""
    first = {key: runs[0].metrics["evaluated"].get(key) for key in SAME}
    return [
        f"{letter} was evaluated on other items than A ({run.metrics['evaluated']['data_dir']}): compare with care"
        for letter, run in zip(letters(runs), runs, strict=True)
        if {key: run.metrics["evaluated"].get(key) for key in SAME} != first
    ]


def as_csv(rows: Sequence[Row]) -> str:
    """One line a metric and run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, vars(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(row) for row in rows)
    return text.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    """The same as a list of objects."""
    return json.dumps([vars(row) for row in rows], indent=2, ensure_ascii=False) + "\n"


WRITERS = {".csv": as_csv, ".json": as_json}
