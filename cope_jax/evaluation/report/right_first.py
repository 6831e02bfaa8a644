"""How often the right product is first, by direction and category, against chance and the model before training."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cope_jax.evaluation.evaluate_run import EmbeddedSplit
from cope_jax.evaluation.metrics.bootstrap import bootstrap_means, interval
from cope_jax.evaluation.result_tables import largest_categories
from data_prep.common.domains import directions


def right_first_rows(
    embedded: EmbeddedSplit, metrics: Mapping[str, Any], baseline: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Returns R@1 of each direction, their mean, and the largest categories of queries in all directions.

    Each row has "direction" ("mean" for the mean) or "category", "r1", "bounds" of its 95% interval, "chance",
    "baseline" (None without one), and the number of "queries".
    """
    return [*direction_rows(metrics, baseline), *category_rows(embedded, metrics, baseline)]


def direction_rows(metrics: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Returns the rows of the directions and, of several, their mean."""
    rows = []
    for name, own in metrics["retrieval"].items():
        other = baseline["retrieval"].get(name) if baseline else None
        bounds = metrics["intervals"]["retrieval"][name]["r1"]
        row = {"direction": name, "r1": own["r1"], "bounds": bounds, "baseline": other and other["r1"]}
        rows.append(row | {"chance": metrics["chance"][name], "queries": own["queries"]})
    if len(rows) > 1:
        mean = {key: np.mean([row[key] for row in rows]).item() for key in ("r1", "chance")}
        mean |= {"queries": sum(row["queries"] for row in rows), "direction": "mean"}
        mean |= {"bounds": metrics["intervals"]["retrieval_mean"]["mean_r1"]}
        rows.append(mean | {"baseline": baseline and baseline["retrieval_mean"].get("mean_r1")})
    return rows


def category_rows(
    embedded: EmbeddedSplit, metrics: Mapping[str, Any], baseline: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Returns the rows of categories; [] if the data have none."""
    if not (shown := largest_categories(metrics)):
        return []
    columns = []
    for name, own in embedded.outcomes.items():
        source = directions(embedded.items)[name][0]
        positions = np.searchsorted(embedded.items[source].rows, own.query)
        columns.append((embedded.categories[source][positions], own.product, own.rank == 1, own.chance))
    categories, products, right, chance = map(np.concatenate, zip(*columns, strict=True))
    masks = {name: categories == name for name in shown}
    values = {name: right[mask, None].astype(float) for name, mask in masks.items()}
    means = bootstrap_means(values, {name: products[mask] for name, mask in masks.items()}, seed=0)
    return [
        {
            "category": name,
            "r1": float(right[mask].mean()),
            "bounds": interval(means[name])[0].tolist(),
            "baseline": _pooled(baseline, name),
            "chance": float(chance[mask].mean()),
            "queries": int(mask.sum()),
        }
        for name, mask in masks.items()
    ]


def _pooled(metrics: Mapping[str, Any] | None, category: str) -> float | None:
    """R@1 of the queries of a category in all directions; None without results."""
    parts = [own[category] for own in (metrics or {}).get("by_category", {}).values() if category in own]
    return (
        sum(part["r1"] * part["queries"] for part in parts) / sum(part["queries"] for part in parts) if parts else None
    )
