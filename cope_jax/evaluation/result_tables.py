"""Tables of evaluation results as text."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_prep.common.text_table import text_table

METRICS = (("R@1", "r1"), ("R@5", "r5"), ("R@10", "r10"), ("mAP", "map"))  # titles and keys
CATEGORIES = 20  # in the table; the metrics have all
FEW_PRODUCTS = 100  # with fewer, the interval matters more than the mean
UNKNOWN = 0.0005  # half widths below are printed as unknown
_RETRIEVAL_TITLES = ("queries", "gallery", *(title for title, _ in METRICS), "median rank")
NARROW = 0.05  # half the width of an interval of R@1 that is narrow enough


def format_tables(
    metrics: Mapping[str, Any], baseline: Mapping[str, Any] | None = None, baseline_name: str = "untrained"
) -> str:
    """Returns the retrieval and the few-shot table. Every cell shows the baseline, if any, after a slash.

    Directions without results follow their table, with the reason, and retrieval within each of several domains. If
    there are few products, a note on their number comes first.
    """
    results = [metrics] if baseline is None else [metrics, baseline]
    suffix = "" if baseline is None else f" (trained / {baseline_name})"
    empty = {
        kind: [f"{arrow(name)}: {reason}" for name, reason in metrics.get("empty", {}).get(kind, {}).items()]
        for kind in ("retrieval", "few_shot")
    }
    note = describe_few_products(metrics)
    few_shot, categories = text_table(_few_shot_rows(results)), _category_rows(metrics)
    # A single domain is a direction of its own.
    within = _domain_rows(results, "same_domain") if len(metrics.get("same_domain", {})) > 1 else []
    texts = _domain_rows(results, "text", "text → ")
    return "\n".join(
        [
            *([note, ""] if note else []),
            f"Cross-domain retrieval{suffix}",
            text_table(_retrieval_rows(results)),
            *empty["retrieval"],
            "",
            f"Few-shot classification{suffix}",
            few_shot,
            *(["± ?: all episodes have the same accuracy, so their spread says nothing"] if "± ?" in few_shot else []),
            *empty["few_shot"],
            *(["", f"Retrieval among the other items of the domain{suffix}", text_table(within)] if within else []),
            *(["", f"Typed queries: retrieval by the texts of all items{suffix}", text_table(texts)] if texts else []),
            *(["", "R@1 by category of the query (number of queries)", text_table(categories)] if categories else []),
        ]
    )


def describe_few_products(metrics: Mapping[str, Any]) -> str:
    """Returns how much the mean R@1 over fewer than FEW_PRODUCTS products says; "" with more, or without results."""
    products, found = metrics["intervals"].get("products", FEW_PRODUCTS), metrics["retrieval"]
    if not found or products >= FEW_PRODUCTS:
        return ""
    low, high = bounds = metrics["intervals"]["retrieval_mean"]["mean_r1"]
    sizes = sorted({own["gallery"] for own in found.values()})
    gallery = f"galleries of {' to '.join(str(size) for size in dict.fromkeys((sizes[0], sizes[-1])))} items"
    chance = metrics.get("chance", {}).values()
    order = f"; a random order has {sum(chance) / len(chance):.3f}" if chance else ""
    note = f"{products} products only: mean R@1 is {low:.3f} to {high:.3f} (95% interval) in {gallery}{order}."
    half = half_width(bounds)
    if half < UNKNOWN:
        return f"{note} All products have the same result, so the interval does not say how others would do."
    needed = math.ceil(products * (half / NARROW) ** 2)  # the width falls with the root of the number
    return note if half <= NARROW else f"{note} About {needed:,} products would narrow it to ±{NARROW}."


def _retrieval_row(label: str, own: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics of one query domain and gallery, in each result."""
    shares = [_cell(f"{metrics[key]:.3f}" for metrics in own) for _, key in METRICS]
    ranks = _cell(f"{metrics['median_rank']:g}" for metrics in own)
    return [label, str(own[0]["queries"]), str(own[0]["gallery"]), *shares, ranks]


def _domain_rows(results: Sequence[Mapping[str, Any]], key: str, prefix: str = "") -> list[list[str]]:
    """Rows of the domains with such metrics in all results; [] if none has them."""
    found = [result.get(key, {}) for result in results]
    rows = [
        _retrieval_row(prefix + domain, own)
        for domain in found[0]
        if all(own := [result.get(domain) for result in found])
    ]
    return [["direction" if prefix else "domain", *_RETRIEVAL_TITLES], *rows] if rows else []


def largest_categories(metrics: Mapping[str, Any]) -> list[str]:
    """Returns the categories with the most queries, at most CATEGORIES; none if the data have none."""
    queries: Counter[str] = Counter()
    for parts in metrics.get("by_category", {}).values():
        queries.update({category: own["queries"] for category, own in parts.items()})
    return [category for category, _ in queries.most_common(CATEGORIES)]


def _category_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """R@1 and numbers of queries of categories, by direction; none without categories."""
    found = metrics.get("by_category", {})
    rows = [["category", *map(arrow, found)]]
    for category in largest_categories(metrics):
        parts = [own.get(category) for own in found.values()]
        rows.append([category or "(none)", *(f"{own['r1']:.3f} ({own['queries']})" if own else "–" for own in parts)])
    return rows if found else []


def _retrieval_rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["direction", *_RETRIEVAL_TITLES]]
    for name in results[0]["retrieval"]:
        rows.append(_retrieval_row(arrow(name), [result["retrieval"][name] for result in results]))
    if not results[0]["retrieval"]:
        return rows
    means = [result["retrieval_mean"] for result in results]
    shares = [_cell(f"{mean[f'mean_{key}']:.3f}" for mean in means) for _, key in METRICS]
    bounds = [result["intervals"]["retrieval_mean"] for result in results]
    halves = [_cell(format_half(half_width(bound[f"mean_{key}"])) for bound in bounds) for _, key in METRICS]
    return [*rows, ["mean", "", "", *shares, ""], ["95% interval", "", "", *halves, ""]]


def _few_shot_rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["direction", "ways", "shots", "episodes", "accuracy"]]
    for name, first in results[0]["few_shot"].items():
        own = [result["few_shot"][name] for result in results]
        accuracies = _cell(f"{metrics['accuracy']:.3f} {format_half(metrics['ci95'], ' ')}" for metrics in own)
        rows.append([arrow(name), *(str(first[key]) for key in ("ways", "shots", "episodes")), accuracies])
    return rows


def half_width(bounds: Sequence[float]) -> float:
    """Returns half the width of an interval [low, high]."""
    low, high = bounds
    return (high - low) / 2


def format_half(half: float, space: str = "") -> str:
    """Formats half the width of an interval. It is unknown if all products, or all episodes, have the same result."""
    return f"±{space}{half:.3f}" if half >= UNKNOWN else f"±{space}?"


def _cell(values: Iterable[str]) -> str:
    return " / ".join(values)


def arrow(name: str) -> str:
    """Formats the name of a direction: "p2v" → "P → V", "shop_to_street" → "shop → street"."""
    return name.replace("_to_", " → ") if "_to_" in name else name.upper().replace("2", " → ")
