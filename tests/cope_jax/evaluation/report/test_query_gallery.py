"""Which queries the gallery shows, and what of them."""

from types import SimpleNamespace

import numpy as np
import pytest

from cope_jax.data.records import Item
from cope_jax.domains import DOMAINS
from cope_jax.evaluation.embed_items import Items
from cope_jax.evaluation.metrics.retrieval import direction_ranks
from cope_jax.evaluation.report import query_gallery as gallery

SIZES = {"page": 40, "video": 50, "live": 45}


@pytest.fixture(scope="module")
def items():
    """Noise about eight products' directions; row r of the records is at place r − 100."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 16))
    made = {}
    for domain, size in SIZES.items():
        products = rng.integers(0, 8, size)
        vectors = centres[products] + 1.2 * rng.normal(size=(size, 16))
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

    def __init__(self, text: str = "text"):
        self.text, self.read = text, set()

    def __getitem__(self, row: int) -> Item:
        self.read.add(row)
        return Item(row - 100, self.text, (3, 2**60), ())


def records_of(text: str = "text"):
    return SimpleNamespace(items={domain: Rows(text) for domain in DOMAINS})


def by_brute_force(items, source, target, query):
    """Rank, five nearest and their scores, the best right item; by sorting the whole gallery."""
    scores = items[target].vectors.astype(np.float64) @ items[source].vectors[query].astype(np.float64)
    right = items[target].products[:, 0] == items[source].products[query, 0]
    order = np.lexsort((right, -scores))
    rank = int(np.flatnonzero(right[order])[0]) + 1
    return rank, order[:5], scores[order[:5]], order[rank - 1], scores[order[rank - 1]]


def test_answers_are_those_of_sorting(items, ranks):
    for answers in gallery.answers(items, ranks, seed=0).values():
        assert len({answer.query for answer in answers}) == len(answers) > 20
        for answer in answers:
            rank, hits, scores, best, best_score = by_brute_force(items, *answer.direction, answer.query)
            assert (answer.rank, answer.best, answer.hits.tolist()) == (rank, best, hits.tolist())
            np.testing.assert_allclose([*answer.scores, answer.best_score], [*scores, best_score], rtol=1e-12)
            source, target = answer.direction
            expected = items[target].products[hits, 0] == items[source].products[answer.query, 0]
            assert answer.right.tolist() == expected.tolist()
            assert answer.confused == (rank > 1 and scores[0] - best_score < gallery.CLOSE)


def test_worst_misses_confusions_and_right_ones_take_turns(items, ranks, monkeypatch):
    monkeypatch.setattr(gallery, "CLOSE", 0.3)  # so that there are enough confusions
    answers = gallery.answers(items, ranks, seed=0, of_each=3)["p2v"]
    every = [by_brute_force(items, "page", "video", query) for query in range(40) if ranks["p2v"].has_positive[query]]
    missed = sorted((found for found in every if found[0] > 1), key=lambda found: -found[0])
    assert [answer.rank for answer in answers[::3]] == [rank for rank, *_ in missed[:3]]
    gaps = sorted(scores[0] - best for _, _, scores, _, best in missed[3:])[:3]
    assert [answer.gap for answer in answers[1::3]] == pytest.approx(gaps)
    assert [answer.rank for answer in answers[2::3]] == [1, 1, 1]


def test_each_item_is_read_and_kept_once(items, ranks):
    answers = gallery.answers(items, ranks, seed=0, of_each=2)
    records = records_of()
    shown = gallery.gallery(answers, items, records)
    assert len(shown["answers"]) == sum(map(len, answers.values()))
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


def test_the_limit_holds_for_whatever_data_and_directions_share_it(items, ranks):
    answers = gallery.answers(items, ranks, seed=0)
    shown = gallery.gallery(answers, items, records_of("长" * 1000), limit=150_000)
    assert all(len(item["text"]) == gallery.TEXT and item["text"][-1] == "…" for item in shown["items"].values())
    assert 120_000 < sum(len(item["text"]) * 6 for item in shown["items"].values()) < 150_000
    assert {answer["direction"] for answer in shown["answers"]} == set(answers)
