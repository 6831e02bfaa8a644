"""Writes the report of an evaluated checkpoint: one HTML file with tables, curves, a map, and example queries."""

from collections.abc import Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cope_jax.data.records import open_records
from cope_jax.evaluation.evaluate_run import EmbeddedSplit, Evaluation, embeddings_of
from cope_jax.evaluation.metrics.bootstrap import first_product
from cope_jax.evaluation.metrics.embedding_space import NEIGHBORS, neighbor_shares
from cope_jax.evaluation.metrics.ranks import Ranks
from cope_jax.evaluation.metrics.retrieval import Histograms, chance_curve, recall_curve, similarity_histograms
from cope_jax.evaluation.report.failures import failure_tables, find_failures, missing_text
from cope_jax.evaluation.report.pca_map import map_data
from cope_jax.evaluation.report.query_gallery import CLOSE, PER_OUTCOME, choose_queries, gallery
from cope_jax.evaluation.report.right_first import right_first_rows
from cope_jax.evaluation.report.svg_charts import Axis, Chart, Curve, chart
from cope_jax.evaluation.report.training_charts import training_charts
from cope_jax.evaluation.result_tables import METRICS, describe_few_products, format_half
from cope_jax.evaluation.results import baseline_name
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_file import load_config
from data_prep.common.domains import DOMAINS, directions
from data_prep.common.files import atomic_write
from data_prep.common.html_pages import page_environment, render_page

PAGES = Path(__file__).parent / "pages"
# Classes of the marks of domains, in their order; the template has their shapes, the style sheet their colors.
MARKS = ("page", "video", "live", "fourth", "fifth", "sixth", "seventh")
CURVE_LENGTH = 100  # largest k of the curves of R@k
FEW_PAIRS = 30  # pairs of the same product, of which a histogram would say little
TICKS = (1, 2, 5, 10, 20, 50, 100)


def write_report(
    workdir: Path, evaluation: Evaluation, embedded: EmbeddedSplit, baseline: Mapping[str, Any] | None = None
) -> None:
    """Writes `report.html` next to the metrics; only the first of several processes does.

    `embedded` has the evaluated items, and `baseline` the metrics before training on them.
    """
    if jax.process_index() > 0:
        return
    html = render(contents(workdir, evaluation, embedded, baseline))
    with atomic_write(evaluation.files.report, "w") as file:
        file.write(html)


def render(contents: Mapping[str, Any]) -> str:
    """Renders the template with its style sheet and script into one page that loads nothing."""
    environment = page_environment(PAGES)
    environment.filters["half"] = format_half
    files = {"styles": [PAGES / "report.css"], "script": PAGES / "report.js"}
    return render_page(environment, "report.html.jinja", **files, **contents)


def contents(
    workdir: Path, evaluation: Evaluation, embedded: EmbeddedSplit, baseline: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns the variables of the template; for the arguments, see `write_report`."""
    config, metrics, items = evaluation.config, evaluation.metrics, embedded.items
    ranks = {name: embedded.ranks[name] for name in metrics["retrieval"]}  # those with results
    trained = load_config(workdir)
    records = open_records(config.data.data_dir, config.data.eval_split)
    chance = {name: chance_curve(ranks[name], min(CURVE_LENGTH, ranks[name].gallery)) for name in ranks}
    histograms = {
        name: similarity_histograms(
            items[source].vectors, items[target].vectors, ranks[name], seed=config.seed, within=source == target
        )
        for name, (source, target) in directions(items).items()
        if name in ranks
    }
    failures = find_failures(embedded.outcomes, items)
    queries = choose_queries(items, ranks, seed=config.seed, wanted=failures.wanted_queries())
    return {
        "run": workdir.resolve().name,
        "step": evaluation.step,
        "facts": run_facts(trained, config),
        "batch_size": trained.train.batch_size,
        "trained_on": _data_name(trained, trained.data.train_split),
        "evaluated_on": _data_name(config, config.data.eval_split),
        "metrics": metrics,
        "few_products": describe_few_products(metrics),
        "baseline": baseline,
        "baseline_name": baseline_name(trained),
        "columns": METRICS,
        "directions": directions(items),
        "episodes": config.eval.episodes,
        "domains": tuple(items),
        "is_rope": tuple(items) == DOMAINS,
        "marks": dict(zip(items, chain(MARKS, repeat("other")), strict=False)),
        "items": {domain: len(own.vectors) for domain, own in items.items()},
        "products": len(np.unique(np.concatenate([first_product(own.products) for own in items.values()]))),
        "frame_parts": parts(metrics["by_frames"]),
        "text_parts": parts(metrics["by_text"])[::-1],
        "chance": {name: float(curve[0]) for name, curve in chance.items()},
        "recall": {name: _recall_chart(own, chance[name]) for name, own in ranks.items()},
        "similarity": {name: _similarity_chart(own, ranks[name].scores) for name, own in histograms.items()},
        "overlap": {name: own.overlap for name, own in histograms.items()},
        "training": training_charts(workdir, config),
        "neighbors": neighbor_shares(embeddings_of(items), seed=config.seed),
        "neighbor_count": NEIGHBORS,
        "per_outcome": PER_OUTCOME,
        "close": CLOSE,
        **map_data(items, records, seed=config.seed),
        "gallery": gallery(queries, items, records),
        "right_first": right_first_rows(embedded, metrics, baseline),
        "missing_text": missing_text(embedded.outcomes),
        **failure_tables(failures, records),
    }


def run_facts(trained: RunConfig, evaluated: RunConfig) -> list[tuple[str, str]]:
    """Returns labels and values of the section about the run, given its config and that of the evaluation."""
    model, train = trained.model, trained.train
    weights = {part.init_from or "from scratch" for part in (model.vision, model.text)}
    terms = [f"{name} × {weight:g}" for name, weight in trained.losses.active.items()]
    frames = ", ".join(f"{count} per {domain}" for domain, count in evaluated.eval.frames.items())
    return [
        ("Training data", _data_name(trained, trained.data.train_split)),
        ("Training", f"{train.steps} steps planned, {train.batch_size} products each, seed {trained.seed}"),
        ("Loss", ", ".join(terms)),
        ("Initial weights", ", ".join(sorted(weights))),
        ("Embedding", f"{model.embedding} dimensions, fused by {model.fusion.kind}"),
        ("Domains with text input", ", ".join(model.text_domains) or "none"),
        ("Image size", f"{trained.data.image_size} × {trained.data.image_size} pixels"),
        ("Evaluation data", _data_name(evaluated, evaluated.data.eval_split)),
        ("Frames in evaluation", frames),
    ]


def _data_name(config: RunConfig, split: str) -> str:
    return f"{Path(config.data.data_dir).name}, split {split}"


def parts(breakdown: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the parts of all directions in order: "2-3" before "8-15"."""
    every = {part for own in breakdown.values() for part in own}
    return sorted(every, key=lambda part: (int(part.split("-")[0]) if part[0].isdigit() else 0, part))


def _recall_chart(ranks: Ranks, chance: np.ndarray) -> Chart:
    """R@k over k, with the expected values of a random order."""
    ks = np.arange(1, len(chance) + 1)
    curves = [Curve("model", "main", ks, recall_curve(ranks, len(ks))), Curve("chance", "chance", ks, chance)]
    x = Axis("k, logarithmic", 1, len(ks), log=True, ticks=[k for k in TICKS if k <= len(ks)])
    return chart("R@k", curves, x, Axis("share of queries", 0, 1))


def _similarity_chart(histograms: Histograms, positives: np.ndarray) -> Chart:
    """Histograms of similarities; few pairs of the same product are points instead."""
    edges = histograms.edges
    kinds = [
        ("different products", "negative", histograms.negatives, True),
        ("same product", "positive", histograms.positives, True),
        ("nearest wrong item", "nearest", histograms.nearest_wrong, False),
    ]
    steps = np.repeat(edges, 2)[1:-1]
    curves = [Curve(kind, style, steps, np.repeat(shares, 2), filled) for kind, style, shares, filled in kinds]
    if len(positives) < FEW_PAIRS:
        heights = np.full(len(positives), 0.03 * max(own.ys.max() for own in curves))
        curves[1] = Curve("same product", "positive", positives, heights, points=True)
        curves = [curves[0], curves[2], curves[1]]  # on top
    means = [f"{kind} {float(shares @ (edges[:-1] + edges[1:]) / 2):.2f}" for kind, _, shares, _ in kinds]
    highest = max(float(shares.max()) for _, _, shares, _ in kinds)
    x, y = Axis("cosine similarity", *edges[[0, -1]].tolist()), Axis("share of pairs", 0, highest)
    description = f"Mean similarities: {', '.join(means)}; overlap {histograms.overlap:.0%}"
    return chart("Similarities", curves, x, y, description=description)
