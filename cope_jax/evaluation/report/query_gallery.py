"""Queries with what they found, to look at: the worst misses, those that were nearly right, some that were right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from cope_jax.data.records import Records
from cope_jax.data.thumbnails import read_card
from cope_jax.domains import DIRECTIONS, direction_name
from cope_jax.evaluation.embed_items import Items
from cope_jax.evaluation.metrics.nearest_neighbors import nearest_neighbors
from cope_jax.evaluation.metrics.ranks import Ranks

HITS = 5
OF_EACH = 20  # worst misses, confusions and right ones shown of each direction
CANDIDATES = 2000  # misses of each direction among which confusions are looked for
CLOSE = 0.02  # a wrong item nearer than the right one by less than this is a confusion
SIDE = 96  # pixels of a picture
FRAMES = 3  # of a query; other items show the one in the middle
TEXT = 300  # characters shown of a text
BYTES = 7_500_000  # of all pictures and texts, which leaves room for the rest of a page of 10 MB


@dataclass(frozen=True)
class Answer:
    """A query and what it found; items are given by their places.

    Attributes:
      direction: its source and target.
      query: in the source domain.
      rank: of the best item of its product.
      hits, scores: the nearest items of the target domain, best first, i64[k] and f64[k].
      right: bool[k], which of them share a product with the query.
      best, best_score: the best item of its product.
    """

    direction: tuple[str, str]
    query: int
    rank: int
    hits: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    best: int
    best_score: float

    @property
    def gap(self) -> float:
        """How much nearer the first hit is than the best item of the query's product; 0 where it is that one."""
        return float(self.scores[0] - self.best_score)

    @property
    def confused(self) -> bool:
        """Whether the first hit is wrong, but hardly nearer than the right item."""
        return self.rank > 1 and self.gap < CLOSE


def answers(
    items: Mapping[str, Items], ranks: Mapping[str, Ranks], *, seed: int, of_each: int = OF_EACH
) -> dict[str, list[Answer]]:
    """Of each direction some queries, worst misses, confusions and right ones in turns.

    Args:
      items: of each domain.
      ranks: of each direction.
      seed: which of the right ones are shown.
      of_each: at most so many of each kind.
    """
    return {
        direction_name(*direction): _chosen(items, ranks[direction_name(*direction)], direction, seed, of_each)
        for direction in DIRECTIONS
    }


def _chosen(
    items: Mapping[str, Items], ranks: Ranks, direction: tuple[str, str], seed: int, of_each: int
) -> list[Answer]:
    asked, first = np.flatnonzero(ranks.has_positive), ranks.best
    order = np.argsort(-first, kind="stable")  # worst first
    missed, right = asked[order[first[order] > 1]], asked[first == 1]
    worst = answered(items, ranks, direction, missed[:of_each])
    near = answered(items, ranks, direction, missed[of_each:][-CANDIDATES:])
    confused = sorted((answer for answer in near if answer.confused), key=lambda answer: answer.gap)[:of_each]
    drawn = np.random.default_rng(seed).choice(right, min(of_each, len(right)), replace=False)
    turns = zip_longest(worst, confused, answered(items, ranks, direction, drawn))
    return [answer for turn in turns for answer in turn if answer is not None]


def answered(
    items: Mapping[str, Items], ranks: Ranks, direction: tuple[str, str], queries: Sequence[int]
) -> list[Answer]:
    """What some queries of a direction, which have positives, found."""
    source, target = direction
    positives = [ranks.positives(query) for query in queries]
    hits, scores = nearest_neighbors(items[source].vectors[queries], items[target].vectors, positives, k=HITS)
    starts = ranks.offsets[queries]
    return [
        Answer(
            direction=direction,
            query=int(query),
            rank=int(ranks.ranks[start]),
            hits=found,
            scores=score,
            right=np.isin(found, own),
            best=int(ranks.rows[start]),
            best_score=float(ranks.scores[start]),
        )
        for query, start, own, found, score in zip(queries, starts, positives, hits, scores, strict=True)
    ]


def gallery(
    chosen: Mapping[str, Sequence[Answer]], items: Mapping[str, Items], records: Records, *, limit: int = BYTES
) -> dict[str, Any]:
    """The answers as the page's script takes them, with texts and pictures of all items in them, each item once.

    Args:
      chosen: from `answers`; directions take turns until `limit` is reached.
      items: of each domain.
      records: that the items are of; only those of the answers are read.
      limit: bytes of texts and pictures.

    Returns:
      {"answers": [{"direction", "query", "rank", "gap", "confused", "hits": [[item, score, right], …],
      "best": [item, score]}, …], the worst first; "items": {"page-12": {"domain", "id", "products", "text", "frames",
      "count"}, …}}. Queries, hits and best are keys of items.
    """
    cards: dict[str, dict[str, Any]] = {}
    taken, size = [], 0
    for answer in (answer for turn in zip_longest(*chosen.values()) for answer in turn if answer is not None):
        more = _cards(answer, items, records, known=cards)
        size += sum(_size(card) - _size(cards.get(key)) for key, card in more.items())
        if size > limit:
            break
        cards |= more
        taken.append(answer)
    taken.sort(key=lambda answer: (-answer.rank, answer.gap))
    return {"answers": [_plain(answer) for answer in taken], "items": cards}


def item_key(domain: str, place: int) -> str:
    """What an item is called in the page."""
    return f"{domain}-{place}"


def _cards(
    answer: Answer, items: Mapping[str, Items], records: Records, *, known: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Cards of the items of an answer that are not known, or known with fewer frames."""
    source, target = answer.direction
    wanted = {item_key(target, place): (target, place, 1) for place in (*answer.hits.tolist(), answer.best)}
    wanted = {key: value for key, value in wanted.items() if key not in known}
    query = item_key(source, answer.query)
    if query not in known or len(known[query]["frames"]) < min(FRAMES, known[query]["count"]):
        wanted[query] = (source, answer.query, FRAMES)
    return {key: _card(records, items, *value) for key, value in wanted.items()}


def _card(records: Records, items: Mapping[str, Items], domain: str, place: int, frames: int) -> dict[str, Any]:
    card = read_card(records, domain, int(items[domain].rows[place]), frames=frames, side=SIDE)
    return {
        "domain": domain,
        "id": str(card.item_id),  # a script would round one above 2⁵³
        "products": list(map(str, card.product_ids)),
        "text": shortened(card.text, TEXT),
        "frames": list(card.frames),
        "count": card.frame_count,
    }


def shortened(text: str, length: int) -> str:
    """At most `length` characters of a text."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _size(card: Mapping[str, Any] | None) -> int:
    """Bytes of a card in the page; a character of a text can take six."""
    return 150 + 6 * len(card["text"]) + sum(map(len, card["frames"])) if card else 0


def _plain(answer: Answer) -> dict[str, Any]:
    source, target = answer.direction
    found = zip(answer.hits.tolist(), answer.scores.tolist(), answer.right.tolist(), strict=True)
    return {
        "direction": direction_name(source, target),
        "query": item_key(source, answer.query),
        "rank": answer.rank,
        "gap": round(answer.gap, 4),
        "confused": answer.confused,
        "hits": [[item_key(target, place), round(score, 4), right] for place, score, right in found],
        "best": [item_key(target, answer.best), round(answer.best_score, 4)],
    }
