"""Searches embedded and indexed items, by an item or by pictures and text.

A search is by vectors (`dense`), by the words of texts (`words`), or by both: `hybrid` takes the mean of the scores of
an item in both results, each scaled to 0 … 1.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cope_jax.data.records import Records, open_records
from cope_jax.data.thumbnails import SHOWN, Card, read_card
from cope_jax.evaluation.results import LATEST, ResultFiles, find_step, other_data
from cope_jax.runs.config_file import load_config
from cope_jax.search.embedder import Embedder, Picture
from cope_jax.search.embedding_store import (
    MANIFEST,
    embed_to_parquet,
    read_manifest,
    read_rows,
)
from cope_jax.search.index import FOLDER, Index, build_index, open_index
from cope_jax.search.item_table import ItemTable, open_item_table, split_words
from cope_jax.search.moments import read_moment

MAX_TOP = 100  # an HNSW index considers 256 candidates
MODES = ("hybrid", "dense", "words")
# Weight of words in hybrid search, and what is added for a text of n words, divided by n: a few words are meant as they
# are, but long texts share many words by chance. The first is chosen on half of the demo's products; on the others, R@1
# of texts was 0.65 with it, 0.57 with reciprocal ranks, and 0.60 without words. Later losses of the demo narrowed this
# to 0.70 with and 0.68 without words.
LONG_TEXT, SHORT_TEXT = 0.3, 2.0
Found = list[tuple[float, str, int]]  # score, domain and row, best first


@dataclass(frozen=True)
class Hit:
    """An item found: its card, its score, and whether it shares a product with the query.

    The score is a cosine similarity (dense), a BM25 score (words) or a weighted mean of both, scaled (hybrid).
    """

    card: Card
    score: float
    same_product: bool


@dataclass(frozen=True)
class SearchResult:
    """A query and the items found for it, best first; of segments of a recording that overlap, only the best.

    `similar` is False if all are less similar than the limits of the library, and no word of the query was found.
    """

    query: Card
    searched: tuple[str, ...]
    hits: tuple[Hit, ...]
    mode: str = "dense"
    similar: bool = True


@dataclass(frozen=True)
class Library:
    """A folder of embeddings with its index, the records of the same items, and the item ids of each domain by row.

    `limits` has the similarities that 95% of right answers reach, by the domain of the query ("page", or "page.text"
    for a text alone) and of the answer; see `similarity_limits`.
    """

    embeddings: Path
    index: Index
    records: Records
    ids: Mapping[str, np.ndarray]
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains of the items."""
        return tuple(self.ids)

    @functools.cached_property
    def table(self) -> ItemTable:
        """The texts and columns of the items, which are read from the records if they are needed for the first time."""
        return open_item_table(self.embeddings / "items", self.records)

    def other_domains(self, domain: str) -> tuple[str, ...]:
        """Returns all other domains: a page is most similar to other pages, but users mostly look in other domains."""
        return tuple(other for other in self.ids if other != domain) or self.domains

    def search_item(
        self,
        domain: str,
        item_id: int | str,
        *,
        among: Sequence[str] | None = None,
        top: int = 10,
        where: str = "",
        group: bool = False,
        frames: int = SHOWN,
    ) -> SearchResult:
        """Finds the `top` items in the domains `among`, by default all, that are nearest to an item of the library.

        `where` is a filter, see `ItemTable.select`. A number may be given as text. With `group`, only the best item of
        each product is found. Cards have at most `frames` frames.

        Raises ValueError if there is no such item or domain or `top` is not in 1 … MAX_TOP.
        """
        among = self._check_domains(domain, among)
        row = self.row(domain, item_id)
        vector = read_rows(self.embeddings, domain, np.array([row]))
        found = self._nearest(vector, among, MAX_TOP, self._masks(among, where))  # the query itself may be among them
        found = [hit for hit in found if hit[1:] != (domain, row)]
        query = read_card(self.records, domain, row, frames=frames)
        return self._result(query, among, found, top, frames, group=group, similar=self._similar(domain, found))

    def row(self, domain: str, item_id: int | str) -> int:
        """Returns the row of an item; raises ValueError if there is none."""
        ids = self.ids[domain]
        rows = np.flatnonzero((ids if ids.dtype == object else ids.astype(str)) == str(item_id))
        if not len(rows):
            raise ValueError(f"no {domain} item {item_id} among {len(ids)}")
        return int(rows[0])

    def search_own(
        self,
        embedder: Embedder | None,
        domain: str,
        pictures: Sequence[Picture],
        text: str,
        *,
        thumbnails: Sequence[str] = (),
        among: Sequence[str] | None = None,
        top: int = 10,
        mode: str | None = None,
        where: str = "",
        group: bool = False,
        frames: int = SHOWN,
    ) -> SearchResult:
        """Finds the items nearest to your own pictures, text, or both, which are treated as an item of `domain`.

        Args:
            embedder: Model of the same step of the same run; not needed to search by words.
            domain: Domain of the query.
            pictures: Pictures in time order; one for a domain of images.
            text: Text, or "".
            thumbnails: The pictures as data URIs, for the card of the query.
            among: Domains to search; by default all.
            top: Number of items to find, 1 … MAX_TOP.
            mode: One of MODES; by default hybrid for a text, dense with pictures.
            where: Filter, see `ItemTable.select`.
            group: Find only the best item of each product.
            frames: Largest number of frames on the cards of the items.
        """
        among = self._check_domains(domain, among)
        if len(pictures) > 1 and self.records.items[domain].kind == "image":
            clips = [name for name, items in self.records.items.items() if items.kind == "clip"]
            choice = f"choose {' or '.join(clips)}, or a single picture" if clips else "choose a single picture"
            raise ValueError(f"a {domain} has one picture, not {len(pictures)}: {choice}")
        mode, masks, found = mode or ("dense" if pictures else "hybrid"), self._masks(among, where), []
        if mode not in MODES or (mode != "dense" and not text):
            raise ValueError(
                f"mode is {mode!r}: choose one of {', '.join(MODES)}; without a text, only dense is possible"
            )
        if mode != "words":
            assert embedder is not None
            vector = embedder.embed(domain, frames=[pictures], texts=[text])
            found.append(self._nearest(vector, among, MAX_TOP, masks))
        if mode != "dense":
            matches = [
                (score, name, row)
                for name in among
                for score, row in self.table.match(name, text, MAX_TOP, masks.get(name))
            ]
            found.insert(0, sorted(matches, key=lambda hit: -hit[0])[:MAX_TOP])  # first of equal ranks, for ids
        query = Card(domain, None, (), text, tuple(thumbnails), len(pictures))
        best = fuse(found[0], found[1], word_weight(text)) if mode == "hybrid" else found[0]
        by_words = mode != "dense" and bool(found[0])
        similar = by_words or self._similar(domain if pictures else f"{domain}.text", found[-1])
        return self._result(query, among, best, top, frames, mode=mode, group=group, similar=similar)

    def title(self, card: Card) -> str:
        """Returns the title of an item, or its text, or those of another item of its product; "" if none has any."""
        own = card.columns.get("title") or card.text
        return own or next(filter(None, map(self.table.product_title, card.product_ids)), "")

    def _similar(self, query: str, found: Found) -> bool:
        """Returns whether an item reaches its limit of similarity; also True without a limit."""
        limits = self.limits.get(query, {})
        return not found or any(score >= limits.get(domain, -1) for score, domain, _ in found)

    def _masks(self, among: Sequence[str], where: str) -> dict[str, np.ndarray]:
        return {domain: self.table.select(domain, where) for domain in among} if where.strip() else {}

    def _nearest(self, vector: np.ndarray, among: Sequence[str], top: int, masks: Mapping[str, np.ndarray]) -> Found:
        """Finds the items nearest to an embedding float32[1, E]."""
        found = []
        for domain in among:
            scores, rows = self.index.search(vector, domain, top, masks.get(domain))
            pairs = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
            found += [(score, domain, row) for row, score in pairs if row >= 0]
        return sorted(found, key=lambda hit: -hit[0])[:top]

    def _result(
        self,
        query: Card,
        among: Sequence[str],
        found: Found,
        top: int,
        frames: int,
        *,
        group: bool,
        similar: bool,
        mode: str = "dense",
    ) -> SearchResult:
        if not 1 <= top <= MAX_TOP:
            raise ValueError(f"{top} items requested; it must be 1 to {MAX_TOP}")
        hits, moments, products = [], [read_moment(query.columns)], set()
        for score, domain, row in found:
            if len(hits) == top:
                break
            moment = read_moment(self.records.items[domain][row].columns)
            if moment and any(shown and moment.overlaps(shown) for shown in moments):
                continue
            card = read_card(self.records, domain, row, frames=frames)
            if group and products.intersection(card.product_ids):
                continue
            products.update(card.product_ids)
            hits.append(Hit(card, score, bool(set(card.product_ids) & set(query.product_ids))))
            moments.append(moment)
        return SearchResult(query, tuple(among), tuple(hits), mode, similar)

    def _check_domains(self, domain: str, among: Sequence[str] | None) -> tuple[str, ...]:
        """Returns the domains to search, in order; raises ValueError for unknown ones."""
        searched = self.domains if among is None else among
        if unknown := sorted({domain, *searched} - set(self.domains)):
            choices = ", ".join(self.domains)
            raise ValueError(f"unknown domain {', '.join(map(repr, unknown))}: choose among {choices}")
        return tuple(name for name in self.domains if name in searched)

    def recorded_domains(self) -> tuple[str, ...]:
        """Returns the domains whose items are segments of recordings, as the first of each shows."""
        items = {name: own for name, own in self.records.items.items() if len(own)}
        return tuple(name for name, own in items.items() if (moment := read_moment(own[0].columns)) and moment.span)

    def samples(self, per_domain: int = 2) -> list[tuple[str, int | str]]:
        """Returns (domain, item id) of some items of every domain, evenly spaced."""
        return [
            (domain, ids.tolist()[(2 * i + 1) * len(ids) // (2 * per_domain)])
            for domain, ids in self.ids.items()
            for i in range(min(per_domain, len(ids)))
        ]


def fuse(words: Found, dense: Found, weight: float) -> Found:
    """Returns the items of both results, best first, with the mean of their scores; those of words have a weight.

    Scores of words are relative to the best; similarities are scaled so that the last one is 0 and the best is 1,
    because those of a weak model may all be close, or negative. Unlike ranks, scores show whether words distinguish
    the items.
    """
    scores: dict[tuple[str, int], float] = defaultdict(float)
    for found, factor, zero in ((words, weight, 0.0), (dense, 1.0, dense[-1][0] if len(dense) > 1 else 0.0)):
        for score, domain, row in found:
            scores[domain, row] += factor / (1 + weight) * (score - zero) / max(abs(found[0][0] - zero), 1e-9)
    return sorted(((score, *place) for place, score in scores.items()), key=lambda hit: -hit[0])


def word_weight(text: str) -> float:
    """Returns the weight of words in the hybrid search for a text."""
    return LONG_TEXT + SHORT_TEXT / max(len(set(split_words(text))), 1)


def open_library(
    workdir: Path,
    *,
    step: int | str = LATEST,
    average: bool = False,
    split: str | None = None,
    data_dir: Path | None = None,
    embeddings: Path | None = None,
    kind: str | None = None,
    rebuild: bool = False,
    report: Callable[[str], None] = print,
) -> Library:
    """Opens the library of a run. Embeddings and index are created if they do not exist.

    Args:
        workdir: Work directory of the run.
        step: Step of the checkpoint, "latest", or "best".
        average: Use the moving average of the parameters.
        split: Split of the records; by default, the one that the run is evaluated on.
        data_dir: Array records to use instead of those in the run's config.
        embeddings: Folder of embeddings to read or write; by default, one in `eval/<step>` of the run.
        kind: Kind of the index, see `build_index`. An existing index of another kind is built again.
        rebuild: Build the index even if it exists.
        report: Called with each line of progress.
    """
    config = load_config(workdir)
    split, number = split or config.data.eval_split, find_step(workdir, step, config)
    results = workdir / "eval" / str(number) / other_data(config, data_dir, split)
    folder = embeddings or results / f"{'average-' if average else ''}embeddings" / split
    # Existing embeddings may have another precision or shard size than the defaults.
    stored = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    form = {key: stored[key] for key in ("dtype", "rows") if key in stored}
    form["dims"] = stored.get("width")
    form["update"] = embeddings is None  # to other records of the same name
    embed_to_parquet(workdir, folder, split=split, data_dir=data_dir, step=number, average=average, **form)
    path = folder / FOLDER
    if not rebuild and path.exists():
        index = open_index(path, folder)
        rebuild = kind is not None and set(index.description["kinds"].values()) != {kind}
    if rebuild or not path.exists():
        build_index(folder, path, kind=kind, report=report)
    index = open_index(path, folder)
    records = open_records(data_dir or config.data.data_dir, split)
    metrics = ResultFiles(workdir / "eval" / str(number), average=average).read() or {}  # of the run's own data
    # Shortened and binary embeddings have other similarities.
    whole = index.description["width"] == config.model.embedding and read_manifest(folder).get("dtype") != "binary"
    limits = metrics.get("similarity_limits", {}) if whole else {}
    return Library(folder, index, records, index.ids, limits)
