"""Cross-domain few-shot classification: can a few items of one domain name the items of another?

Runs on the host in numpy: an episode is small.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence

import numpy as np

from cope_jax import domains

MIN_EPISODES = 10  # Fewer make a 95% interval that says nothing. Of episodes with every product they are enough.
ALL_SHOTS = (1, 5)  # support items of a class where every product is one
BLOCK = 1024  # queries compared at once

_Rows = Mapping[int, Sequence[int]]  # product → the rows of its items


class TooFewProducts(ValueError):
    """There are fewer than two classes to tell apart."""


def few_shot(
    support: np.ndarray,
    query: np.ndarray,
    support_products: np.ndarray,
    query_products: np.ndarray,
    *,
    name: str,
    ways: int,
    shots: int,
    queries: int,
    episodes: int,
    seed: int,
) -> dict[str, float | int]:
    """N-way K-shot classification of queries by the nearest class mean, over random episodes.

    An episode draws `ways` products that have at least `shots` support items and one query item. A class is
    represented by the mean of `shots` of its support embeddings, normalised again; up to `queries` of its
    query items go to the class with the largest dot product. A tie counts as wrong. Items that belong to two
    of the episode's classes are left out; classes that would lack items for that are not drawn together. With
    acc_e the share of queries that are right in episode e of n,

        accuracy = mean_e acc_e,    ci95 = 1.96 · std_e(acc_e) / √n    (std with n − 1)

    Args:
      support, query: f32[S, E] and f32[Q, E] embeddings of two domains.
      support_products, query_products: i32[S, M] and i32[Q, N] product ids, padded with -1.
      name: of the direction. It seeds the episodes, with `seed` and the number of the episode.
      ways, shots, queries, episodes: see above; with fewer products than `ways`, all there are.

    Returns:
      accuracy, ci95, and ways (as drawn), shots and episodes.

    Raises:
      ValueError: an option is out of range.
      TooFewProducts: a ValueError: there are fewer than two classes.
    """
    for option, value, least in (("ways", ways, 2), ("shots", shots, 1), ("queries", queries, 1)):
        if value < least:
            raise ValueError(f"few-shot {name}: {option} is {value}, but must be at least {least}")
    if episodes < MIN_EPISODES:
        raise ValueError(f"few-shot {name}: episodes is {episodes}, but must be at least {MIN_EPISODES}")
    support, query = np.asarray(support), np.asarray(query)
    support_rows, query_rows = _rows_by_product(support_products), _rows_by_product(query_products)
    generators = [
        np.random.default_rng([zlib.crc32(f"few_shot {name}".encode()), seed, episode]) for episode in range(episodes)
    ]
    sharing = _sharing(support_rows) | _sharing(query_rows)
    drawn = [_draw_classes(rng, support_rows, query_rows, sharing, ways=ways, shots=shots) for rng in generators]
    ways = min(len(classes) for classes in drawn)
    if ways < 2:
        raise TooFewProducts(
            f"few-shot {name}: needs 2 products with {shots} support items and a query item, found {ways}; "
            f"lower the number of shots or take more items"
        )
    accuracies = []
    for rng, classes in zip(generators, drawn, strict=True):
        own_support, own_query = (
            _own_rows(support_rows, classes[:ways]),
            _own_rows(query_rows, classes[:ways]),
        )
        picked = [rng.choice(own_support[product], shots, replace=False) for product in classes[:ways]]
        asked = [rng.permutation(own_query[product])[:queries] for product in classes[:ways]]
        accuracies.append(_accuracy([support[rows] for rows in picked], [query[rows] for rows in asked]))
    return {
        "accuracy": float(np.mean(accuracies)),
        "ci95": float(1.96 * np.std(accuracies, ddof=1) / np.sqrt(episodes)),
        "ways": ways,
        "shots": shots,
        "episodes": episodes,
    }


def every_product(
    embeddings: Mapping[str, tuple[np.ndarray, np.ndarray]], *, queries: int, seed: int
) -> dict[str, dict[str, dict[str, float | int] | None]]:
    """`few_shot` with all products as classes, for each of ALL_SHOTS.

    Args:
      embeddings, queries, seed: as for `six_directions`.

    Returns:
      The metrics by shots and direction, {"1": {"p2v": …, …}, "5": …}; None where fewer than two products have so many
      support items.
    """
    results = {str(shots): {} for shots in ALL_SHOTS}
    for shots in ALL_SHOTS:
        for source, target in domains.DIRECTIONS:
            (support, support_products), (query, query_products) = embeddings[source], embeddings[target]
            name = domains.direction_name(source, target)
            try:
                results[str(shots)][name] = few_shot(
                    support,
                    query,
                    support_products,
                    query_products,
                    name=name,
                    ways=max(len(support), 2),  # all there are: each needs an item of its own
                    shots=shots,
                    queries=queries,
                    episodes=MIN_EPISODES,
                    seed=seed,
                )
            except TooFewProducts:
                results[str(shots)][name] = None
    return results


def six_directions(
    embeddings: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    ways: int,
    shots: int,
    queries: int,
    episodes: int,
    seed: int,
) -> dict[str, dict[str, float | int]]:
    """`few_shot` for every ordered pair of domains.

    Args:
      embeddings: for each domain, all its items: f32[N, E] embeddings and i32[N, M] products padded with -1.
      ways, shots, queries, episodes, seed: as for `few_shot`.

    Returns:
      The metrics of each direction by name, support before query: "p2v" learns from pages, asks about videos.
    """
    results = {}
    for source, target in domains.DIRECTIONS:
        (support, support_products), (query, query_products) = embeddings[source], embeddings[target]
        name = domains.direction_name(source, target)
        results[name] = few_shot(
            support,
            query,
            support_products,
            query_products,
            name=name,
            ways=ways,
            shots=shots,
            queries=queries,
            episodes=episodes,
            seed=seed,
        )
    return results


def _rows_by_product(products: np.ndarray) -> _Rows:
    rows_of = defaultdict(list)
    for row, ids in enumerate(np.asarray(products).tolist()):
        for product in sorted(set(ids) - {-1}):
            rows_of[product].append(row)
    return rows_of


def _own_rows(rows_of: _Rows, classes: Sequence[int]) -> dict[int, list[int]]:
    """The rows of each class that no other of the classes has."""
    owners = Counter(row for product in classes for row in rows_of[product])
    return {product: [row for row in rows_of[product] if owners[row] == 1] for product in classes}


def _draw_classes(
    rng: np.random.Generator, support_rows: _Rows, query_rows: _Rows, sharing: Container[int], *, ways: int, shots: int
) -> list[int]:
    """Up to `ways` products in random order that leave each other enough items; so do the first n of them.

    Only those of `sharing` are looked at for that: among thousands of products, all would take hours.
    """
    eligible = [p for p in sorted(support_rows) if len(support_rows[p]) >= shots and len(query_rows.get(p, ())) >= 1]
    classes, entangled = [], []
    for product in rng.permutation(np.array(eligible, np.int64)).tolist():
        if len(classes) == ways:
            break
        if product in sharing:
            tried = [*entangled, product]
            enough_support = all(len(rows) >= shots for rows in _own_rows(support_rows, tried).values())
            if not (enough_support and all(_own_rows(query_rows, tried).values())):
                continue
            entangled = tried
        classes.append(product)
    return classes


def _sharing(rows_of: _Rows) -> set[int]:
    """The products that have an item in common with another one."""
    owners = Counter(row for rows in rows_of.values() for row in rows)
    return {product for product, rows in rows_of.items() if any(owners[row] > 1 for row in rows)}


def _accuracy(support: Sequence[np.ndarray], query: Sequence[np.ndarray]) -> float:
    """Share of queries nearest to their own class, given support f32[K, E] and queries f32[q, E] of each."""
    means = np.stack([rows.astype(np.float64).mean(axis=0) for rows in support])
    lengths = np.linalg.norm(means, axis=-1, keepdims=True)
    prototypes = means / np.maximum(lengths, np.finfo(np.float32).tiny)  # Opposite items can have mean 0.
    labels = np.repeat(np.arange(len(query)), [len(rows) for rows in query])
    queries, right = np.concatenate(query), 0
    for start in range(0, len(queries), BLOCK):
        scores = _similarity(queries[start : start + BLOCK], prototypes)
        own = np.take_along_axis(scores, labels[start : start + BLOCK, None], axis=-1)
        right += ((scores >= own).sum(axis=-1) == 1).sum()
    return float(right / len(queries))


def _similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot products f32[A, B] of the rows of a [A, E] and b [B, E], rounded from float64.

    A float32 product may differ in the last bit with a row's place in the block, so that equal embeddings
    would not tie. Rounding from float64 makes a score depend on its two rows alone.
    """
    return (np.asarray(a, np.float64) @ np.asarray(b, np.float64).T).astype(np.float32)
