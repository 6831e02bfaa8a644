"""The embeddings on a plane, to look at whether the domains mix, and a number for what a plane cannot show."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cope_jax.domains import DOMAINS
from cope_jax.evaluation.embed_items import Items
from cope_jax.evaluation.metrics.bootstrap import first_product
from cope_jax.evaluation.metrics.nearest_neighbors import nearest_neighbors

POINTS = 1500  # shown at most: more hide each other
ASKED = 300  # items of each domain whose neighbours are counted
NEIGHBOURS = 10


@dataclass(frozen=True)
class Plane:
    """Some products with all their items, on the two directions along which all items differ most.

    Attributes:
      points: of each domain f64[n, 2].
      rows: of each domain, the places of these n among its items.
      explained: share of the items' whole variance that lies in the plane.
    """

    points: Mapping[str, np.ndarray]
    rows: Mapping[str, np.ndarray]
    explained: float


def plane(items: Mapping[str, Items], *, seed: int, each_centred: bool, limit: int = POINTS) -> Plane:
    """Principal components of all items; shown are random products until there are `limit` items.

    Args:
      items: of each domain.
      seed: of the products.
      each_centred: whether each domain's own mean is taken away, instead of that of all: where domains lie apart, this
        shows whether they are arranged alike.
      limit: of items.
    """
    centred = centred_vectors(items, each=each_centred)
    values, axes = np.linalg.eigh(sum(own.T @ own for own in centred.values()))  # rising
    axes = axes[:, :-3:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])  # either sign would do; always the same one
    rows = shown_rows(items, np.random.default_rng(seed), limit)
    return Plane(
        points={domain: own[rows[domain]] @ axes for domain, own in centred.items()},
        rows=rows,
        explained=float(values[-2:].sum() / values.sum()) if values.sum() > 0 else 0.0,
    )


def centred_vectors(items: Mapping[str, Items], *, each: bool) -> dict[str, np.ndarray]:
    """The embeddings f64[N, E] of each domain, without the mean of the domain's own, or of all."""
    vectors = {domain: items[domain].vectors.astype(np.float64) for domain in DOMAINS}
    common = np.concatenate(list(vectors.values())).mean(axis=0)
    return {domain: own - (own.mean(axis=0) if each else common) for domain, own in vectors.items()}


def shown_rows(items: Mapping[str, Items], rng: np.random.Generator, limit: int) -> dict[str, np.ndarray]:
    """The places of all items of some random products: as many as keep to the limit.

    Where the first of them has more by itself, every second of its items, or third, …
    """
    owners = {domain: first_product(items[domain].products) for domain in DOMAINS}
    products, sizes = np.unique(np.concatenate(list(owners.values())), return_counts=True)
    order = rng.permutation(len(products))
    shown = products[order[: max(int((sizes[order].cumsum() <= limit).sum()), 1)]]
    rows = {domain: np.flatnonzero(np.isin(own, shown)) for domain, own in owners.items()}
    step = -(-sum(map(len, rows.values())) // limit)
    return {domain: own[::step] for domain, own in rows.items()}


def neighbour_shares(items: Mapping[str, Items], *, seed: int) -> dict[str, dict[str, float]]:
    """Which domains the nearest items, of all domains, of an item of each domain belong to.

    Returns:
      {"page": {"page": 0.4, "video": 0.3, "live": 0.3}, …}: means over some random items, and under "all" the shares
      of the domains among all items, which they would have if the domain did not matter.
    """
    rng = np.random.default_rng(seed)
    vectors = np.concatenate([items[domain].vectors for domain in DOMAINS])
    sizes = np.array([len(items[domain].vectors) for domain in DOMAINS])
    starts, whose = np.cumsum(sizes) - sizes, np.repeat(np.arange(len(DOMAINS)), sizes)
    shares = {}
    for domain, start, size in zip(DOMAINS, starts, sizes, strict=True):
        asked = start + rng.choice(size, min(ASKED, size), replace=False)
        rows, _ = nearest_neighbors(vectors[asked], vectors, [np.zeros(0, np.int64)] * len(asked), k=NEIGHBOURS + 1)
        others = whose[rows[rows != asked[:, None]]]  # an item itself is nearly always nearest
        shares[domain] = _shares(others)
    return shares | {"all": _shares(whose)}


def _shares(whose: np.ndarray) -> dict[str, float]:
    counts = np.bincount(whose, minlength=len(DOMAINS))
    return dict(zip(DOMAINS, (counts / max(counts.sum(), 1)).tolist(), strict=True))
