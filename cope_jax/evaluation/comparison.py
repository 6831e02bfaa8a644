"""The comparison of evaluated runs: their metrics side by side, and differences over the same queries."""

import csv
import functools
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from cope_jax.evaluation.metrics.bootstrap import bootstrap_means, interval
from cope_jax.evaluation.query_outcomes import Outcomes, read_outcomes, same_queries
from cope_jax.evaluation.result_tables import METRICS, UNKNOWN, arrow, format_half, half_width
from cope_jax.evaluation.results import BEST, LATEST, SAME_ITEMS, SAME_TASKS, read_metrics
from data_prep.common.differences import describe_differences
from data_prep.common.files import read_json
from data_prep.common.text_table import text_table

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # of cells that spreadsheets compute
SEED = 0  # of the intervals of differences


@dataclass(frozen=True)
class EvaluatedStep:
    """An evaluated step of a run, its metrics, and their file if there is one."""

    name: str
    metrics: Mapping[str, Any]
    file: Path | None = None

    @functools.cached_property
    def outcomes(self) -> dict[str, Outcomes]:
        """Outcomes of its queries, by direction; {} if they were not stored."""
        name = self.file.stem.replace("metrics", "queries") if self.file else ""
        return read_outcomes(self.file.with_name(f"{name}.parquet")) if self.file else {}


@dataclass(frozen=True)
class ComparisonRow:
    """One metric of one run.

    Attributes:
        half: Half the width of its 95% interval.
        difference: Difference from the first run.
        exceeds: Whether the interval of the difference excludes 0 or, without one, |difference| > √(half² + half₁²),
            more than two independent samples of products explain.
        low, high: 95% interval of the difference over the same queries, from a bootstrap over products. None for the
            first run, for few-shot accuracies, and if the queries differ or their outcomes were not stored.
    """

    metric: str
    run: str
    value: float
    half: float
    difference: float
    exceeds: bool
    low: float | None = None
    high: float | None = None


def read_step(path: Path, step: int | str) -> EvaluatedStep:
    """Reads a metrics file, or the metrics of a step of a work directory; "latest" is the newest evaluated one.

    Raises FileNotFoundError if the step was not evaluated.
    """
    if path.is_file():
        keys = ("step", "retrieval", "retrieval_mean", "few_shot", "intervals", "evaluated")
        metrics = read_json(path, keys=keys, remedy="name a metrics.json that `./run.sh eval` wrote")
        return EvaluatedStep(f"{path} ({metrics['step']})", metrics, path)
    steps = [int(file.parent.name) for file in path.glob("eval/*/metrics.json") if file.parent.name.isdecimal()]
    found = {number: metrics for number in steps if (metrics := read_metrics(path, number))}
    if not found or (isinstance(step, int) and step not in found):
        at_step = f" at step {step}" if isinstance(step, int) else ""
        raise FileNotFoundError(
            f"no evaluation of {path}{at_step}, only of {sorted(found)}; "
            f"evaluate it with ./run.sh eval --workdir={path} --step={step}"
        )
    best = max(found, key=lambda number: (found[number]["retrieval_mean"].get("mean_r1", -1), number))
    number = int({LATEST: max(found), BEST: best}.get(str(step), step))
    return EvaluatedStep(f"{path} ({number})", found[number], path / "eval" / str(number) / "metrics.json")


def compare(runs: Sequence[EvaluatedStep]) -> list[ComparisonRow]:
    """Compares the metrics that all runs have, grouped by metric; few-shot accuracies only if the tasks are alike.

    Raises ValueError if there are none.
    """
    few_shot = not different_tasks(runs)
    values = [dict(_metrics(run.metrics, few_shot=few_shot)) for run in runs]
    common = {metric: value for metric, value in values[0].items() if all(metric in own for own in values)}
    if not common:
        raise ValueError("the runs have no metric in common: no direction has results in all of them")
    intervals = [{}, *(paired_intervals(runs[0], run) for run in runs[1:])]
    rows = []
    for metric, (first, first_half) in common.items():
        for run, own, paired in zip(runs, values, intervals, strict=True):
            value, half = own[metric]
            difference = value - first
            exceeds = min(half, first_half) >= UNKNOWN and abs(difference) > math.hypot(half, first_half)
            low, high = paired.get(metric, (None, None))
            if low is not None and high is not None:
                exceeds = low > 0 or high < 0
            rows.append(ComparisonRow(metric, run.name, value, half, difference, exceeds, low, high))
    return rows


def paired_intervals(first: EvaluatedStep, other: EvaluatedStep) -> dict[str, tuple[float, float]]:
    """Returns the intervals of the differences of metrics over the same queries, by title; {} if there are none."""
    if different_items([first, other]) or not same_queries(first.outcomes, other.outcomes):
        return {}
    differences = {name: other.outcomes[name].metrics - own.metrics for name, own in first.outcomes.items()}
    owners = {name: own.product for name, own in first.outcomes.items()}
    means = bootstrap_means(differences, owners, seed=SEED)
    overall = interval(np.mean(list(means.values()), axis=0)).tolist()
    found = {f"mean {title}": tuple(bounds) for (title, _), bounds in zip(METRICS, overall, strict=True)}
    return found | {f"R@1 {arrow(name)}": tuple(interval(own)[0].tolist()) for name, own in means.items()}


def _metrics(metrics: Mapping[str, Any], *, few_shot: bool) -> Iterator[tuple[str, tuple[float, float]]]:
    """Title, value, and half the interval's width of each metric to compare."""
    intervals = metrics["intervals"]
    for title, key in METRICS if metrics["retrieval_mean"] else ():
        mean = f"mean_{key}"
        yield f"mean {title}", (metrics["retrieval_mean"][mean], half_width(intervals["retrieval_mean"][mean]))
    for name, values in metrics["retrieval"].items():
        yield f"R@1 {arrow(name)}", (values["r1"], half_width(intervals["retrieval"][name]["r1"]))
    for name, values in metrics["few_shot"].items() if few_shot else ():
        yield f"few-shot {arrow(name)}", (values["accuracy"], values["ci95"])


def format_comparison(runs: Sequence[EvaluatedStep], rows: Sequence[ComparisonRow]) -> str:
    """Returns the comparison as a table, with * after differences that exceed the intervals."""
    letters = run_letters(len(runs))
    lines = [["metric", "A", *(cell for letter in letters[1:] for cell in (letter, f"{letter} − A"))]]
    for metric, group in groupby(rows, key=lambda row: row.metric):
        first, *others = group
        line = [metric, f"{first.value:.3f} {format_half(first.half)}"]
        for row in others:
            line += [f"{row.value:.3f} {format_half(row.half)}", f"{row.difference:+.3f}{'*' if row.exceeds else ' '}"]
        lines.append(line)
    names = [f"{letter}: {run.name}" for letter, run in zip(letters, runs, strict=True)]
    paired = any(row.low is not None for row in rows)
    legend = "* exceeds what the 95% intervals (±) of both runs explain"
    if paired:
        legend += "; of retrieval: the 95% interval of the difference over the same queries excludes 0"
    return "\n".join([*names, *different_items(runs), *different_tasks(runs), "", text_table(lines), legend])


def run_letters(count: int) -> list[str]:
    """Returns A, B, …, Z, A1, …"""
    return [chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "") for i in range(count)]


def different_items(runs: Sequence[EvaluatedStep]) -> list[str]:
    """Returns a warning for each run that was evaluated on other items than the first one."""
    return [
        f"{letter} was evaluated on different items than A, so compare with care ({differences})"
        for letter, differences in _different_settings(runs, SAME_ITEMS)
    ]


def different_tasks(runs: Sequence[EvaluatedStep]) -> list[str]:
    """Returns a warning for each run with few-shot tasks of another size than those of the first one."""
    return [
        f"{letter} has different few-shot tasks than A, so few-shot accuracies are left out ({differences})"
        for letter, differences in _different_settings(runs, SAME_TASKS)
    ]


def _different_settings(runs: Sequence[EvaluatedStep], keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The letters of the runs whose settings differ from those of the first one, and the differences."""
    first, *others = ({key: run.metrics["evaluated"].get(key) for key in keys} for run in runs)
    for letter, own in zip(run_letters(len(runs))[1:], others, strict=True):
        if own != first:
            yield letter, "; ".join(describe_differences(first, own, labels=("in A", f"in {letter}")))


def to_csv(rows: Sequence[ComparisonRow]) -> str:
    """Formats one line per metric and run. An apostrophe keeps spreadsheets from running a name as a formula."""
    text = io.StringIO()
    writer = csv.DictWriter(text, vars(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(vars(row) | ({"run": f"'{row.run}"} if row.run.startswith(FORMULA_STARTS) else {}))
    return text.getvalue()


def to_json(rows: Sequence[ComparisonRow]) -> str:
    """Formats a list of objects."""
    return json.dumps([vars(row) for row in rows], indent=2, ensure_ascii=False) + "\n"


WRITERS = {".csv": to_csv, ".json": to_json}  # by suffix
