"""Outcomes of queries, compared with sorting whole galleries."""

import numpy as np
import pytest

from cope_jax.evaluation.embed_items import Items
from cope_jax.evaluation.metrics import retrieval
from cope_jax.evaluation.metrics.retrieval import direction_ranks, similarity_limits
from cope_jax.evaluation.query_outcomes import query_outcomes, read_outcomes, same_queries, write_outcomes
from data_prep.common.domains import directions


@pytest.fixture(scope="module")
def items():
    """Items of seven products; row r of the records is at position r / 2, and some products have no page."""
    rng, made = np.random.default_rng(1), {}
    centers = rng.normal(size=(7, 6))
    for domain, size in {"page": 23, "video": 31}.items():
        products = rng.integers(1 if domain == "page" else 0, 7, (size, 1))
        vectors = centers[products[:, 0]] + 1.5 * rng.normal(size=(size, 6))
        vectors = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
        rows = 2 * np.arange(size)
        made[domain] = Items(vectors, products, rows, rows, np.ones(size, int), rows % 3 > 0)
    return made


def test_outcomes_match_sorting(items, tmp_path):
    ranks = direction_ranks({domain: (own.vectors, own.products) for domain, own in items.items()})
    found = query_outcomes(items, ranks)
    assert len(found["v2p"].query) < 31
    for name, (source, target) in directions(items).items():
        own, gallery = found[name], items[target]
        for i, row in enumerate(own.query.tolist()):
            scores = gallery.vectors.astype(np.float64) @ items[source].vectors[row // 2].astype(np.float64)
            right = gallery.products[:, 0] == items[source].products[row // 2, 0]
            order = np.argsort(-scores)
            assert own.product[i] == items[source].products[row // 2, 0]
            assert own.nearest[i] == 2 * order[0]
            assert own.nearest_product[i] == gallery.products[order[0], 0]
            assert own.rank[i] == np.flatnonzero(right[order])[0] + 1
            assert own.best[i] == 2 * order[own.rank[i] - 1]
            assert own.chance[i] == pytest.approx(right.mean())
            assert own.has_text[i] == (row % 3 > 0)
        assert own.metrics.mean(axis=0)[:2] == pytest.approx([(own.rank == 1).mean(), (own.rank <= 5).mean()])
    write_outcomes(found, tmp_path / "queries.parquet")
    read = read_outcomes(tmp_path / "queries.parquet")
    assert same_queries(found, read)
    for name, own in found.items():
        for column, values in vars(own).items():
            np.testing.assert_array_equal(vars(read[name])[column], values)
    write_outcomes({}, tmp_path / "none.parquet")
    assert read_outcomes(tmp_path / "none.parquet") == read_outcomes(tmp_path / "missing.parquet") == {}


def test_items_of_a_single_domain_do_not_find_themselves(items):
    page = items["page"]
    (found,) = query_outcomes({"page": page}, direction_ranks({"page": (page.vectors, page.products)})).values()
    scores = page.vectors.astype(np.float64) @ page.vectors.T.astype(np.float64)
    np.fill_diagonal(scores, -np.inf)
    assert (found.rank > 1).any()
    assert found.nearest.tolist() == (2 * scores.argmax(axis=1)[found.query // 2]).tolist()


def test_limits_of_similarities_match_sorting(items, monkeypatch):
    """Half of the videos have no vector, as if they had no text."""
    texts = items["video"].vectors * (np.arange(31) % 2)[:, None]
    embeddings = {domain: (own.vectors, own.products) for domain, own in items.items()}
    queries = {"page": ("page", items["page"].vectors), "video.text": ("video", texts)}
    assert similarity_limits(queries, embeddings, seed=0) == {}  # too few right items
    monkeypatch.setattr(retrieval, "MIN_RIGHT", 2)
    found = similarity_limits(queries, embeddings, seed=0)
    for name, (source, vectors) in queries.items():
        for target, (gallery, products) in embeddings.items():
            right = []
            for row in np.flatnonzero(vectors.any(axis=1)):
                scores = gallery.astype(np.float64) @ vectors[row].astype(np.float64)
                if source == target:
                    scores[row] = -np.inf
                if products[scores.argmax()] == items[source].products[row]:
                    right.append(scores.max())
            assert found[name][target] == pytest.approx(np.quantile(right, 0.05))
