"""Retrieval metrics: does an item find the items of its product in another domain, in its own, or in all of them?"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from cope_jax.evaluation.metrics.ranks import (
    Ranks,
    nearest_negative_scores,
    pair_scores,
    positive_pairs,
    ranks_between,
    ranks_within,
)
from data_prep.common.domains import direction_name, domain_pairs

RECALLS = (1, 5, 10)
MEAN_METRICS = (*(f"r{k}" for k in RECALLS), "map", "ndcg10")  # means over queries
FEWEST_BINS, BINS = 10, 50  # of histograms
PAIRS_PER_BIN = 4  # of the same product, or the histogram of a small data set is a comb
NEGATIVES = 100_000  # random pairs; the standard error of a bin's share is at most 0.0016
NEAREST_NEGATIVES = 500  # queries whose nearest negative is found
LIMIT_QUERIES = 500  # queries that a limit of similarities is computed from
DISMISSED = 0.05  # share of right first items below a limit
MIN_RIGHT = 20  # right first items that a limit needs

# Embeddings and product ids (padded with -1) of the items of each domain.
Embeddings = Mapping[str, tuple[Float[np.ndarray, "_ _"], Int[np.ndarray, "_ _"]]]
Metrics = dict[str, float | int]


def query_metrics(ranks: Ranks) -> Float[np.ndarray, "queries metrics"]:
    """Returns MEAN_METRICS of each query with a positive."""
    best = ranks.best
    columns = [*(best <= k for k in RECALLS), ranks.average_precision, ranks.ndcg(10)]
    return np.stack(columns, axis=-1).astype(np.float64)


def retrieval_metrics(ranks: Ranks, chosen: Bool[np.ndarray, " Q"] | None = None) -> Metrics:
    """Computes the metrics of one direction.

        r1, r5, r10  = mean over queries of [rank_1 ≤ 1], [rank_1 ≤ 5], [rank_1 ≤ 10]
        map          = mean over queries of (1/P) Σ_k k / rank_k
        ndcg10       = mean over queries of the normalized discounted cumulative gain of the first 10 items
        median_rank  = median over queries of rank_1

    Returns these metrics of the chosen or all queries, the number of `queries` with a positive, which they are means
    over, the number of queries `left_out` because they have none, and the number of `gallery` items.
    """
    chosen = np.ones(len(ranks.has_positive), bool) if chosen is None else chosen
    used = chosen[ranks.has_positive]
    means = query_metrics(ranks)[used].mean(axis=0)
    return {
        **dict(zip(MEAN_METRICS, means.tolist(), strict=True)),
        "median_rank": float(np.median(ranks.best[used])),
        "queries": int(used.sum()),
        "left_out": int(chosen.sum() - used.sum()),
        "gallery": ranks.gallery,
    }


def direction_ranks(embeddings: Embeddings, *, block: int | None = None) -> dict[str, Ranks]:
    """Ranks every ordered pair of domains: {"p2v": …, "v2p": …, …}, the domain of the queries first.

    Items of a single domain are ranked among its other items: {"p2p": …}.

    Raises ValueError if shapes do not match or an embedding is not finite.
    """
    for domain, (vectors, products) in embeddings.items():
        _check(vectors, products, domain)
    ranks = {}
    for source, target in domain_pairs(embeddings):
        if source == target:
            ranks[direction_name(source, target, embeddings)] = ranks_within(*embeddings[source], block=block)
            continue
        (a, a_products), (b, b_products) = embeddings[source], embeddings[target]
        forward, backward = ranks_between(a, b, a_products, b_products, block=block)
        ranks[direction_name(source, target, embeddings)] = forward
        ranks[direction_name(target, source, embeddings)] = backward
    return ranks


def _check(embeddings: np.ndarray, products: np.ndarray, domain: str) -> None:
    if embeddings.ndim != 2 or products.ndim != 2 or len(embeddings) != len(products):
        raise ValueError(
            f"{domain}: embeddings have shape {embeddings.shape} and products {products.shape}, "
            "expected [N, E] and [N, M]"
        )
    invalid = np.flatnonzero(~np.isfinite(embeddings).all(axis=-1))
    if invalid.size:  # NaN compares as neither above nor below, which would count in the model's favor
        raise ValueError(f"{domain}: {invalid.size} embeddings are not finite, the first in row {invalid[0]}")


def direction_metrics(ranks: Mapping[str, Ranks]) -> dict[str, Metrics]:
    """Computes the metrics of each direction in which some query has a positive."""
    return {name: retrieval_metrics(own) for name, own in ranks.items() if own.has_positive.any()}


def direction_means(metrics: Mapping[str, Metrics]) -> dict[str, float]:
    """Returns means over the directions, "mean_r1", …, "mean_ndcg10"; {} without directions."""
    if not metrics:
        return {}
    return {f"mean_{key}": sum(own[key] for own in metrics.values()) / len(metrics) for key in MEAN_METRICS}


def same_domain(embeddings: Embeddings) -> dict[str, Metrics | None]:
    """Computes retrieval among the other items of each domain; None if no two of them share a product."""
    return {domain: _metrics_or_none(ranks_within(*items)) for domain, items in embeddings.items()}


def all_domains(embeddings: Embeddings) -> dict[str, Metrics | None]:
    """Computes retrieval among the other items of all domains, by the query's domain; None as in `same_domain`."""
    vectors = np.concatenate([vectors for vectors, _ in embeddings.values()])
    ranks = ranks_within(vectors, pad_products(embeddings))
    owners = np.repeat(list(embeddings), [len(own) for _, own in embeddings.values()])
    return {domain: _metrics_or_none(ranks, owners == domain) for domain in embeddings}


def pad_products(embeddings: Embeddings) -> Int[np.ndarray, "N M"]:
    """Returns the product ids of the items of all domains, one after the other, padded with -1 to the same width."""
    width = max(products.shape[1] for _, products in embeddings.values())
    every = [np.pad(own, ((0, 0), (0, width - own.shape[1])), constant_values=-1) for _, own in embeddings.values()]
    return np.concatenate(every)


def _metrics_or_none(ranks: Ranks, chosen: np.ndarray | None = None) -> Metrics | None:
    used = ranks.has_positive if chosen is None else ranks.has_positive & chosen
    return retrieval_metrics(ranks, chosen) if used.any() else None


def by_part(ranks: Ranks, parts: Shaped[np.ndarray, " Q"]) -> dict[str, Metrics]:
    """Computes the metrics of each part of the queries; `parts` names the part of each query."""
    return {str(part): retrieval_metrics(ranks, parts == part) for part in np.unique(parts[ranks.has_positive])}


def frame_range(count: int) -> str:
    """Returns the powers of two that bound a number of frames: "0", "1", "2-3", "4-7", …"""
    low = 1 << (count.bit_length() - 1) if count else 0
    return str(low) if low < 2 else f"{low}-{2 * low - 1}"


def recall_curve(ranks: Ranks, limit: int) -> Float[np.ndarray, " limit"]:
    """Returns R@1 … R@limit: the share of queries with a positive that have one among their first k."""
    found = np.bincount(np.minimum(ranks.best, limit + 1), minlength=limit + 2)[1 : limit + 1]
    return found.cumsum() / len(ranks.best)


def chance_curve(ranks: Ranks, limit: int) -> Float[np.ndarray, " limit"]:
    """Returns the expected R@1 … R@limit of a random order.

    Of G items, P of them positives, the first k have no positive with probability Π_{i<k} (G - P - i) / (G - i).
    """
    positives, queries = np.unique(np.diff(ranks.offsets)[ranks.has_positive], return_counts=True)
    left = np.maximum(ranks.gallery - np.arange(limit), 1)
    missed = np.maximum(left - positives[:, None], 0) / left
    return 1 - queries @ missed.cumprod(axis=-1) / queries.sum()


def similarity_limits(
    queries: Mapping[str, tuple[str, Float[np.ndarray, "_ _"]]], embeddings: Embeddings, *, seed: int
) -> dict[str, dict[str, float]]:
    """Computes the similarities that 95% of right first items reach, by query and domain of the items.

    Whatever is searched for, some item is first: one that is less similar than this is probably wrong. There is no
    limit if fewer than MIN_RIGHT of the queries drawn find a right item first.

    Args:
        queries: For each name, the domain of its items and an embedding of each of them, zeros for those left out.
        embeddings: Embeddings and products of the items to find; an item is not found for itself.
        seed: Seed of the draw of up to LIMIT_QUERIES queries.
    """
    limits: dict[str, dict[str, float]] = {}
    for name, (source, vectors) in queries.items():
        chosen = np.flatnonzero(vectors.any(axis=-1))
        drawn = np.random.default_rng(seed).choice(chosen, min(LIMIT_QUERIES, len(chosen)), replace=False)
        for target, (gallery, products) in embeddings.items():
            if not len(gallery):
                continue
            rows, found = positive_pairs(embeddings[source][1][drawn], products)
            others = found != drawn[rows] if source == target else np.ones(len(found), bool)
            best = np.full(len(drawn), -np.inf)
            np.maximum.at(best, rows[others], pair_scores(vectors[drawn], gallery, rows[others], found[others]))
            wrong = nearest_negative_scores(vectors[drawn], gallery, [found[rows == i] for i in range(len(drawn))])
            right = best[np.isfinite(best) & ~(wrong >= best)]
            if len(right) >= MIN_RIGHT:
                limits.setdefault(name, {})[target] = float(np.quantile(right, DISMISSED))
    return limits


@dataclass(frozen=True)
class Histograms:
    """Similarities of the pairs of items of one direction, as shares of pairs per bin."""

    edges: Float[np.ndarray, " edges"]
    positives: Float[np.ndarray, " bins"]  # all pairs with a product in common
    negatives: Float[np.ndarray, " bins"]  # random pairs without one
    nearest_wrong: Float[np.ndarray, " bins"]  # some queries with their nearest negative
    overlap: float  # Σ min(positives, negatives): 0 if a threshold separates them, 1 if they are distributed alike


def similarity_histograms(
    queries: Float[np.ndarray, "Q E"],
    gallery: Float[np.ndarray, "G E"],
    ranks: Ranks,
    *,
    seed: int,
    within: bool = False,
) -> Histograms:
    """Computes the histograms of one direction, with random pairs and queries drawn by `seed`.

    `within` says that queries and gallery are the same items, which are not compared with themselves.
    """
    rng = np.random.default_rng(seed)
    negatives = _random_negatives(queries, gallery, ranks, rng, within=within)
    chosen = np.flatnonzero(ranks.has_positive)
    chosen = np.sort(rng.choice(chosen, min(NEAREST_NEGATIVES, len(chosen)), replace=False))
    others = [
        np.append(ranks.positives(query), [query] if within else []).astype(np.int64) for query in chosen.tolist()
    ]
    nearest = nearest_negative_scores(queries[chosen], gallery, others)
    samples = [ranks.scores, negatives, nearest[np.isfinite(nearest)]]
    every = np.concatenate(samples)
    bins = int(np.clip(len(ranks.scores) // PAIRS_PER_BIN, FEWEST_BINS, BINS))
    edges = np.linspace(every.min(), every.max(), bins + 1)
    positive, negative, wrong = (np.histogram(own, edges)[0] / max(len(own), 1) for own in samples)
    return Histograms(edges, positive, negative, wrong, float(np.minimum(positive, negative).sum()))


def _random_negatives(
    queries: np.ndarray, gallery: np.ndarray, ranks: Ranks, rng: np.random.Generator, *, within: bool
) -> np.ndarray:
    """Scores of up to NEGATIVES random pairs without a product in common."""
    rows, columns = rng.integers(len(queries), size=NEGATIVES), rng.integers(len(gallery), size=NEGATIVES)
    owners = np.repeat(np.arange(len(queries)), np.diff(ranks.offsets))
    positive = np.isin(rows * len(gallery) + columns, owners * len(gallery) + ranks.rows)
    positive |= within & (rows == columns)
    return pair_scores(queries, gallery, rows[~positive], columns[~positive])
