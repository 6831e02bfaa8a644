"""Stored results of a run's evaluations: their files, and which step is the best."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cope_jax.data.records import fingerprint
from cope_jax.runs.checkpoints import Checkpoints
from cope_jax.runs.config import RunConfig
from data_prep.common.files import atomic_write

LATEST, BEST = "latest", "best"
SAME_ITEMS = ("data", "split", "subset")  # keys of "evaluated" that say which items were evaluated


def metrics_path(workdir: Path, step: int, subset: int | None = None, *, average: bool = False) -> Path:
    """Returns the file of a step's metrics: `eval/<step>/metrics.json`, `average-metrics-of-200.json`, …"""
    return _result_path(workdir, step, "metrics", "json", subset, average)


def report_path(workdir: Path, step: int, subset: int | None = None, *, average: bool = False) -> Path:
    """Returns the file of a step's report, next to its metrics."""
    return _result_path(workdir, step, "report", "html", subset, average)


def _result_path(workdir: Path, step: int, stem: str, suffix: str, subset: int | None, average: bool) -> Path:
    name = f"{'average-' if average else ''}{stem}{'' if subset is None else f'-of-{subset}'}.{suffix}"
    return workdir / "eval" / str(step) / name


def read_metrics(
    workdir: Path, step: int, subset: int | None = None, *, average: bool = False
) -> dict[str, Any] | None:
    """Returns the stored metrics of a step, or None if it was not evaluated."""
    path = metrics_path(workdir, step, subset, average=average)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_metrics(path: Path, metrics: Mapping[str, object]) -> None:
    """Writes metrics as JSON. Raises ValueError for NaN, which JSON does not have."""
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(text)


def evaluation_settings(config: RunConfig, subset: int | None) -> dict[str, Any]:
    """Returns all settings that the metrics of a checkpoint depend on, and a fingerprint of the data."""
    return {
        "data": fingerprint(config.data.data_dir, config.data.eval_split),
        "data_dir": config.data.data_dir,
        "split": config.data.eval_split,
        "subset": subset,
        **asdict(config.eval),
    }


def find_step(workdir: Path, step: int | str, config: RunConfig, subset: int | None = None) -> int:
    """Returns the number of a step, which may be "latest" or "best", see `best_step`.

    Raises:
        FileNotFoundError: There is no checkpoint, or none was evaluated.
        ValueError: The step is another word.
    """
    if isinstance(step, int):
        return step
    if step == BEST:
        return best_step(workdir, evaluation_settings(config, subset))
    if step != LATEST:
        raise ValueError(f"step is {step!r}; it must be {LATEST!r}, {BEST!r}, or a number of steps")
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.newest()


def best_step(workdir: Path, settings: Mapping[str, Any]) -> int:
    """Returns the trained step with the highest mean R@1 on the same items, the newest of equal ones.

    Raises FileNotFoundError if no step was evaluated on these items.
    """
    mean_r1 = {}
    for folder in (workdir / "eval").glob("[1-9]*"):
        metrics = read_metrics(workdir, int(folder.name), settings["subset"])
        if metrics and all(metrics["evaluated"].get(key) == settings[key] for key in SAME_ITEMS):
            mean_r1[int(folder.name)] = metrics["retrieval_mean"]["mean_r1"]
    if not mean_r1:
        raise FileNotFoundError(
            f"no step of {workdir} was evaluated on split {settings['split']!r} of {settings['data_dir']}, so there is "
            f"no best step; evaluate some first with --step=N, for checkpoints in {workdir / 'checkpoints'}"
        )
    return max(mean_r1, key=lambda step: (mean_r1[step], step))
