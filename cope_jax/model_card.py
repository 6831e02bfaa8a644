"""Model cards of exports: README.md with data, results, license and intended use, as the Hugging Face hub shows it."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2

from cope_jax import __version__
from cope_jax.data.records import open_records
from cope_jax.evaluation.result_tables import arrow
from cope_jax.evaluation.results import baseline_name, read_metrics
from cope_jax.runs.config import RunConfig
from data_prep.common.domains import find_data_set

CARD = "README.md"
UNKNOWN = "[more information needed]"  # to be replaced by the author
REPOSITORY = "OWNER/NAME"  # replaced when the export is published


def model_card(
    config: RunConfig, workdir: Path, *, title: str, step: int, license: str, average: bool = False, other: str = ""
) -> str:
    """Returns the card of a checkpoint of a run.

    Args:
        config: Config of the run.
        workdir: Its work directory, with the results of evaluations.
        title: Heading.
        step: Step of the checkpoint.
        license: Identifier of the license of the weights, such as "apache-2.0", or "unknown".
        average: Whether the weights are the moving average.
        other: Reason why the results of the run are not those of the weights, or "".
    """
    metrics = None if other else read_metrics(workdir, step, average=average)
    before = read_metrics(workdir, 0) if step else None
    chance = list((metrics or {}).get("chance", {}).values())
    names = dict.fromkeys(section.init_from for section in (config.model.vision, config.model.text))
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(Path(__file__).with_suffix(".md.jinja").read_text(encoding="utf-8"))
    return template.render(
        config=config,
        version=__version__,
        title=title,
        step=step,
        license=license,
        base_models=[name for name in names if is_hub_name(name)],
        repository=REPOSITORY,
        unknown=UNKNOWN,
        data={"Training": count_items(config, config.data.train_split)},
        rows=result_rows(metrics, config.data.domains) if metrics else [],
        split=config.data.eval_split,
        products=(metrics or {}).get("intervals", {}).get("products"),
        chance=f"{sum(chance) / len(chance):.3f}" if chance else "",
        baseline=f"{before['retrieval_mean']['mean_r1']:.3f}" if before and before["retrieval_mean"] else "",
        baseline_name=baseline_name(config),
        reason=other or "the run was not evaluated at this step before it was exported",
    )


def count_items(config: RunConfig, split: str) -> str:
    """Returns the numbers of products and items of a split of the run's data."""
    with suppress(FileNotFoundError, ValueError):
        records = open_records(config.data.data_dir, split)
        name = find_data_set(Path(config.data.data_dir)).name
        items = ", ".join(f"{len(own):,} {domain} items" for domain, own in records.items.items())
        return f"split `{split}` of `{name}`: {len(records.products):,} products, {items}"
    return UNKNOWN


def result_rows(metrics: Mapping[str, Any], domains: Iterable[str]) -> list[list[str]]:
    """Returns the cells of each direction and of their mean."""
    intervals, rows = metrics["intervals"], []
    initials = {domain[0].upper(): domain for domain in domains}
    for name, own in metrics["retrieval"].items():
        cells = [_share(own["r1"], intervals["retrieval"][name]["r1"]), *(f"{own[key]:.3f}" for key in ("r10", "map"))]
        direction = " → ".join(initials.get(part, part) for part in arrow(name).split(" → "))
        rows.append([direction, *cells, f"{own['queries']:,}", f"{own['gallery']:,}"])
    if mean := metrics["retrieval_mean"]:
        r1 = _share(mean["mean_r1"], intervals["retrieval_mean"]["mean_r1"])
        rows.append(["mean", r1, f"{mean['mean_r10']:.3f}", f"{mean['mean_map']:.3f}", "", ""])
    return rows


def _share(value: float, bounds: tuple[float, float]) -> str:
    return f"{value:.3f} ({bounds[0]:.3f} – {bounds[1]:.3f})"


def is_hub_name(name: str) -> bool:
    """Returns whether the name of initial weights is a repository of the hub, not a folder of this machine."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", name)) and not Path(name).exists()
