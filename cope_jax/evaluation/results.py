"""Stored results of a run's evaluations: their files, and which step is the best."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cope_jax.data.records import fingerprint
from cope_jax.runs.checkpoints import Checkpoints
from cope_jax.runs.config import RunConfig
from cope_jax.runs.initial_weights import is_run_or_export
from data_prep.common.files import atomic_write, read_json

LATEST, BEST = "latest", "best"
SAME_ITEMS = ("data", "split", "subset", "seed")  # keys of "evaluated" that say which items were evaluated
SAME_TASKS = ("ways", "shots", "queries")  # and those that few-shot accuracies depend on


@dataclass(frozen=True)
class ResultFiles:
    """Files of an evaluation: `eval/<step>/metrics.json`, `eval/<step>/average-report-of-200.html`, …"""

    folder: Path
    subset: int | None = None
    average: bool = False

    @property
    def metrics(self) -> Path:
        """Path of the metrics."""
        return self._path("metrics", "json")

    @property
    def report(self) -> Path:
        """Path of the report."""
        return self._path("report", "html")

    @property
    def queries(self) -> Path:
        """Path of the outcomes of all queries, see `query_outcomes`."""
        return self._path("queries", "parquet")

    def _path(self, stem: str, suffix: str) -> Path:
        number = "" if self.subset is None else f"-of-{self.subset}"
        return self.folder / f"{'average-' if self.average else ''}{stem}{number}.{suffix}"

    def create_folder(self) -> None:
        """Creates the folder. Raises ValueError if it cannot be written, before the evaluation takes its time."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            reason = "" if os.access(self.folder, os.W_OK) else "no permission to write"
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            raise ValueError(f"{self.folder} cannot be written ({reason}); choose another folder with --out")

    def read(self) -> dict[str, Any] | None:
        """Returns the stored metrics, or None if there are none."""
        return read_json(self.metrics, remedy="remove it and evaluate again") if self.metrics.exists() else None

    def write(self, metrics: Mapping[str, object]) -> None:
        """Writes metrics as JSON, and removes report and outcomes of earlier ones. Raises ValueError for NaN."""
        text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
        self.report.unlink(missing_ok=True)
        self.queries.unlink(missing_ok=True)
        with atomic_write(self.metrics, "w") as file:
            file.write(text)


def other_data(config: RunConfig, data_dir: Path | None, split: str) -> str:
    """Returns the name of a folder for results on a data set, `<name>-<split>-<digits>`, or "" if it is the run's own.

    The digits identify the records, because several data sets may have the same name.
    """
    if data_dir is None or str(data_dir.absolute()) == config.data.data_dir:
        return ""
    found = fingerprint(data_dir, split)
    with suppress(FileNotFoundError, ValueError):  # the run's own data may be gone
        if fingerprint(config.data.data_dir, split) == found:
            return ""
    return f"{data_dir.resolve().name}-{split}-{found[:8]}"


def baseline_name(config: RunConfig) -> str:
    """Returns what a run is before training: "zero-shot" if it has weights of heads as well, or "untrained"."""
    sections = [config.model.vision, *([config.model.text] if config.model.text_domains else [])]
    names = {section.init_from for section in sections}
    has_heads = config.model.fusion.kind == "aligned" or all(is_run_or_export(name) for name in names)
    return "zero-shot" if all(names) and has_heads else "untrained"


def read_metrics(
    workdir: Path, step: int, subset: int | None = None, *, average: bool = False
) -> dict[str, Any] | None:
    """Returns the stored metrics of a step on the run's own data, or None if it was not evaluated."""
    return ResultFiles(workdir / "eval" / str(step), subset, average).read()


def remove_results_after(workdir: Path, step: int) -> None:
    """Removes stored results of later steps, whose models will be trained again and may differ."""
    for folder in (workdir / "eval").glob("*"):
        if folder.name.isdecimal() and int(folder.name) > step:
            shutil.rmtree(folder)


def evaluation_settings(config: RunConfig, subset: int | None) -> dict[str, Any]:
    """Returns all settings that the metrics of a checkpoint depend on, and a fingerprint of the data."""
    return {
        "data": fingerprint(config.data.data_dir, config.data.eval_split),
        "data_dir": config.data.data_dir,
        "split": config.data.eval_split,
        "subset": subset,
        **({} if subset is None else {"seed": config.seed}),  # which draws the products
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
        items = {"split": config.data.eval_split, "subset": subset}
        with suppress(FileNotFoundError):  # without the data, any version of them counts
            items["data"] = fingerprint(config.data.data_dir, config.data.eval_split)
        return best_step(workdir, items)
    if step != LATEST:
        raise ValueError(f"step is {step!r}; it must be {LATEST!r}, {BEST!r}, or a number of steps")
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.newest()


def best_step(workdir: Path, items: Mapping[str, Any]) -> int:
    """Returns the trained step with the highest mean R@1 on the run's own data, the newest of equal ones.

    Args:
        workdir: Work directory of the run.
        items: "data", "split", and "subset" that must have been evaluated.

    Raises:
        FileNotFoundError: No step was evaluated on these items.
    """
    mean_r1 = {}
    for folder in (workdir / "eval").glob("[1-9]*"):
        metrics = read_metrics(workdir, int(folder.name), items["subset"])
        means = metrics["retrieval_mean"] if metrics else {}  # empty if no direction has results
        if metrics and means and all(metrics["evaluated"].get(key) == value for key, value in items.items()):
            mean_r1[int(folder.name)] = means["mean_r1"]
    if not mean_r1:
        raise FileNotFoundError(
            f"no step of {workdir} was evaluated on split {items['split']!r} of the run's own data, so there is no "
            f"best step; evaluate some first with --step=N, for checkpoints in {workdir / 'checkpoints'}"
        )
    return max(mean_r1, key=lambda step: (mean_r1[step], step))
