"""Evaluates a checkpoint of a work directory."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cope_jax.data.records import InvalidItemError, InvalidItems, Product, open_records
from cope_jax.evaluation import results
from cope_jax.evaluation.embed_items import Items, LoadedRun, load_run
from cope_jax.evaluation.metrics import bootstrap, embedding_space, few_shot, retrieval
from cope_jax.evaluation.metrics.ranks import Ranks
from cope_jax.evaluation.query_outcomes import Outcomes, query_outcomes, write_outcomes
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_file import load_config
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import check_domains
from data_prep.common.domains import directions
from data_prep.common.progress import Progress

PROBED = 1000  # items of a domain, evenly spaced, of which one must have a category


@dataclass(frozen=True)
class EmbeddedSplit:
    """Embedded items of each domain, and the ranks of their positives in each direction."""

    items: dict[str, Items]
    ranks: dict[str, Ranks]
    categories: dict[str, np.ndarray] = field(default_factory=dict)  # by domain, the category of each item or ""

    @functools.cached_property
    def outcomes(self) -> dict[str, Outcomes]:
        """Outcomes of the queries of each direction that has results."""
        return query_outcomes(self.items, {name: own for name, own in self.ranks.items() if own.has_positive.any()})


@dataclass(frozen=True)
class Evaluation:
    """An evaluated checkpoint."""

    config: RunConfig  # config of the run, with the data that was evaluated
    step: int  # step of the checkpoint
    files: results.ResultFiles  # where the results are stored
    metrics: dict[str, Any]  # the metrics as `compute_metrics` returns them, and under "evaluated" the settings
    embedded: EmbeddedSplit | None = None  # the evaluated items, or None if stored metrics were reused


def evaluate(
    workdir: Path,
    *,
    step: int | str = results.LATEST,
    data_dir: Path | None = None,
    split: str | None = None,
    out: Path | None = None,
    subset: int | None = None,
    average: bool = False,
    reuse: bool = False,
    needs_report: bool = False,
    on_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Computes retrieval and few-shot metrics of a checkpoint and writes them to `eval/<step>/metrics.json`.

    Metrics of other data than the run's own are written to a folder of their own, `eval/<step>/<data>/metrics.json`.

    Args:
        workdir: Work directory of the run.
        step: Step of the checkpoint; 0 is the untrained model, "latest" the newest, "best" the one with the highest
            mean R@1 on the run's own data.
        data_dir: Array records to use instead of those in the run's config.
        split: Split to evaluate, by default config.data.eval_split. Other splits have folders of their own as well.
        out: Folder to write to instead of `eval` in the work directory.
        subset: Evaluate only this many random products, always the same ones. This is easier than evaluating all of
            them, and written to `metrics-of-<subset>.json`.
        average: Evaluate the moving average of the parameters. This is written to `average-metrics.json`.
        reuse: Return stored metrics if they are of the same step, data, and settings.
        needs_report: Reuse stored metrics only if their report exists as well.
        on_batch: Called after each batch of items, equally often by all processes.

    Raises:
        FileNotFoundError: There is no such work directory, checkpoint, or data, or no initial weights for step 0.
        ValueError: The folder of the results cannot be written, the data lack the split or have too few products, an
            embedding is invalid, or there is no average.
    """
    own = config = load_config(workdir)
    step = results.find_step(workdir, step, own, subset)
    if data_dir is not None:
        config = replace_fields(config, {"data.data_dir": str(data_dir.absolute())})
    if split is not None:
        config = replace_fields(config, {"data.eval_split": split})
    check_domains(config)
    settings = results.evaluation_settings(config, subset)
    other = results.other_data(own, data_dir, config.data.eval_split)
    if not other and config.data.eval_split != own.data.eval_split:
        other = config.data.eval_split
    files = results.ResultFiles((out or workdir / "eval") / str(step) / other, subset, average)
    if reuse and (files.report.exists() or not needs_report):
        stored = files.read()
        if stored and stored["evaluated"] == settings:
            return Evaluation(config, step, files, stored)
    files.create_folder()
    rows = None if subset is None else rows_by_domain(draw_products(config, subset), config.data.domains)
    run = load_run(config, workdir, step, average=average, masked=True)
    items = embed_split(run, step=step, rows=rows, on_batch=on_batch)
    embedded = EmbeddedSplit(items, retrieval.direction_ranks(embeddings_of(items)), read_categories(config, items))
    metrics = compute_metrics(embedded, config, step=step) | {"evaluated": settings}
    if jax.process_index() == 0:
        files.write(metrics)
        write_outcomes(embedded.outcomes, files.queries)
    return Evaluation(config, step, files, metrics, embedded)


def draw_products(config: RunConfig, number: int, invalid_items: InvalidItems | None = None) -> list[Product]:
    """Draws random products of the evaluation split with the config's seed. Raises ValueError if there are too few.

    Products that cannot be read are skipped and added to `invalid_items`. Without it, they are errors.
    """
    products = open_records(config.data.data_dir, config.data.eval_split).products
    if not 1 <= number <= len(products):
        raise ValueError(f"--subset is {number}; the split {config.data.eval_split!r} has {len(products)} products")
    drawn = []
    for index in np.sort(np.random.default_rng(config.seed).choice(len(products), number, replace=False)):
        try:
            drawn.append(products[int(index)])
        except InvalidItemError as error:
            if invalid_items is None:
                raise
            invalid_items.add(error)
    return drawn


def rows_by_domain(products: Sequence[Product], domains: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns the rows of each domain that belong to some products, in order."""
    return {domain: np.unique(np.concatenate([product.rows[domain] for product in products])) for domain in domains}


def embed_split(
    run: LoadedRun,
    *,
    step: int,
    rows: Mapping[str, np.ndarray] | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, Items]:
    """Embeds the items of each domain of the evaluation split: those in `rows`, or all."""
    records = open_records(run.config.data.data_dir, run.config.data.eval_split)
    items = {}
    for domain in run.config.data.domains:
        wanted = np.arange(len(records.items[domain])) if rows is None else rows[domain]
        with Progress(desc=f"step {step}: embedded {domain}", total=len(wanted), unit="items") as progress:

            def report(count: int, progress: Progress = progress) -> None:
                progress.update(count)
                on_batch()

            items[domain] = run.embed_rows(domain, wanted, report)
    return items


def embeddings_of(items: Mapping[str, Items]) -> retrieval.Embeddings:
    """Returns the embeddings and product ids of items."""
    return {domain: (own.vectors, own.products) for domain, own in items.items()}


def read_categories(config: RunConfig, items: Mapping[str, Items]) -> dict[str, np.ndarray]:
    """Returns the column `category` of the table for the items of each domain; {} if none of PROBED items has one.

    Of several categories, "Women/Tops,Sale", only the first counts.
    """
    records = open_records(config.data.data_dir, config.data.eval_split).items

    def category(domain: str, row: int) -> str:
        return str(records[domain][row].columns.get("category", "")).partition(",")[0].strip()

    rows = {domain: own.rows.tolist() for domain, own in items.items()}
    # Reading all records takes long, so a few tell whether there are categories.
    if not any(category(domain, row) for domain, own in rows.items() for row in own[:: len(own) // PROBED + 1]):
        return {}
    return {domain: np.array([category(domain, row) for row in own], str) for domain, own in rows.items()}


def compute_metrics(embedded: EmbeddedSplit, config: RunConfig, *, step: int) -> dict[str, Any]:
    """Computes all metrics of embedded items.

    Returns:
        A dict of plain numbers, by direction or, for other galleries, by the domain of the query:
        "retrieval", "retrieval_mean", and "few_shot": the metrics of all directions and their means;
        "empty": {"retrieval": …, "few_shot": …}, the directions without these metrics, and why;
        "intervals": bootstrap intervals; "chance": R@1 of a random order; "macro": means over products;
        "same_domain" and "all_domains": retrieval with other galleries, without the query itself;
        "by_frames" and "by_text": retrieval by the query's number of frames, and with and without text;
        "by_category": likewise by the query's category, {} if the data have none;
        "few_shot_all": few-shot classification with all products as classes, by shots;
        "text": retrieval of the items of each domain by the texts of all items, without the query's own item;
        "modalities": {"both": …, "frames": …, "text": …}, retrieval with items that have both as queries, and with the
        frames or the text of queries alone; "prefixes": means of the first values of embeddings; "spectrum": their
        principal components; "domain_mixing": how far they separate domains;
        "similarity_limits": the similarities that 95% of right first items reach, by the domain of the query ("page",
        or "page.text" for texts alone) and of the item.
    """
    items = embedded.items
    ranks = {name: own for name, own in embedded.ranks.items() if own.has_positive.any()}
    no_ranks = {
        name: f"no {source} has a product in common with {f'a {target}' if target != source else 'another'}"
        for name, (source, target) in directions(items).items()
        if name not in ranks
    }
    embeddings = embeddings_of(items)
    queries = {name: items[source] for name, (source, _) in directions(items).items()}
    products = {name: bootstrap.first_product(own.products) for name, own in queries.items()}
    frames = {name: np.array(list(map(retrieval.frame_range, own.frames.tolist()))) for name, own in queries.items()}
    texts = {name: np.where(own.has_text, "with", "without") for name, own in queries.items()}
    options = {key: getattr(config.eval, key) for key in ("ways", "shots", "queries", "episodes")}
    seed = config.seed
    metrics = retrieval.direction_metrics(ranks)
    by_text, text_products = _text_ranks(items)
    few_shots, no_few_shots = few_shot.few_shot_by_direction(embeddings, **options, seed=seed)
    return {
        "step": step,
        "retrieval": metrics,
        "retrieval_mean": retrieval.direction_means(metrics),
        "few_shot": few_shots,
        "empty": {"retrieval": no_ranks, "few_shot": no_few_shots},
        "intervals": bootstrap.bootstrap_intervals(ranks, products, seed=seed)
        | {"text": bootstrap.bootstrap_intervals(by_text, text_products, seed=seed)["retrieval"]},
        "chance": {name: float(retrieval.chance_curve(own, 1)[0]) for name, own in ranks.items()},
        "macro": bootstrap.product_means(ranks, products),
        "same_domain": retrieval.same_domain(embeddings),
        "all_domains": retrieval.all_domains(embeddings),
        "by_frames": {name: retrieval.by_part(own, frames[name]) for name, own in ranks.items()},
        "by_text": {name: retrieval.by_part(own, texts[name]) for name, own in ranks.items()},
        "by_category": {
            name: retrieval.by_part(own, embedded.categories[directions(items)[name][0]])
            for name, own in (ranks if embedded.categories else {}).items()
        },
        "text": retrieval.direction_metrics(by_text),
        "modalities": _modalities(items),
        "prefixes": embedding_space.prefix_retrieval(embeddings),
        "spectrum": embedding_space.spectrum(embeddings),
        "domain_mixing": embedding_space.domain_mixing(embeddings, seed=seed),
        "similarity_limits": retrieval.similarity_limits(_query_kinds(items), embeddings, seed=seed),
        "few_shot_all": few_shot.few_shot_all_products(embeddings, queries=config.eval.queries, seed=seed),
    }


def _query_kinds(items: Mapping[str, Items]) -> dict[str, tuple[str, np.ndarray]]:
    """Domain and vectors of whole items, and of the texts alone of each domain."""
    texts = {f"{domain}.text": (domain, own.masked[:, 1]) for domain, own in items.items() if own.masked is not None}
    return {domain: (domain, own.vectors) for domain, own in items.items()} | texts


def _text_ranks(items: Mapping[str, Items]) -> tuple[dict[str, Ranks], dict[str, np.ndarray]]:
    """Ranks of the domains for texts alone in which a text has a positive, and the products of the queries."""
    texts = {domain: own.masked[:, 1] for domain, own in items.items() if own.masked is not None}
    if len(texts) < len(items):
        return {}, {}
    ranks, products = embedding_space.text_ranks(texts, embeddings_of(items))
    return {domain: own for domain, own in ranks.items() if own.has_positive.any()}, products


def _modalities(items: Mapping[str, Items]) -> dict[str, dict[str, Any]]:
    """Retrieval with other embeddings of the queries; see `compute_metrics`."""
    queries: dict[str, dict[str, np.ndarray]] = {"both": {}, "frames": {}, "text": {}}
    for domain, own in items.items():
        if own.masked is None:
            return {}
        frames, text = own.masked[:, 0], own.masked[:, 1]
        complete = np.logical_and(frames.any(axis=-1), text.any(axis=-1))
        queries["both"][domain] = np.where(complete[:, None], own.vectors, 0)
        queries["frames"][domain], queries["text"][domain] = frames, text
    embeddings = embeddings_of(items)
    return {name: embedding_space.masked_retrieval(own, embeddings) for name, own in queries.items()}
