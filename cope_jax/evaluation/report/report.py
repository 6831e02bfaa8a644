"""The report of an evaluated checkpoint: one HTML file with tables, curves, a map and a gallery of answers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cope_jax.data.records import Records, open_records
from cope_jax.domains import DIRECTIONS, DOMAINS, direction_name
from cope_jax.evaluation.embed_items import Items
from cope_jax.evaluation.evaluate_run import Judged, report_path
from cope_jax.evaluation.metrics.bootstrap import first_product
from cope_jax.evaluation.metrics.ranks import Ranks
from cope_jax.evaluation.metrics.retrieval import chance_curve, recall_curve
from cope_jax.evaluation.metrics.similarity_histograms import Histograms, similarity_histograms
from cope_jax.evaluation.report.pca_map import NEIGHBOURS, neighbour_shares, plane
from cope_jax.evaluation.report.query_gallery import CLOSE, OF_EACH, answers, gallery, item_key, shortened
from cope_jax.evaluation.report.rendering import render
from cope_jax.evaluation.report.svg_charts import Axis, Chart, Curve, chart
from cope_jax.evaluation.report.training_charts import training_charts
from cope_jax.evaluation.result_tables import METRICS
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_file import load_config

UPTO = 100  # the last k of the curves of R@k
TICKS = (1, 2, 5, 10, 20, 50, 100)
MAP_SIDE, MAP_EDGE = 400, 14  # pixels of a map, and what its points keep from the edge
MAP_TEXT = 80  # characters of a text beside the map


def write_report(workdir: Path, judged: Judged, beside: Mapping[str, Any] | None = None) -> None:
    """Writes `report.html` beside the metrics, whole or not at all; of several processes the first one does.

    Args:
        workdir: of the run.
        judged: what was evaluated, with its items.
        beside: metrics of the untrained model on the same items, where they are known.
    """
    if jax.process_index() > 0:
        return
    path = report_path(workdir, judged.step, judged.metrics["evaluated"]["subset"], average=judged.average)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(render(contents(workdir, judged, beside)), encoding="utf-8")
    os.replace(partial, path)


def contents(workdir: Path, judged: Judged, beside: Mapping[str, Any] | None) -> dict[str, Any]:
    """All that the template shows, by the names it knows; arguments as of `write_report`."""
    config, items, ranks = judged.config, judged.items, judged.ranks
    trained = load_config(workdir)
    records = open_records(config.data.data_dir, config.data.eval_split)
    names = [direction_name(*direction) for direction in DIRECTIONS]
    guessed = {name: chance_curve(ranks[name], min(UPTO, ranks[name].gallery)) for name in names}
    similarities = {
        direction_name(source, target): similarity_histograms(
            items[source].vectors, items[target].vectors, ranks[direction_name(source, target)], seed=config.seed
        )
        for source, target in DIRECTIONS
    }
    shown = answers(items, ranks, seed=config.seed)
    return {
        "run": workdir.resolve().name,
        "step": judged.step,
        "facts": facts(trained, config),
        "batch_size": trained.train.batch_size,
        "trained_on": _data(trained, trained.data.train_split),
        "judged_on": _data(config, config.data.eval_split),
        "metrics": judged.metrics,
        "beside": beside,
        "columns": METRICS,
        "directions": dict(zip(names, DIRECTIONS, strict=True)),
        "domains": DOMAINS,
        "items": {domain: len(items[domain].vectors) for domain in DOMAINS},
        "products": len(np.unique(np.concatenate([first_product(items[domain].products) for domain in DOMAINS]))),
        "frame_parts": parts(judged.metrics["by_frames"]),
        "text_parts": parts(judged.metrics["by_text"])[::-1],
        "guessed": {name: float(curve[0]) for name, curve in guessed.items()},
        "recall": {name: recall_chart(ranks[name], guessed[name]) for name in names},
        "similarity": {name: similarity_chart(found) for name, found in similarities.items()},
        "overlap": {name: found.overlap for name, found in similarities.items()},
        "training": training_charts(workdir, config),
        "neighbours": neighbour_shares(items, seed=config.seed),
        "neighbour_count": NEIGHBOURS,
        "of_each": OF_EACH,
        "close": CLOSE,
        "wrong": {name: int((ranks[name].best > 1).sum()) for name in names},
        **maps(items, records, seed=config.seed),
        "gallery": gallery(shown, items, records),
    }


def facts(trained: RunConfig, judged: RunConfig) -> list[tuple[str, str]]:
    """What a reader may want to know about the run; from its config, and the one with the data it was judged on."""
    model, train = trained.model, trained.train
    weights = {"from scratch" if not part.init_from else part.init_from for part in (model.vision, model.text)}
    terms = [f"{name} × {weight:g}" for name, weight in trained.losses.active.items()]
    frames = ", ".join(f"{judged.eval.frames[domain]} of a {domain}" for domain in DOMAINS)
    return [
        ("Trained on", _data(trained, trained.data.train_split)),
        ("Training", f"{train.steps} steps planned of {train.batch_size} products each, seed {trained.seed}"),
        ("Loss", ", ".join(terms)),
        ("Started", ", ".join(sorted(weights))),
        ("Embedding", f"{model.embedding} numbers, fused by {model.fusion.kind}"),
        ("Texts read of", ", ".join(model.text_domains) or "no domain"),
        ("Images", f"{trained.data.image_size} × {trained.data.image_size} pixels"),
        ("Judged on", _data(judged, judged.data.eval_split)),
        ("Frames looked at", frames),
    ]


def _data(config: RunConfig, split: str) -> str:
    return f"{Path(config.data.data_dir).name}, split {split}"


def parts(breakdown: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The parts of a breakdown in all directions, "8-15" behind "2-3"."""
    every = {part for of_direction in breakdown.values() for part in of_direction}
    return sorted(every, key=lambda part: (int(part.split("-")[0]) if part[0].isdigit() else 0, part))


def recall_chart(ranks: Ranks, guessed: np.ndarray) -> Chart:
    """R@k of a direction over k, beside guessing."""
    ks = np.arange(1, len(guessed) + 1)
    curves = [Curve("model", "main", ks, recall_curve(ranks, len(ks))), Curve("guessing", "guess", ks, guessed)]
    ticks = [k for k in TICKS if k <= len(ks)]
    x = Axis("k, logarithmic", 1, len(ks), log=True, ticks=ticks)
    return chart("R@k", curves, x, Axis("share of queries", 0, 1))


def similarity_chart(found: Histograms) -> Chart:
    """The histograms of a direction as steps."""
    edges = np.repeat(found.edges, 2)[1:-1]
    kinds = [
        ("different products", "negative", found.negatives, True),
        ("same product", "positive", found.positives, True),
        ("nearest wrong item", "nearest", found.nearest_wrong, False),
    ]
    highest = max(float(shares.max()) for _, _, shares, _ in kinds)
    curves = [Curve(kind, style, edges, np.repeat(shares, 2), filled) for kind, style, shares, filled in kinds]
    means = [f"{kind} {_mean(found.edges, shares):.2f}" for kind, _, shares, _ in kinds]
    x, y = Axis("cosine similarity", *found.edges[[0, -1]].tolist()), Axis("share of pairs", 0, highest)
    description = f"On average {', '.join(means)}; overlap {found.overlap:.0%}"
    return chart("Similarities", curves, x, y, description=description)


def _mean(edges: np.ndarray, shares: np.ndarray) -> float:
    return float(shares @ (edges[:-1] + edges[1:]) / 2)


def maps(items: Mapping[str, Items], records: Records, *, seed: int) -> dict[str, Any]:
    """Both maps of the same items, and what their points stand for.

    Returns:
        "maps": [{"explained": share of the variance, "points": [(domain, x, y) in pixels, …]}, …], as embedded and
        with each domain's mean taken away; "points": [[item, domain, id, products, text], …] in the same order.
    """
    planes = [plane(items, seed=seed, each_centred=each) for each in (False, True)]
    return {
        "map_side": MAP_SIDE,
        "maps": [{"explained": found.explained, "points": _pixels(found.points)} for found in planes],
        "points": [
            _point(items, records, domain, place) for domain in DOMAINS for place in planes[0].rows[domain].tolist()
        ],
    }


def _pixels(points: Mapping[str, np.ndarray]) -> list[tuple[str, float, float]]:
    """Points of all domains in one picture, as large as fits, both axes to the same scale."""
    every = np.concatenate(list(points.values()))
    low, high = every.min(axis=0), every.max(axis=0)
    scale = (MAP_SIDE - 2 * MAP_EDGE) / max(float((high - low).max()), np.finfo(np.float32).tiny)
    places = {domain: MAP_SIDE / 2 + (own - (low + high) / 2) * [scale, -scale] for domain, own in points.items()}
    return [(domain, *place) for domain in DOMAINS for place in places[domain].round(1).tolist()]


def _point(items: Mapping[str, Items], records: Records, domain: str, place: int) -> list[Any]:
    item = records.items[domain][int(items[domain].rows[place])]
    text = shortened(item.text, MAP_TEXT)
    return [item_key(domain, place), domain, str(item.item_id), list(map(str, item.product_ids)), text]
