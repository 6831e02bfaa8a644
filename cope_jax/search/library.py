"""Searches embedded and indexed items, by an item or by pictures and text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cope_jax.data.records import Records, open_records
from cope_jax.data.thumbnails import Card, read_card
from cope_jax.evaluation.results import LATEST, find_step, other_data
from cope_jax.runs.config_file import load_config
from cope_jax.search.embedder import Embedder, Picture
from cope_jax.search.embedding_store import MANIFEST, embed_to_parquet, read_item_ids, read_manifest, read_rows
from cope_jax.search.index import Index, build_index, open_index

MAX_TOP = 100  # an HNSW index considers 256 candidates


@dataclass(frozen=True)
class Hit:
    """An item found: its card, its cosine similarity to the query, and whether they share a product."""

    card: Card
    score: float
    same_product: bool


@dataclass(frozen=True)
class SearchResult:
    """A query and the items found for it, best first. The query's item_id is -1 if it is not from the records."""

    query: Card
    searched: tuple[str, ...]
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Library:
    """A folder of embeddings with its index, the records of the same items, and the item ids of each domain by row."""

    embeddings: Path
    index: Index
    records: Records
    ids: Mapping[str, np.ndarray]

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains of the items."""
        return tuple(self.ids)

    def other_domains(self, domain: str) -> tuple[str, ...]:
        """Returns all other domains: a page is most similar to other pages, but users mostly look in other domains."""
        return tuple(other for other in self.ids if other != domain) or self.domains

    def search_item(
        self, domain: str, item_id: int, *, among: Sequence[str] | None = None, top: int = 10
    ) -> SearchResult:
        """Finds the `top` items in the domains `among`, by default all, that are nearest to an item of the library.

        Raises ValueError if there is no such item or domain or `top` is not in 1 … MAX_TOP.
        """
        among = self._check_domains(domain, among)
        rows = np.flatnonzero(self.ids[domain] == item_id)
        if not len(rows):
            raise ValueError(f"no {domain} item {item_id} among {len(self.ids[domain])}")
        row = int(rows[0])
        vector = read_rows(self.embeddings, domain, rows[:1])
        return self._search(read_card(self.records, domain, row), vector, among, top, exclude=(domain, row))

    def search_own(
        self,
        embedder: Embedder,
        domain: str,
        pictures: Sequence[Picture],
        text: str,
        *,
        thumbnails: Sequence[str] = (),
        among: Sequence[str] | None = None,
        top: int = 10,
    ) -> SearchResult:
        """Finds the items nearest to your own pictures, text, or both, which are treated as an item of `domain`.

        Args:
            embedder: Model of the same step of the same run.
            domain: Domain of the query.
            pictures: Pictures in time order; one for a domain of images.
            text: Text, or "".
            thumbnails: The pictures as data URIs, for the card of the query.
            among: Domains to search; by default all.
            top: Number of items to find, 1 … MAX_TOP.
        """
        among = self._check_domains(domain, among)
        if len(pictures) > 1 and self.records.items[domain].kind == "image":
            clips = [name for name, items in self.records.items.items() if items.kind == "clip"]
            choice = f"choose {' or '.join(clips)}, or a single picture" if clips else "choose a single picture"
            raise ValueError(f"a {domain} has one picture, not {len(pictures)}: {choice}")
        vector = embedder.embed(domain, frames=[pictures], texts=[text])
        return self._search(Card(domain, -1, (), text, tuple(thumbnails), len(pictures)), vector, among, top)

    def _search(
        self, query: Card, vector: np.ndarray, among: Sequence[str], top: int, exclude: tuple[str, int] | None = None
    ) -> SearchResult:
        """Searches for an embedding float32[1, E]; `exclude` is the domain and row of the query itself."""
        if not 1 <= top <= MAX_TOP:
            raise ValueError(f"{top} items requested; it must be 1 to {MAX_TOP}")
        found = []
        for domain in among:
            scores, rows = self.index.search(vector, domain, top + 1)  # one more, as the query may be among them
            pairs = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
            found += [(score, domain, row) for row, score in pairs if row >= 0 and (domain, row) != exclude]
        found.sort(key=lambda hit: -hit[0])
        hits = []
        for score, domain, row in found[:top]:
            card = read_card(self.records, domain, row)
            hits.append(Hit(card, score, bool(set(card.product_ids) & set(query.product_ids))))
        return SearchResult(query, tuple(among), tuple(hits))

    def _check_domains(self, domain: str, among: Sequence[str] | None) -> tuple[str, ...]:
        """Returns the domains to search, in order; raises ValueError for unknown ones."""
        searched = self.domains if among is None else among
        if unknown := sorted({domain, *searched} - set(self.domains)):
            choices = ", ".join(self.domains)
            raise ValueError(f"unknown domain {', '.join(map(repr, unknown))}: choose among {choices}")
        return tuple(name for name in self.domains if name in searched)

    def samples(self, per_domain: int = 2) -> list[tuple[str, int]]:
        """Returns (domain, item id) of some items of every domain, evenly spaced."""
        return [
            (domain, int(ids[(2 * i + 1) * len(ids) // (2 * per_domain)]))
            for domain, ids in self.ids.items()
            for i in range(min(per_domain, len(ids)))
        ]


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
    embed_to_parquet(workdir, folder, split=split, data_dir=data_dir, step=number, average=average, **form)
    path = folder / "index"
    if not rebuild and path.exists():
        index = open_index(path, folder)
        rebuild = kind is not None and set(index.description["kinds"].values()) != {kind}
    if rebuild or not path.exists():
        build_index(folder, path, kind=kind, report=report)
    index = open_index(path, folder)
    records = open_records(data_dir or config.data.data_dir, split)
    return Library(folder, index, records, {domain: read_item_ids(folder, domain) for domain in records.items})
