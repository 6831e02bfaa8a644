"""Queries of the gallery and their data."""

from types import SimpleNamespace

import numpy as np
import pytest

from cope_jax.data.records import Item
from cope_jax.evaluation.embed_items import Items
from cope_jax.evaluation.metrics.retrieval import direction_ranks
from cope_jax.evaluation.report import query_gallery
from data_prep.common.domains import DOMAINS, directions

SIZES = {"page": 40, "video": 50, "live": 45}


@pytest.fixture(scope="module")
def items():
    """Noise around the directions of eight products; row r of the records is at position r - 100."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(8, 16))
    made = {}
    for domain, size in SIZES.items():
        products = rng.integers(0, 8, size)
        vectors = centers[products] + 1.2 * rng.normal(size=(size, 16))
        vectors = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
        numbers = np.arange(size)
        made[domain] = Items(
            vectors, products[:, None], numbers + 100, numbers, np.ones(size, int), np.ones(size, bool)
        )
    return made


@pytest.fixture(scope="module")
def ranks(items):
    return direction_ranks({domain: (own.vectors, own.products) for domain, own in items.items()})


class Rows:
    """Records that remember which rows were read."""

    kind = "clip"

    def __init__(self, text: str = "text"):
        self.text, self.read = text, set()

    def __getitem__(self, row: int) -> Item:
        self.read.add(row)
        return Item(row - 100, self.text, (3, 2**60), ())


def records_of(text: str = "text"):
    return SimpleNamespace(items={domain: Rows(text) for domain in DOMAINS})


def by_brute_force(items, source, target, query):
    """Returns the rank, the five nearest items with scores, and the best positive, by sorting the whole gallery."""
    scores = items[target].vectors.astype(np.float64) @ items[source].vectors[query].astype(np.float64)
    right = items[target].products[:, 0] == items[source].products[query, 0]
    order = np.lexsort((right, -scores))
    rank = int(np.flatnonzero(right[order])[0]) + 1
    return rank, order[:5], scores[order[:5]], order[rank - 1], scores[order[rank - 1]]


def test_results_match_sorting(items, ranks):
    for results in query_gallery.choose_queries(items, ranks, seed=0).values():
        assert len({result.query for result in results}) == len(results) > 20
        for result in results:
            rank, hits, scores, best, best_score = by_brute_force(
                items, *directions(DOMAINS)[result.direction], result.query
            )
            assert (result.rank, result.best, result.neighbors.tolist()) == (rank, best, hits.tolist())
            np.testing.assert_allclose([*result.scores, result.best_score], [*scores, best_score], rtol=1e-12)
            source, target = directions(DOMAINS)[result.direction]
            expected = items[target].products[hits, 0] == items[source].products[result.query, 0]
            assert result.correct.tolist() == expected.tolist()
            assert result.confused == (rank > 1 and scores[0] - best_score < query_gallery.CLOSE)


def test_worst_misses_confusions_and_correct_queries_alternate(items, ranks, monkeypatch):
    monkeypatch.setattr(query_gallery, "CLOSE", 0.3)  # for enough confusions
    results = query_gallery.choose_queries(items, ranks, seed=0, per_outcome=3)["p2v"]
    every = [by_brute_force(items, "page", "video", query) for query in range(40) if ranks["p2v"].has_positive[query]]
    missed = sorted((found for found in every if found[0] > 1), key=lambda found: -found[0])
    assert [result.rank for result in results[::3]] == [rank for rank, *_ in missed[:3]]
    gaps = sorted(scores[0] - best for _, _, scores, _, best in missed[3:])[:3]
    assert [result.gap for result in results[1::3]] == pytest.approx(gaps)
    assert [result.rank for result in results[2::3]] == [1, 1, 1]


def test_each_item_is_included_once(items, ranks):
    results = query_gallery.choose_queries(items, ranks, seed=0, per_outcome=2)
    records = records_of()
    shown = query_gallery.gallery(results, items, records)
    assert len(shown["answers"]) == sum(map(len, results.values()))
    used = {key for answer in shown["answers"] for key in (answer["query"], answer["best"][0])}
    used |= {key for answer in shown["answers"] for key, _, _ in answer["hits"]}
    assert used == set(shown["items"])
    assert {f"{domain}-{row - 100}" for domain in DOMAINS for row in records.items[domain].read} == used
    key = next(key for key in used if key.startswith("live"))
    assert shown["items"][key] == {
        "domain": "live",
        "id": key.split("-")[1],
        "products": ["3", str(2**60)],
        "text": "text",
        "frames": [],
        "count": 0,
    }
    ranks_shown = [answer["rank"] for answer in shown["answers"]]
    assert ranks_shown == sorted(ranks_shown, reverse=True)


def test_directions_share_the_limit(items, ranks):
    results = query_gallery.choose_queries(items, ranks, seed=0)
    shown = query_gallery.gallery(results, items, records_of("长" * 1000), limit=150_000)
    assert all(len(item["text"]) == query_gallery.TEXT and item["text"][-1] == "…" for item in shown["items"].values())
    assert 120_000 < sum(len(item["text"]) * 6 for item in shown["items"].values()) < 150_000
    assert {answer["direction"] for answer in shown["answers"]} == set(results)
