"""Cross-domain few-shot classification: can a few items of one domain classify the items of another?"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from cope_jax.evaluation.metrics.retrieval import Embeddings, Metrics
from data_prep.common.domains import directions

MIN_EPISODES = 10  # fewer give a meaningless interval; enough if each episode has all products
ALL_SHOTS = (1, 5)  # support items per class if all products are classes
BLOCK = 1024  # queries compared at once

_Rows = Mapping[int, Sequence[int]]  # product → rows of its items


class TooFewProductsError(ValueError):
    """Fewer than two products have enough items."""


def few_shot_by_direction(embeddings: Embeddings, **options: int) -> tuple[dict[str, Metrics], dict[str, str]]:
    """Runs `few_shot` with these options for every ordered pair of domains: "p2v" learns from pages and asks videos.

    Returns:
        The metrics by direction, and for each direction with too few products the reason instead.
    """
    metrics, reasons = {}, {}
    for name, (source, target) in directions(embeddings).items():
        try:
            metrics[name] = few_shot(
                *embeddings[source], *embeddings[target], name=name, within=source == target, **options
            )
        except TooFewProductsError as error:
            reasons[name] = str(error).removeprefix(f"few-shot {name} ")
    return metrics, reasons


def few_shot_all_products(embeddings: Embeddings, *, queries: int, seed: int) -> dict[str, dict[str, Metrics | None]]:
    """Runs `few_shot` with all products as classes, for each number of shots in ALL_SHOTS.

    Returns {"1": {"p2v": …, …}, "5": …}, with None if fewer than two products have that many support items.
    """

    def accuracy(shots: int, name: str, source: str, target: str) -> Metrics | None:
        options = {"shots": shots, "queries": queries, "episodes": MIN_EPISODES, "seed": seed}
        ways = max(len(embeddings[source][0]), 2)  # at least as many as there are products
        try:
            return few_shot(
                *embeddings[source], *embeddings[target], name=name, within=source == target, ways=ways, **options
            )
        except TooFewProductsError:
            return None

    return {
        str(shots): {name: accuracy(shots, name, *direction) for name, direction in directions(embeddings).items()}
        for shots in ALL_SHOTS
    }


def few_shot(
    support: Float[np.ndarray, "S E"],
    support_products: Int[np.ndarray, "S M"],
    query: Float[np.ndarray, "Q E"],
    query_products: Int[np.ndarray, "Q N"],
    *,
    name: str,
    ways: int,
    shots: int,
    queries: int,
    episodes: int,
    seed: int,
    within: bool = False,
) -> Metrics:
    """Classifies queries N-way K-shot by the nearest class mean, over random episodes.

    An episode draws `ways` products that have at least `shots` support items and one query item. A class is
    represented by the mean of `shots` support embeddings, normalized again. Up to `queries` of its query items are
    assigned to the class with the largest dot product; a tie counts as wrong. Items that belong to two of the
    episode's classes are left out, and classes that would lack items because of that are not drawn together. With
    acc_e the share of correct queries in episode e of n,

        accuracy = mean_e acc_e,    ci95 = 1.96 · std_e(acc_e) / √n    (std with n - 1)

    Product ids are padded with -1. If there are fewer than `ways` products, all are used. Draws depend on `name`, the
    direction, on `seed`, and on the number of the episode. `within` says that support and queries are the same items;
    an item that represents its class is then not a query.

    Returns accuracy, ci95, ways (as drawn), shots, and episodes. Raises TooFewProductsError if there are fewer than two
    classes.
    """
    least = {"ways": (ways, 2), "shots": (shots, 1), "queries": (queries, 1), "episodes": (episodes, MIN_EPISODES)}
    for option, (value, minimum) in least.items():
        if value < minimum:
            raise ValueError(f"few-shot {name}: {option} is {value}, but must be at least {minimum}")
    support_rows, query_rows = _rows_by_product(support_products), _rows_by_product(query_products)
    sharing = _sharing_products(support_rows) | _sharing_products(query_rows)
    purpose = zlib.crc32(f"few_shot {name}".encode())
    generators = [np.random.default_rng([purpose, seed, episode]) for episode in range(episodes)]
    needed = shots + within
    drawn = [_draw_classes(rng, support_rows, query_rows, sharing, ways=ways, shots=needed) for rng in generators]
    ways = min(len(classes) for classes in drawn)
    if ways < 2:
        raise TooFewProductsError(
            f"few-shot {name} needs 2 products with a query item and {shots} support items (config.eval.shots), "
            f"found {ways}"
        )
    accuracies = []
    for rng, classes in zip(generators, drawn, strict=True):
        own_support, own_query = _own_rows(support_rows, classes[:ways]), _own_rows(query_rows, classes[:ways])
        examples = [rng.choice(own_support[product], shots, replace=False) for product in classes[:ways]]
        taken = set(np.concatenate(examples).tolist()) if within else ()
        asked = [
            rng.permutation([row for row in own_query[product] if row not in taken])[:queries]
            for product in classes[:ways]
        ]
        accuracies.append(_accuracy([support[rows] for rows in examples], [query[rows] for rows in asked]))
    return {
        "accuracy": float(np.mean(accuracies)),
        "ci95": float(1.96 * np.std(accuracies, ddof=1) / np.sqrt(episodes)),
        "ways": ways,
        "shots": shots,
        "episodes": episodes,
    }


def _rows_by_product(products: np.ndarray) -> _Rows:
    rows_of = defaultdict(list)
    for row, ids in enumerate(products.tolist()):
        for product in sorted(set(ids) - {-1}):
            rows_of[product].append(row)
    return rows_of


def _own_rows(rows_of: _Rows, classes: Sequence[int]) -> dict[int, list[int]]:
    """Rows of each class that belong to no other of the classes."""
    owners = Counter(row for product in classes for row in rows_of[product])
    return {product: [row for row in rows_of[product] if owners[row] == 1] for product in classes}


def _draw_classes(
    rng: np.random.Generator, support_rows: _Rows, query_rows: _Rows, sharing: Container[int], *, ways: int, shots: int
) -> list[int]:
    """Up to `ways` products in random order that leave each other enough items, as do the first n of them.

    Only products in `sharing` are checked for that: checking all of thousands of products would take hours.
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


def _sharing_products(rows_of: _Rows) -> set[int]:
    """Products that have an item in common with another product."""
    owners = Counter(row for rows in rows_of.values() for row in rows)
    return {product for product, rows in rows_of.items() if any(owners[row] > 1 for row in rows)}


def _accuracy(support: Sequence[Float[np.ndarray, "_ E"]], query: Sequence[Float[np.ndarray, "_ E"]]) -> float:
    """Share of queries nearest to their own class, given support and query embeddings of each class."""
    means = np.stack([rows.astype(np.float64).mean(axis=0) for rows in support])
    lengths = np.linalg.norm(means, axis=-1, keepdims=True)
    prototypes = means / np.maximum(lengths, np.finfo(np.float32).tiny)  # the mean of opposite items can be 0
    labels = np.repeat(np.arange(len(query)), [len(rows) for rows in query])
    queries, correct = np.concatenate(query), 0
    for start in range(0, len(queries), BLOCK):
        # Equal embeddings must tie. In a float32 product, the last bit may depend on the position in the block;
        # rounded from float64, it does not.
        scores = (queries[start : start + BLOCK].astype(np.float64) @ prototypes.T).astype(np.float32)
        own = np.take_along_axis(scores, labels[start : start + BLOCK, None], axis=-1)
        correct += ((scores >= own).sum(axis=-1) == 1).sum()
    return float(correct / len(queries))
