"""Evaluates a checkpoint of a work directory, which is all it needs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cope_jax.data.bad_items import BadItem, Faults
from cope_jax.data.records import Product, fingerprint, open_records
from cope_jax.domains import DIRECTIONS, DOMAINS, direction_name
from cope_jax.evaluation.embed_items import Items, count_items
from cope_jax.evaluation.loaded_run import LoadedRun, load_run
from cope_jax.evaluation.metrics import bootstrap, few_shot, retrieval
from cope_jax.evaluation.metrics.ranks import Ranks
from cope_jax.evaluation.result_tables import collect, write_metrics
from cope_jax.runs.checkpoints import Checkpoints
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_file import load_config
from cope_jax.runs.config_validation import replace_fields
from data_prep.common.progress import Progress

LATEST, BEST = "latest", "best"


@dataclass(frozen=True)
class Judged:
    """An evaluated checkpoint.

    Attributes:
        config: of the run, with the data that it was evaluated on.
        step: of the checkpoint.
        metrics: as `evaluate` returns them.
        items: what they are of, by domain; None where they were taken as they are.
        ranks: of the positives, by direction; None where items is.
        average: whether it is the moving average of the parameters.
    """

    config: RunConfig
    step: int
    metrics: dict[str, Any]
    items: dict[str, Items] | None = None
    ranks: dict[str, Ranks] | None = None
    average: bool = False


def evaluate(
    workdir: Path,
    *,
    step: int | str = LATEST,
    data_dir: Path | None = None,
    subset: int | None = None,
    average: bool = False,
    reuse: bool = False,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Retrieval and few-shot metrics of a checkpoint, also written to `eval/<step>/metrics.json`.

    Args:
        workdir: of a training run.
        step: of the checkpoint; 0 is the untrained model, "latest" the newest one, "best" as `best_step` says.
        data_dir: array records to use instead of those of the run's config.
        subset: evaluate that many random products alone, the same ones each time; None is all. Easier than all of
            them, and written beside: to `metrics-of-<subset>.json`.
        average: evaluate the moving average of the parameters in place of these; written to `average-metrics.json`.
        reuse: whether metrics that are there, of the same step, data and settings, are taken as they are.
        between: called behind each batch of items, by all processes equally often.

    Returns:
        The metrics as `measure` lays them out, "step", and under "evaluated" what they are of.

    Raises:
        FileNotFoundError: no such work directory, checkpoint or array records; for step 0 also: no such weights.
        ValueError: the data lack the split or so many products, the embeddings are broken, or there is no average.
    """
    judged = judge(workdir, step=step, data_dir=data_dir, subset=subset, average=average, reuse=reuse, between=between)
    return judged.metrics


def judge(
    workdir: Path,
    *,
    step: int | str,
    data_dir: Path | None,
    subset: int | None,
    reuse: bool,
    average: bool = False,
    needs_report: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Judged:
    """`evaluate`, with what a report is made of.

    Args, errors: as of `evaluate`, and
        needs_report: whether metrics are taken as they are only where their report is there, too.
    """
    config = load_config(workdir)
    if data_dir is not None:
        config = replace_fields(config, {"data.data_dir": str(data_dir.absolute())})
    evaluated = what_is_evaluated(config, subset)
    with Checkpoints(workdir) as checkpoints:
        step = resolve_step(step, checkpoints, workdir, evaluated)
        lacking = needs_report and not report_path(workdir, step, subset, average=average).exists()
        known = known_metrics(workdir, step, subset, average=average) if reuse and not lacking else None
        if known is not None and known["evaluated"] == evaluated:
            return Judged(config, step, known, average=average)
        rows = subset_rows(config, subset)
        run = load_run(config, workdir, checkpoints, step, average=average)
        items = embed_split(run, step=step, rows=rows, between=between)
    ranks = retrieval.direction_ranks(embeddings_of(items))
    metrics = measure(items, ranks, config, step=step)
    metrics["evaluated"] = evaluated
    if jax.process_index() == 0:
        report_path(workdir, step, subset, average=average).unlink(missing_ok=True)  # of an earlier evaluation
        write_metrics(metrics_path(workdir, step, subset, average=average), metrics)
    return Judged(config, step, metrics, items, ranks, average)


def what_is_evaluated(config: RunConfig, subset: int | None) -> dict[str, Any]:
    """All that metrics of a checkpoint depend on; "data" is the same for the same records wherever they lie."""
    return {
        "data": fingerprint(config.data.data_dir, config.data.eval_split),
        "data_dir": config.data.data_dir,
        "split": config.data.eval_split,
        "subset": subset,
        **asdict(config.eval),
    }


def resolve_step(step: int | str, checkpoints: Checkpoints, workdir: Path, evaluated: Mapping[str, Any]) -> int:
    """The number of a step, "latest" or "best"."""
    if step == LATEST:
        return checkpoints.newest()
    return best_step(workdir, evaluated) if step == BEST else int(step)


def step_number(workdir: Path, step: int | str, config: RunConfig) -> int:
    """`resolve_step` where the records are needed for "best" alone: that is of what was evaluated on them.

    Raises:
        FileNotFoundError: no checkpoint, or none was evaluated.
        ValueError: step is another word.
    """
    if isinstance(step, str) and step not in (LATEST, BEST):
        raise ValueError(f"step is {step!r}; it must be {LATEST!r}, {BEST!r} or a number of steps")
    with Checkpoints(workdir) as checkpoints:
        return resolve_step(step, checkpoints, workdir, what_is_evaluated(config, None) if step == BEST else {})


def best_step(workdir: Path, evaluated: Mapping[str, Any]) -> int:
    """The trained step with the highest mean R@1 among those evaluated on the same items; the newest of equals.

    Raises:
        FileNotFoundError: none was.
    """
    found = {}
    for folder in (workdir / "eval").glob("[1-9]*"):
        metrics = known_metrics(workdir, int(folder.name), evaluated["subset"])
        same = metrics is not None and all(
            metrics["evaluated"].get(key) == evaluated[key] for key in ("data", "split", "subset")
        )
        if same:
            found[int(folder.name)] = metrics["retrieval_mean"]["mean_r1"]
    if not found:
        raise FileNotFoundError(
            f"no step of {workdir} was evaluated on split {evaluated['split']!r} of {evaluated['data_dir']}, so none "
            f"is the best; evaluate some first: --step=N for each checkpoint in {workdir / 'checkpoints'}"
        )
    return max(found, key=lambda step: (found[step], step))


def subset_rows(config: RunConfig, subset: int | None) -> dict[str, np.ndarray] | None:
    """Rows of each domain that belong to that many products, drawn by the config's seed; None where all are wanted.

    Raises:
        ValueError: there are fewer products, or the drawn ones lack a domain.
    """
    if subset is None:
        return None
    rows = rows_of(drawn_products(config, subset))
    if lacking := [domain for domain in DOMAINS if not len(rows[domain])]:
        raise ValueError(f"{subset} random products have no {' and no '.join(lacking)} items; choose a larger --subset")
    return rows


def drawn_products(config: RunConfig, number: int, faults: Faults | None = None) -> list[Product]:
    """That many random products of the evaluation split, drawn by the config's seed.

    Without those that cannot be read, where `faults` take note of them.

    Raises:
        ValueError: there are fewer, or one cannot be read.
    """
    products = open_records(config.data.data_dir, config.data.eval_split).products
    if not 1 <= number <= len(products):
        raise ValueError(f"--subset is {number}; the split {config.data.eval_split!r} has {len(products)} products")
    drawn = np.sort(np.random.default_rng(config.seed).choice(len(products), number, replace=False))
    found = []
    for index in drawn:
        try:
            found.append(products[int(index)])
        except BadItem as fault:
            if faults is None:
                raise
            faults.add(fault)
    return found


def rows_of(products: Sequence[Product]) -> dict[str, np.ndarray]:
    """Rows of each domain that belong to some products, in order."""
    return {domain: np.unique(np.concatenate([product.rows[domain] for product in products])) for domain in DOMAINS}


def embed_split(
    run: LoadedRun,
    *,
    step: int,
    rows: Mapping[str, np.ndarray] | None = None,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Items]:
    """The embedded items of each domain of the evaluation split: those of some rows, or all."""
    records = open_records(run.config.data.data_dir, run.config.data.eval_split)

    def report(count: int) -> None:
        count_items(progress, count)
        between()

    items = {}
    for domain in DOMAINS:
        wanted = np.arange(len(records.items[domain])) if rows is None else rows[domain]
        with Progress(total=len(wanted), desc=f"step {step}: embedded {domain}", unit="items") as progress:
            items[domain] = run.items(domain, wanted, report)
    return items


def embeddings_of(items: Mapping[str, Items]) -> retrieval.Embeddings:
    """What retrieval and few-shot classification need of the items."""
    return {domain: (own.vectors, own.products) for domain, own in items.items()}


def measure(items: Mapping[str, Items], ranks: Mapping[str, Ranks], config: RunConfig, *, step: int) -> dict[str, Any]:
    """All metrics of embedded items, whose ranks in the six directions are known.

    Returns:
        As `evaluation.tables.collect`, and beside them, by direction or by the domain of the query,
        "intervals": of `bootstrap.intervals`;
        "macro": each product counts once;
        "same_domain", "all_domains": other galleries, without the query itself;
        "by_frames", "by_text": the six directions by the query's number of frames, and with and without text;
        "few_shot_all": every product a class, by shots.
    """
    embeddings = embeddings_of(items)
    queries = {direction_name(source, target): items[source] for source, target in DIRECTIONS}
    products = {name: bootstrap.first_product(own.products) for name, own in queries.items()}
    settings = {key: getattr(config.eval, key) for key in ("ways", "shots", "queries", "episodes")}
    return {
        **collect(
            retrieval.direction_metrics(ranks),
            few_shot.few_shot_by_direction(embeddings, **settings, seed=config.seed),
            step=step,
        ),
        "intervals": bootstrap.bootstrap_intervals(ranks, products, seed=config.seed),
        "macro": bootstrap.product_means(ranks, products),
        "same_domain": retrieval.same_domain(embeddings),
        "all_domains": retrieval.all_domains(embeddings),
        "by_frames": {
            name: retrieval.by_part(own, np.array([retrieval.frame_range(n) for n in queries[name].frames.tolist()]))
            for name, own in ranks.items()
        },
        "by_text": {
            name: retrieval.by_part(own, np.where(queries[name].has_text, "with", "without"))
            for name, own in ranks.items()
        },
        "few_shot_all": few_shot.few_shot_all_products(embeddings, queries=config.eval.queries, seed=config.seed),
    }


def metrics_path(workdir: Path, step: int, subset: int | None = None, *, average: bool = False) -> Path:
    """Where the metrics of a step are kept."""
    return workdir / "eval" / str(step) / file_name("metrics", "json", subset, average)


def report_path(workdir: Path, step: int, subset: int | None = None, *, average: bool = False) -> Path:
    """Where the report of a step is kept: beside its metrics."""
    return workdir / "eval" / str(step) / file_name("report", "html", subset, average)


def file_name(stem: str, ending: str, subset: int | None, average: bool) -> str:
    """ "metrics.json", "metrics-of-200.json", "average-metrics.json" """
    return f"{'average-' if average else ''}{stem}{'' if subset is None else f'-of-{subset}'}.{ending}"


def known_metrics(
    workdir: Path, step: int, subset: int | None = None, *, average: bool = False
) -> dict[str, Any] | None:
    """The metrics that an earlier evaluation wrote, or None."""
    path = metrics_path(workdir, step, subset, average=average)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
