"""A map of the embeddings, to see whether domains mix."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cope_jax.data.records import Records
from cope_jax.evaluation.embed_items import Items
from cope_jax.evaluation.metrics.bootstrap import first_product
from cope_jax.evaluation.report.query_gallery import item_key, shorten

POINTS = 1500  # maximum number of points; more would hide each other
SIDE, MARGIN = 400, 14  # pixels of a map
TEXT = 80  # characters shown of a text


@dataclass(frozen=True)
class PcaMap:
    """All items of some products, projected onto the first two principal components."""

    points: Mapping[str, np.ndarray]  # [n, 2] of each domain
    positions: Mapping[str, np.ndarray]  # of these n items in `Items`
    explained: float  # share of the variance in the plane


def map_data(items: Mapping[str, Items], records: Records, *, seed: int) -> dict[str, Any]:
    """Returns both maps of the same items, as embedded and with each domain centered, and a description of each point.

    "maps": [{"explained": share of the variance, "points": [(domain, x, y) in pixels, …]}, …];
    "points": [[item, domain, id, products, text], …] in the same order.
    """
    maps = [pca_map(items, seed=seed, center_domains=center_domains) for center_domains in (False, True)]
    shown = [(domain, position) for domain in items for position in maps[0].positions[domain].tolist()]
    return {
        "map_side": SIDE,
        "maps": [{"explained": own.explained, "points": _pixels(own.points)} for own in maps],
        "points": [_describe(items, records, domain, position) for domain, position in shown],
    }


def pca_map(items: Mapping[str, Items], *, seed: int, center_domains: bool, limit: int = POINTS) -> PcaMap:
    """Projects the items of random products, at most `limit` items, onto the principal components of all items.

    `center_domains` subtracts each domain's own mean instead of the overall mean. If domains are far apart, this shows
    whether they are arranged alike.
    """
    vectors = {domain: own.vectors.astype(np.float64) for domain, own in items.items()}
    overall = np.concatenate(list(vectors.values())).mean(axis=0)
    centered = {
        domain: own - (own.mean(axis=0) if center_domains and len(own) else overall) for domain, own in vectors.items()
    }
    values, axes = np.linalg.eigh(np.sum([own.T @ own for own in centered.values()], axis=0))  # ascending
    axes = axes[:, :-3:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])  # makes the signs unique
    positions = _draw_products(items, np.random.default_rng(seed), limit)
    return PcaMap(
        points={domain: own[positions[domain]] @ axes for domain, own in centered.items()},
        positions=positions,
        explained=float(values[-2:].sum() / values.sum()) if values.sum() > 0 else 0.0,
    )


def _draw_products(items: Mapping[str, Items], rng: np.random.Generator, limit: int) -> dict[str, np.ndarray]:
    """Positions of all items of random products, up to the limit.

    If the first product has more items by itself, only every n-th of them is taken.
    """
    owners = {domain: first_product(own.products) for domain, own in items.items()}
    products, sizes = np.unique(np.concatenate(list(owners.values())), return_counts=True)
    order = rng.permutation(len(products))
    shown = products[order[: max(int((sizes[order].cumsum() <= limit).sum()), 1)]]
    positions = {domain: np.flatnonzero(np.isin(own, shown)) for domain, own in owners.items()}
    step = -(-sum(map(len, positions.values())) // limit)
    return {domain: own[::step] for domain, own in positions.items()}


def _pixels(points: Mapping[str, np.ndarray]) -> list[tuple[str, float, float]]:
    """Scales the points of all domains to the picture, both axes alike."""
    every = np.concatenate(list(points.values()))
    low, high = every.min(axis=0), every.max(axis=0)
    scale = (SIDE - 2 * MARGIN) / max(float((high - low).max()), np.finfo(np.float32).tiny)
    pixels = {domain: SIDE / 2 + (own - (low + high) / 2) * [scale, -scale] for domain, own in points.items()}
    return [(domain, x, y) for domain, own in pixels.items() for x, y in own.round(1).tolist()]


def _describe(items: Mapping[str, Items], records: Records, domain: str, position: int) -> list[Any]:
    item = records.items[domain][int(items[domain].rows[position])]
    products = list(map(str, item.own_products))
    return [item_key(domain, position), domain, str(item.own_id), products, shorten(item.text, TEXT)]
