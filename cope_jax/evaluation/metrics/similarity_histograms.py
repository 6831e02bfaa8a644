"""Histograms of the similarities of positive and negative pairs."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cope_jax.evaluation.metrics.nearest_neighbors import nearest_negative_scores
from cope_jax.evaluation.metrics.ranks import Ranks, pair_scores

BINS = 50
NEGATIVES = 100_000  # random pairs; the standard error of a bin's share is at most 0.0016
QUERIES = 500  # queries whose nearest negative is found


@dataclass(frozen=True)
class Histograms:
    """Similarities of the pairs of items of one direction, as shares of pairs per bin.

    Attributes:
        edges: Edges of the bins.
        positives: Shares of all pairs with a product in common.
        negatives: Shares of random pairs without one.
        nearest_wrong: Shares of some queries, paired with their nearest negative.
        overlap: Σ min(positives, negatives): 0 if a threshold separates the two, 1 if they are distributed alike.
    """

    edges: Float[np.ndarray, " edges"]
    positives: Float[np.ndarray, " bins"]
    negatives: Float[np.ndarray, " bins"]
    nearest_wrong: Float[np.ndarray, " bins"]
    overlap: float


def similarity_histograms(
    queries: Float[np.ndarray, "Q E"], gallery: Float[np.ndarray, "G E"], ranks: Ranks, *, seed: int
) -> Histograms:
    """Computes the histograms of one direction, with random pairs and queries drawn by `seed`."""
    rng = np.random.default_rng(seed)
    negatives = _random_negatives(queries, gallery, ranks, rng)
    chosen = np.flatnonzero(ranks.has_positive)
    chosen = np.sort(rng.choice(chosen, min(QUERIES, len(chosen)), replace=False))
    nearest = nearest_negative_scores(queries[chosen], gallery, [ranks.positives(query) for query in chosen.tolist()])
    samples = [ranks.scores, negatives, nearest[np.isfinite(nearest)]]
    every = np.concatenate(samples)
    edges = np.linspace(every.min(), every.max(), BINS + 1)
    positive, negative, wrong = (np.histogram(own, edges)[0] / max(len(own), 1) for own in samples)
    return Histograms(edges, positive, negative, wrong, float(np.minimum(positive, negative).sum()))


def _random_negatives(queries: np.ndarray, gallery: np.ndarray, ranks: Ranks, rng: np.random.Generator) -> np.ndarray:
    """Scores of up to NEGATIVES random pairs without a product in common."""
    rows, columns = rng.integers(len(queries), size=NEGATIVES), rng.integers(len(gallery), size=NEGATIVES)
    owners = np.repeat(np.arange(len(queries)), np.diff(ranks.offsets))
    positive = np.isin(rows * len(gallery) + columns, owners * len(gallery) + ranks.rows)
    return pair_scores(queries, gallery, rows[~positive], columns[~positive])
