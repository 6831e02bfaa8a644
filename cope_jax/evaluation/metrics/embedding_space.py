"""Metrics of the embedding space: its modalities, its width, and whether its domains mix."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from cope_jax.evaluation.metrics.bootstrap import first_product
from cope_jax.evaluation.metrics.ranks import Ranks, nearest_neighbors, ranks_without
from cope_jax.evaluation.metrics.retrieval import (
    Embeddings,
    Metrics,
    direction_means,
    direction_metrics,
    direction_ranks,
    pad_products,
)
from data_prep.common.domains import directions

NEIGHBORS = 10
QUERIES = 300  # items of each domain whose neighbors are counted
SHORTEST = 8  # values of an embedding
RIDGE = 1e-3  # of the domain classifier, relative to the number of its examples

Queries = Mapping[str, Float[np.ndarray, "_ _"]]


def masked_retrieval(queries: Queries, embeddings: Embeddings) -> dict[str, Metrics | float]:
    """Computes retrieval with other embeddings of the queries in the usual galleries, by direction, and the mean R@1.

    Args:
        queries: Other embeddings of the items of each domain, such as those of their frames alone; 0 for items without.
        embeddings: The items.
    """
    ranks = {}
    for name, (source, target) in directions(embeddings).items():
        used = np.flatnonzero(queries[source].any(axis=-1))
        own = used if source == target else np.full(len(used), -1)
        (_, products), (gallery, gallery_products) = embeddings[source], embeddings[target]
        ranks[name] = ranks_without(queries[source][used], gallery, products[used], gallery_products, own)
    metrics = direction_metrics(ranks)
    return metrics | {name: mean for name, mean in direction_means(metrics).items() if name == "mean_r1"}


def text_ranks(texts: Queries, embeddings: Embeddings) -> tuple[dict[str, Ranks], dict[str, Int[np.ndarray, " Q"]]]:
    """Ranks the items of each domain for the texts of all items, as if users typed them.

    An item is left out of the gallery for its own text.

    Args:
        texts: Embeddings of the texts of each domain's items alone; 0 for items without.
        embeddings: The items.

    Returns:
        The ranks in each domain that has items, and the product of each query, from `first_product`.
    """
    queries, products = np.concatenate(list(texts.values())), pad_products(embeddings)
    used = queries.any(axis=-1)
    ranks = {}
    for domain, (items, item_products) in embeddings.items():
        if len(items):
            rows = [np.arange(len(own)) if name == domain else np.full(len(own), -1) for name, own in texts.items()]
            own_rows = np.concatenate(rows)[used]
            ranks[domain] = ranks_without(queries[used], items, products[used], item_products, own_rows)
    return ranks, dict.fromkeys(ranks, first_product(products[used]))


def prefix_retrieval(embeddings: Embeddings) -> dict[str, dict[str, float]]:
    """Computes the means over directions for the first 8, 16, 32, … values of embeddings: {"8": {"mean_r1": …}, …}."""
    width = next(iter(embeddings.values()))[0].shape[-1]
    sizes = [size for size in (SHORTEST << np.arange(12)).tolist() if size < width] + [width]
    found = {}
    for size in sizes:
        shortened = {domain: (_unit(own[:, :size]), products) for domain, (own, products) in embeddings.items()}
        found[str(size)] = direction_means(direction_metrics(direction_ranks(shortened)))
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def spectrum(embeddings: Embeddings) -> dict[str, float | list[float]]:
    """Computes how the variance of all items is spread over the principal components.

    Returns "variance", the share of each component, the largest first, and "participation_ratio", (Σ λ)² / Σ λ²: the
    number of components if all had the same variance.
    """
    vectors = np.concatenate([own for own, _ in embeddings.values()]).astype(np.float64)
    variances = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False) ** 2
    shares = variances / max(variances.sum(), np.finfo(np.float64).tiny)
    ratio = 1 / max(np.square(shares).sum(), np.finfo(np.float64).tiny) if shares.any() else 0.0
    return {"participation_ratio": float(ratio), "variance": shares.tolist()}


def domain_mixing(embeddings: Embeddings, *, seed: int) -> dict[str, dict[str, float] | float]:
    """Computes how far the space separates domains; {} for a single one.

    Returns "own_neighbors", for each domain the share of its own items among the ten nearest of all, divided by their
    share among all other items, and "domain_accuracy", of `domain_accuracy`: 1 and 1 / domains if the domain of an item
    does not matter.
    """
    filled = {domain: own for domain, own in embeddings.items() if len(own[0]) > 1}
    if len(filled) < 2:
        return {}
    shares = neighbor_shares(filled, seed=seed)
    others = sum(len(own) for own, _ in filled.values()) - 1
    own = {domain: shares[domain][domain] * others / (len(filled[domain][0]) - 1) for domain in filled}
    return {"own_neighbors": own, "domain_accuracy": domain_accuracy(filled)}


def neighbor_shares(embeddings: Embeddings, *, seed: int) -> dict[str, dict[str, float]]:
    """Computes which domains the nearest items of each domain's items belong to, among the items of all domains.

    Returns {"page": {"page": 0.4, "video": 0.3, "live": 0.3}, …}, means over random items. "all" has the shares of the
    domains among all items, which is what to expect if the domain did not matter.
    """
    rng = np.random.default_rng(seed)
    vectors = np.concatenate([own for own, _ in embeddings.values()])
    sizes = np.array([len(own) for own, _ in embeddings.values()])
    starts, owners = np.cumsum(sizes) - sizes, np.repeat(np.arange(len(sizes)), sizes)

    def shares(owners: np.ndarray) -> dict[str, float]:
        counts = np.bincount(owners, minlength=len(sizes))
        return dict(zip(embeddings, (counts / max(counts.sum(), 1)).tolist(), strict=True))

    found = {}
    for domain, start, size in zip(embeddings, starts, sizes, strict=True):
        queries = start + rng.choice(size, min(QUERIES, size), replace=False)
        no_positives = [np.zeros(0, np.int64)] * len(queries)
        rows, _ = nearest_neighbors(vectors[queries], vectors, no_positives, k=NEIGHBORS, without=queries)
        found[domain] = shares(owners[rows].ravel())
    return found | {"all": shares(owners)}


def domain_accuracy(embeddings: Embeddings) -> float:
    """Computes the accuracy, balanced over domains, of a linear classifier of domains.

    Ridge regression to the domain, weighted so that all domains count the same, is fitted on the items of every second
    product and tested on the others, and the other way round.
    """
    products = np.concatenate([first_product(own) for _, own in embeddings.values()])
    vectors = np.concatenate([own for own, _ in embeddings.values()]).astype(np.float64)
    inputs = np.concatenate([vectors, np.ones((len(vectors), 1))], axis=1)
    owners = np.repeat(np.arange(len(embeddings)), [len(own) for own, _ in embeddings.values()])
    half = np.unique(products, return_inverse=True)[1] % 2 == 0
    recalls = [_recalls(inputs, owners, fitted) for fitted in (half, ~half)]
    return float(np.mean(np.concatenate(recalls))) if len(np.concatenate(recalls)) else 0.0


def _recalls(
    inputs: Float[np.ndarray, "N E"], owners: Int64[np.ndarray, " N"], fitted: Bool[np.ndarray, " N"]
) -> Float[np.ndarray, " D"]:
    """Fits a classifier on some items and returns the share of the others of each domain that it gets right."""
    weights = 1.0 / np.bincount(owners[fitted], minlength=owners.max() + 1).clip(1)[owners[fitted]]
    x, targets = inputs[fitted], np.eye(owners.max() + 1)[owners[fitted]]
    matrix = x.T @ (weights[:, None] * x) + RIDGE * np.eye(x.shape[1])
    guesses = (inputs[~fitted] @ np.linalg.solve(matrix, x.T @ (weights[:, None] * targets))).argmax(axis=-1)
    truth = owners[~fitted]
    return np.array([(guesses[truth == domain] == domain).mean() for domain in np.unique(truth)])
