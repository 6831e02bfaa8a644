"""Where a model fails: products whose items find others first, and pairs of products that it confuses."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from cope_jax.data.records import Records
from cope_jax.data.thumbnails import read_card
from cope_jax.evaluation.query_outcomes import Outcomes
from cope_jax.evaluation.report.query_gallery import TEXT, shorten
from data_prep.common.domains import directions

ROWS = 30  # of each table
SIDE = 64  # pixels of a picture
SHOWN = 2  # queries of each product and pair that the gallery shows, if there is room
Place = tuple[str, int]  # domain, or direction, and row of an item


@dataclass
class _Queries:
    """Queries of a product: their number, those with a wrong first item, the products of these items, and examples."""

    count: int = 0
    missed: int = 0
    found: Counter[int] = field(default_factory=Counter)
    examples: list[Place] = field(default_factory=list)  # direction and row of SHOWN with a wrong first item


@dataclass
class Failures:
    """Misses of all directions, by product and by pair of products."""

    products: dict[int, _Queries]
    pairs: Counter[tuple[int, int]]  # pair of products in ascending order → number of misses
    examples: dict[tuple[int, int], list[Place]]  # direction and row of the query of SHOWN of each pair
    items: dict[int, Place]  # an item of each product

    def worst_products(self) -> list[int]:
        """Returns the products with the most misses, at most ROWS."""
        missed = [product for product, own in self.products.items() if own.missed]
        order = sorted(missed, key=lambda p: (-self.products[p].missed, self.products[p].count, p))
        return order[:ROWS]

    def worst_pairs(self) -> list[tuple[int, int]]:
        """Returns the most confused pairs, at most ROWS."""
        return sorted(self.pairs, key=lambda pair: (-self.pairs[pair], pair))[:ROWS]

    def wanted_queries(self) -> dict[str, list[int]]:
        """Returns rows of queries that show the worst products and pairs, by direction."""
        wanted = defaultdict(list)
        examples = [self.products[product].examples for product in self.worst_products()]
        for direction, row in chain(*examples, *(self.examples[pair] for pair in self.worst_pairs())):
            wanted[direction].append(row)
        return dict(wanted)


def find_failures(outcomes: Mapping[str, Outcomes], domains: Mapping[str, object]) -> Failures:
    """Collects the misses of all directions."""
    failures = Failures(defaultdict(_Queries), Counter(), defaultdict(list), {})
    for name, own in outcomes.items():  # from the first domain that has one, such as pages
        for query, product in zip(own.query.tolist(), own.product.tolist(), strict=True):
            failures.items.setdefault(product, (directions(domains)[name][0], query))
    for name, own in outcomes.items():
        target = directions(domains)[name][1]
        columns = (own.query, own.product, own.rank, own.nearest, own.nearest_product)
        for query, product, rank, nearest, other in zip(*(column.tolist() for column in columns), strict=True):
            queries = failures.products[product]
            queries.count += 1
            if rank == 1 or other < 0:
                continue
            failures.items.setdefault(other, (target, nearest))
            queries.missed += 1
            queries.found[other] += 1
            pair = min(product, other), max(product, other)
            failures.pairs[pair] += 1
            for examples in (queries.examples, failures.examples[pair]):
                examples += [(name, query)] if len(examples) < SHOWN else []
    return failures


def failure_tables(failures: Failures, records: Records) -> dict[str, Any]:
    """Returns the rows of both tables, with an id, a title and a picture of each product."""
    cards: dict[int, dict[str, Any]] = {}

    def card(product: int) -> dict[str, Any]:
        if product not in cards:
            cards[product] = _product_card(records, product, failures.items[product])
        return cards[product]

    products, pairs = failures.worst_products(), failures.worst_pairs()
    return {
        "worst_products": [
            {
                "card": card(product),
                "queries": own.count,
                "missed": own.missed,
                "other": card(own.found.most_common(1)[0][0]),
                "times": own.found.most_common(1)[0][1],
            }
            for product in products
            for own in [failures.products[product]]
        ],
        "pairs": [{"cards": [card(a), card(b)], "count": failures.pairs[a, b]} for a, b in pairs],
        "missed_products": sum(own.missed > 0 for own in failures.products.values()),
        "confused_pairs": len(failures.pairs),
    }


def _product_card(records: Records, product: int, place: Place) -> dict[str, Any]:
    domain, row = place
    card = read_card(records, domain, row, frames=1, side=SIDE)
    ids = dict(zip(records.items[domain][row].product_ids, card.product_ids, strict=False))  # both in the same order
    text = str(card.columns.get("title") or card.text)
    return {"id": str(ids.get(product, product)), "text": shorten(text, TEXT // 3), "frames": card.frames}


def missing_text(outcomes: Mapping[str, Outcomes]) -> list[tuple[str, int, float]]:
    """Returns ("with" or "without", queries, R@1) of the queries of all directions; [] if all or none have texts."""
    has_text = np.concatenate([np.zeros(0, bool), *(own.has_text for own in outcomes.values())])
    right = np.concatenate([np.zeros(0, bool), *(own.rank == 1 for own in outcomes.values())])
    if has_text.all() or not has_text.any():
        return []
    parts = (("with", has_text), ("without", ~has_text))
    return [(name, int(mask.sum()), float(right[mask].mean())) for name, mask in parts]
