"""Nearest neighbors compared with sorting the whole gallery in Python."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cope_jax.evaluation.metrics.ranks import nearest_negative_scores, nearest_neighbors


@st.composite
def problems(draw):
    """Small integers, so that scores are exact and often tie. Galleries may have one item, queries no positives."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    queries, gallery = (rng.integers(-2, 3, (draw(st.integers(1, 70)), 3)).astype(np.float32) for _ in range(2))
    return queries, gallery, [np.flatnonzero(rng.random(len(gallery)) < 0.3) for _ in queries]


@settings(deadline=None, max_examples=60)
@given(problem=problems(), k=st.integers(1, 6))
def test_neighbors_are_the_first_of_the_sorted_gallery(problem, k):
    queries, gallery, positives = problem
    rows, scores = nearest_neighbors(queries, gallery, positives, k=k)
    wrong = nearest_negative_scores(queries, gallery, positives)
    for i, query in enumerate(queries.tolist()):
        every = [sum(a * b for a, b in zip(query, item, strict=True)) for item in gallery.tolist()]
        order = sorted(range(len(every)), key=lambda row: (-every[row], row in positives[i], row))
        assert rows[i].tolist() == order[:k]
        assert scores[i].tolist() == [every[row] for row in order[:k]]
        others = [every[row] for row in order if row not in positives[i]]
        assert wrong[i] == others[0] if others else math.isnan(wrong[i])


def test_neighbors_within_a_domain_leave_out_the_query():
    items, queries = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32), np.array([2, 7])
    none = [np.zeros(0, np.int64)] * 2
    rows, _ = nearest_neighbors(items[queries], items, none, k=20, without=queries)
    for query, found in zip(queries.tolist(), rows.tolist(), strict=True):
        order = np.argsort(-(items.astype(np.float64) @ items[query].astype(np.float64)))
        assert found == [row for row in order.tolist() if row != query]
