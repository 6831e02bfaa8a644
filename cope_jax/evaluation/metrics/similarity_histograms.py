"""How alike items of one product are, and how alike others: what a threshold on the similarity could tell apart."""

from dataclasses import dataclass

import numpy as np

from cope_jax.evaluation.metrics.nearest_neighbors import nearest_wrong
from cope_jax.evaluation.metrics.positive_pairs import pair_scores
from cope_jax.evaluation.metrics.ranks import Ranks

BINS = 50
NEGATIVES = 100_000  # pairs drawn: a bin's share is off by 0.0003 at most times
ASKED = 500  # queries whose nearest wrong item is looked for


@dataclass(frozen=True)
class Histograms:
    """Similarities of one direction's pairs of items, as shares of each kind that fall in each bin.

    Attributes:
      edges: f64[BINS + 1].
      positives: f64[BINS], of all pairs that share a product.
      negatives: f64[BINS], of random pairs that share none.
      nearest_wrong: f64[BINS], of some queries with the nearest item that shares none.
      overlap: Σ min(positives, negatives): 0 where some threshold parts them, 1 where nothing does.
    """

    edges: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    nearest_wrong: np.ndarray
    overlap: float


def histograms(queries: np.ndarray, gallery: np.ndarray, ranks: Ranks, *, seed: int) -> Histograms:
    """The histograms of a direction.

    Args:
      queries, gallery: f32[Q, E] and f32[G, E] embeddings of length 1.
      ranks: of the direction.
      seed: of the pairs and queries that are drawn.
    """
    rng = np.random.default_rng(seed)
    negatives = random_negatives(queries, gallery, ranks, rng)
    asked = np.flatnonzero(ranks.asked)
    asked = np.sort(rng.choice(asked, min(ASKED, len(asked)), replace=False))
    wrong = nearest_wrong(queries[asked], gallery, [ranks.positives(query) for query in asked])
    kinds = [ranks.scores, negatives, wrong[np.isfinite(wrong)]]
    every = np.concatenate(kinds)
    edges = np.linspace(every.min(), every.max(), BINS + 1)
    positives, negatives, wrong = (_shares(kind, edges) for kind in kinds)
    return Histograms(edges, positives, negatives, wrong, float(np.minimum(positives, negatives).sum()))


def random_negatives(queries: np.ndarray, gallery: np.ndarray, ranks: Ranks, rng: np.random.Generator) -> np.ndarray:
    """Scores f64[n] of random pairs, n ≤ NEGATIVES, without those that share a product."""
    rows, columns = rng.integers(len(queries), size=NEGATIVES), rng.integers(len(gallery), size=NEGATIVES)
    owners = np.repeat(np.arange(len(queries)), np.diff(ranks.offsets))
    positive = np.isin(rows * len(gallery) + columns, owners * len(gallery) + ranks.rows)
    return pair_scores(queries, gallery, rows[~positive], columns[~positive])


def _shares(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(scores, edges)[0] / max(len(scores), 1)
