"""Metrics of the embedding space compared with loops, closed forms and constructed spaces."""

from collections import Counter

import numpy as np
import pytest

from cope_jax.evaluation.metrics import embedding_space as space
from data_prep.common.domains import DOMAINS


@pytest.fixture(scope="module")
def embeddings():
    """20, 23 and 26 items of 9 products in 12 dimensions; items of a domain are closer to each other than to others."""
    rng = np.random.default_rng(0)
    centers, made = rng.normal(size=(9, 12)), {}
    for number, domain in enumerate(DOMAINS):
        products = rng.integers(0, 9, 20 + 3 * number)
        vectors = centers[products] + rng.normal(size=(len(products), 12)) + 3 * np.eye(12)[number]
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        made[domain] = vectors.astype(np.float32), products[:, None]
    return made


def mean_r1(embeddings, queries):
    """Mean over the six directions of R@1, one query at a time."""
    shares = []
    for source in embeddings:
        for target in embeddings:
            gallery, gallery_products = embeddings[target]
            products = embeddings[source][1][:, 0]
            found = [
                gallery_products[np.argmax(gallery @ query), 0] == product
                for query, product in zip(queries[source], products, strict=True)
                if query.any() and product in gallery_products
            ]
            shares += [] if source == target else [np.mean(found)]
    return np.mean(shares)


def test_masked_queries_are_ranked_in_the_usual_galleries(embeddings):
    rng = np.random.default_rng(1)
    queries = {domain: rng.normal(size=own.shape) for domain, (own, _) in embeddings.items()}
    queries["video"][4:9] = 0
    found = space.masked_retrieval(queries, embeddings)
    assert found["mean_r1"] == pytest.approx(mean_r1(embeddings, queries))
    assert found["v2p"]["queries"] + found["v2p"]["left_out"] == 18
    items, products = embeddings["page"]
    best = np.where(np.eye(len(items), dtype=bool), -np.inf, queries["page"] @ items.T).argmax(axis=-1)
    found = space.masked_retrieval({"page": queries["page"]}, {"page": embeddings["page"]})  # the other pages
    others = (products == products.T).sum(axis=-1) > 1
    assert found["mean_r1"] == pytest.approx((products[best] == products)[others].mean())


def test_texts_find_items_of_each_domain_but_their_own(embeddings):
    rng = np.random.default_rng(2)
    texts = {domain: own + rng.normal(size=own.shape) / 4 for domain, (own, _) in embeddings.items()}
    texts["video"][3:20] = 0  # without text
    ranks, products = space.text_ranks(texts, embeddings | {"empty": (np.zeros((0, 12)), np.zeros((0, 2), np.int32))})
    for target, (gallery, owners) in embeddings.items():
        best = []
        for source, queries in texts.items():
            for row in np.flatnonzero(queries.any(axis=-1)):
                right = owners[:, 0] == embeddings[source][1][row, 0]
                allowed = np.arange(len(gallery)) != (row if source == target else -1)
                scores = gallery @ queries[row]
                if (right & allowed).any():
                    best.append(1 + np.count_nonzero(allowed & ~right & (scores > scores[right & allowed].max())))
        assert ranks[target].best.tolist() == best
        assert ranks[target].gallery == len(gallery)
        assert len(products[target]) == len(ranks[target].has_positive) == 69 - 17
    assert set(ranks) == set(embeddings)


def test_prefixes_are_normalized_and_end_with_the_whole_embedding(embeddings):
    found = space.prefix_retrieval(embeddings)
    assert list(found) == ["8", "12"]
    for size in (8, 12):
        short = {domain: (own[:, :size], products) for domain, (own, products) in embeddings.items()}
        short = {domain: (v / np.linalg.norm(v, axis=-1, keepdims=True), p) for domain, (v, p) in short.items()}
        queries = {domain: own for domain, (own, _) in short.items()}
        assert found[str(size)]["mean_r1"] == pytest.approx(mean_r1(short, queries))


def test_participation_ratio_counts_dimensions_of_equal_variance():
    corners = np.eye(6)[:4].repeat(2, axis=0)  # four corners of a tetrahedron in three dimensions
    no_products = np.zeros((8, 1), int)
    found = space.spectrum({"page": (corners[:3], no_products[:3]), "video": (corners[3:], no_products[3:])})
    assert found["participation_ratio"] == pytest.approx(3)
    assert found["variance"] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0, 0])
    assert space.spectrum({"page": (corners[:1], no_products[:1])})["participation_ratio"] == 0


def test_neighbors_are_counted_without_the_item_itself(embeddings):
    shares = space.neighbor_shares(embeddings, seed=0)
    every = [(domain, vector) for domain in DOMAINS for vector in embeddings[domain][0].astype(np.float64)]
    for domain in DOMAINS:
        counted = Counter()
        for i, (own, vector) in enumerate(every):
            if own == domain:
                others = [(float(vector @ other), whose) for j, (whose, other) in enumerate(every) if j != i]
                counted.update(whose for _, whose in sorted(others, reverse=True)[:10])
        expected = {other: counted[other] / counted.total() for other in DOMAINS}
        assert shares[domain] == pytest.approx(expected)
    assert shares["all"] == pytest.approx({"page": 20 / 69, "video": 23 / 69, "live": 26 / 69})
    ratios = space.domain_mixing(embeddings, seed=0)["own_neighbors"]
    assert ratios["live"] == pytest.approx(shares["live"]["live"] / (25 / 68))


def test_domain_accuracy_is_1_for_separate_domains_and_chance_for_mixed_ones():
    rng = np.random.default_rng(2)
    products = np.arange(400)[:, None] // 2
    mixed = {domain: (rng.normal(size=(400, 5)), products) for domain in DOMAINS}
    separate = {domain: (own + 9 * np.eye(5)[i], products) for i, (domain, (own, _)) in enumerate(mixed.items())}
    assert space.domain_accuracy(separate) == 1
    assert space.domain_accuracy(mixed) == pytest.approx(1 / 3, abs=0.06)
    uneven = {**mixed, "page": (mixed["page"][0][:40], products[:40])}  # a guess of the larger domains does not help
    assert space.domain_accuracy(uneven) == pytest.approx(1 / 3, abs=0.08)
    assert space.domain_mixing({"page": mixed["page"]}, seed=0) == {}
