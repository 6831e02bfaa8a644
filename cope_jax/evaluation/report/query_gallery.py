"""Example queries with their results: the worst misses, near misses, and correct ones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeVar

import numpy as np

from cope_jax.data.records import Records
from cope_jax.data.thumbnails import read_card
from cope_jax.evaluation.embed_items import Items
from cope_jax.evaluation.metrics.ranks import Ranks, nearest_neighbors
from data_prep.common.domains import directions

RESULTS = 5  # items shown per query
PER_OUTCOME = 20  # worst misses, confusions, and correct queries shown per direction
CANDIDATES = 2000  # misses per direction that are searched for confusions
CLOSE = 0.02  # a miss is a confusion if the wrong item's score exceeds the right one's by less than this
SIDE = 96  # pixels of a picture
FRAMES = 3  # frames of a query; other items show only the middle one
TEXT = 300  # characters shown of a text
MAX_BYTES = 7_500_000  # of pictures and texts; leaves room for the rest of a 10 MB page
T = TypeVar("T")


@dataclass(frozen=True)
class QueryResult:
    """A query and the items found for it. Items are positions in `Items`."""

    direction: str
    query: int
    rank: int  # of the best positive
    neighbors: np.ndarray  # nearest gallery items, best first
    scores: np.ndarray
    correct: np.ndarray  # whether each neighbor is a positive
    best: int  # the best positive
    best_score: float

    @property
    def gap(self) -> float:
        """Score of the nearest item minus that of the best positive."""
        return float(self.scores[0] - self.best_score)

    @property
    def confused(self) -> bool:
        """Whether the nearest item is wrong, but hardly nearer than the best positive."""
        return self.rank > 1 and self.gap < CLOSE


def choose_queries(
    items: Mapping[str, Items],
    ranks: Mapping[str, Ranks],
    *,
    seed: int,
    per_outcome: int = PER_OUTCOME,
    wanted: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, list[QueryResult]]:
    """Chooses up to `per_outcome` worst misses, confusions, and random correct queries of each direction, in turns.

    Queries `wanted`, given by their rows in the records, are chosen as well.
    """
    chosen = {}
    for name, own in ranks.items():
        queries, best = np.flatnonzero(own.has_positive), own.best
        order = np.argsort(-best, kind="stable")  # worst first
        missed, correct = queries[order[best[order] > 1]], queries[best == 1]
        worst = search(items, own, name, missed[:per_outcome])
        near = search(items, own, name, missed[per_outcome:][-CANDIDATES:])
        confused = sorted((result for result in near if result.confused), key=lambda result: result.gap)[:per_outcome]
        drawn = np.random.default_rng(seed).choice(correct, min(per_outcome, len(correct)), replace=False)
        rows = np.unique(np.array((wanted or {}).get(name, []), np.int64))
        more = np.searchsorted(items[directions(items)[name][0]].rows, rows)
        more = np.setdiff1d(more, [result.query for result in (*worst, *confused)])
        chosen[name] = interleave(worst, confused, search(items, own, name, more), search(items, own, name, drawn))
    return chosen


def interleave(*lists: Sequence[T]) -> list[T]:
    """Returns the elements of lists in turns."""
    return [result for turn in zip_longest(*lists) for result in turn if result is not None]


def search(items: Mapping[str, Items], ranks: Ranks, direction: str, queries: np.ndarray) -> list[QueryResult]:
    """Finds the nearest items of queries that have positives."""
    source, target = directions(items)[direction]
    positives = [ranks.positives(query) for query in queries.tolist()]
    without = queries if source == target else None
    vectors = items[source].vectors[queries], items[target].vectors
    neighbors, scores = nearest_neighbors(*vectors, positives, k=RESULTS, without=without)
    starts = ranks.offsets[queries]
    return [
        QueryResult(
            direction=direction,
            query=int(query),
            rank=int(ranks.ranks[start]),
            neighbors=found,
            scores=score,
            correct=np.isin(found, own),
            best=int(ranks.rows[start]),
            best_score=float(ranks.scores[start]),
        )
        for query, start, own, found, score in zip(queries, starts, positives, neighbors, scores, strict=True)
    ]


def gallery(
    chosen: Mapping[str, Sequence[QueryResult]], items: Mapping[str, Items], records: Records, *, limit: int = MAX_BYTES
) -> dict[str, Any]:
    """Returns the data of the page's script: queries with their results, and texts and pictures of all items in them.

    Directions alternate until texts and pictures have `limit` bytes. Only the records of items shown are read.

    Returns:
        {"answers": [{"direction", "query", "rank", "gap", "confused", "hits": [[item, score, correct], …],
        "best": [item, score]}, …], the worst first; "items": {"page-12": {"domain", "id", "products", "text", "frames",
        "count"}, …}}. Queries, hits, and best refer to keys of items.
    """
    cards: dict[str, dict[str, Any]] = {}
    shown, size = [], 0
    for result in interleave(*chosen.values()):
        more = _cards(result, items, records, known=cards)
        size += sum(_size(card) - _size(cards.get(key)) for key, card in more.items())
        if size > limit:
            break
        cards |= more
        shown.append(result)
    shown.sort(key=lambda result: (-result.rank, result.gap))
    return {"answers": [_to_json(result, items) for result in shown], "items": cards}


def item_key(domain: str, position: int) -> str:
    """Returns the key of an item in the page's data."""
    return f"{domain}-{position}"


def _cards(
    result: QueryResult, items: Mapping[str, Items], records: Records, *, known: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Cards of the items of a result that are not known, or known with fewer frames."""
    source, target = directions(items)[result.direction]
    wanted = {item_key(target, position): (target, position, 1) for position in (*result.neighbors, result.best)}
    wanted = {key: value for key, value in wanted.items() if key not in known}
    query = item_key(source, result.query)
    if query not in known or len(known[query]["frames"]) < min(FRAMES, known[query]["count"]):
        wanted[query] = (source, result.query, FRAMES)
    return {key: _card(records, items, *value) for key, value in wanted.items()}


def _card(records: Records, items: Mapping[str, Items], domain: str, position: int, frames: int) -> dict[str, Any]:
    card = read_card(records, domain, int(items[domain].rows[position]), frames=frames, side=SIDE)
    return {
        "domain": domain,
        "id": str(card.item_id),  # JavaScript would round numbers above 2⁵³
        "products": list(map(str, card.product_ids)),
        "text": shorten(card.text, TEXT),
        "frames": list(card.frames),
        "count": card.frame_count,
    }


def shorten(text: str, length: int) -> str:
    """Returns at most `length` characters of a text."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _size(card: Mapping[str, Any] | None) -> int:
    """Bytes of a card in the page; a character of a text can take six."""
    return 150 + 6 * len(card["text"]) + sum(map(len, card["frames"])) if card else 0


def _to_json(result: QueryResult, domains: Iterable[str]) -> dict[str, Any]:
    source, target = directions(domains)[result.direction]
    found = zip(result.neighbors.tolist(), result.scores.tolist(), result.correct.tolist(), strict=True)
    return {
        "direction": result.direction,
        "query": item_key(source, result.query),
        "rank": result.rank,
        "gap": round(result.gap, 4),
        "confused": result.confused,
        "hits": [[item_key(target, position), round(score, 4), correct] for position, score, correct in found],
        "best": [item_key(target, result.best), round(result.best_score, 4)],
    }
