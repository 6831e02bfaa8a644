"""Answers queries, an item or something of one's own, with the nearest items of some domains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cope_jax.data.records import Records, open_records
from cope_jax.data.thumbnails import Card, read_card
from cope_jax.domains import DOMAINS
from cope_jax.evaluation.evaluate_run import LATEST, step_number
from cope_jax.runs.config_file import load_config
from cope_jax.search.embedder import Embedder, Picture
from cope_jax.search.embedding_store import MANIFEST, ROWS, embed_to_parquet, read_manifest, vectors_at
from cope_jax.search.index import Index, build_index, open_index
from data_prep.common.text_table import text_table

MAX_TOP = 100  # an HNSW index looks at 256 candidates


@dataclass(frozen=True)
class Hit:
    """An item found: its card, its cosine similarity to the query and whether it shares a product with it."""

    card: Card
    score: float
    same_product: bool


@dataclass(frozen=True)
class Answer:
    """A query and the items found for it, best first.

    Attributes:
        query: its card; item_id is −1 where it is none of the records' items.
        searched: the domains of the hits.
        hits: the item that was asked for is not among them.
    """

    query: Card
    searched: tuple[str, ...]
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Library:
    """Embedded, indexed items, and the records that say what they are.

    Attributes:
        embeddings: folder of Parquet files.
        index: of them.
        records: of the same items.
        ids: of each domain the item ids i64[N], by row.
    """

    embeddings: Path
    index: Index
    records: Records
    ids: Mapping[str, np.ndarray]

    def by_item(self, domain: str, item_id: int, *, among: Sequence[str] = DOMAINS, top: int = 10) -> Answer:
        """The items nearest to one of the library's own.

        Args:
            domain, item_id: of the item.
            among: the domains to search.
            top: how many items to find.

        Raises:
            ValueError: no such item or domain; top is outside 1 … MAX_TOP.
        """
        check_domains([domain, *among])
        rows = np.flatnonzero(self.ids[domain] == item_id)
        if not len(rows):
            raise ValueError(f"no {domain} item {item_id} among {len(self.ids[domain])}")
        row = int(rows[0])
        vector = vectors_at(self.embeddings, domain, rows[:1])
        query = read_card(self.records, domain, row)
        return self.answer(query, vector, among, top, without=(domain, row))

    def by_own(
        self,
        embedder: Embedder,
        domain: str,
        pictures: Sequence[Picture],
        text: str,
        *,
        shown: Sequence[str] = (),
        among: Sequence[str] = DOMAINS,
        top: int = 10,
    ) -> Answer:
        """The items nearest to pictures, a text or both.

        Args:
            embedder: of the same step of the same run.
            domain: what the pictures and the text are taken for.
            pictures: in time order; a page has one.
            text: "" is none.
            shown: the pictures as data URIs, for the answer's card.
            among, top: as in `by_item`.

        Raises:
            ValueError: as `by_item`; more than one picture of a page; what `Embedder.embed` raises.
        """
        check_domains([domain, *among])
        if domain == "page" and len(pictures) > 1:
            raise ValueError(f"a page has one picture, not {len(pictures)}: choose video or live, or a single picture")
        vector = embedder.embed(domain, frames=[pictures], texts=[text])
        return self.answer(Card(domain, -1, (), text, tuple(shown), len(pictures)), vector, among, top)

    def answer(
        self, query: Card, vector: np.ndarray, among: Sequence[str], top: int, without: tuple[str, int] | None = None
    ) -> Answer:
        """The answer to an embedding f32[1, E]; `without` is the domain and row of an item to leave out."""
        if not 1 <= top <= MAX_TOP:
            raise ValueError(f"{top} items are asked for; it must be 1 to {MAX_TOP}")
        searched = tuple(domain for domain in DOMAINS if domain in among)
        found = []
        for domain in searched:
            scores, rows = self.index.search(vector, domain, top + 1)  # one more: the query itself may be among them
            pairs = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
            found += [(score, domain, row) for row, score in pairs if row >= 0 and (domain, row) != without]
        found.sort(key=lambda hit: -hit[0])
        hits = []
        for score, domain, row in found[:top]:
            card = read_card(self.records, domain, row)
            hits.append(Hit(card, score, bool(set(card.product_ids) & set(query.product_ids))))
        return Answer(query, searched, tuple(hits))

    def samples(self, each: int = 2) -> list[tuple[str, int]]:
        """Domain and id of some items of every domain, evenly from all rows."""
        return [
            (domain, int(ids[(2 * i + 1) * len(ids) // (2 * each)]))
            for domain, ids in self.ids.items()
            for i in range(min(each, len(ids)))
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
    """Opens the library of a run; what of embeddings and index is not there is made.

    Args:
        workdir: of the run.
        step, average: as of `evaluation.run.evaluate`.
        split: of the records, as of `open_records`; None is the one that the run is evaluated on.
        data_dir: of the records; None is the run's own.
        embeddings: folder that `embed` wrote, or to write; None is one below `eval/<step>` of the run.
        kind: of the index, if it is built: see `build_index`.
        rebuild: whether the index is built anew where there is one.
        report: gets what building tells.

    Raises:
        FileNotFoundError: no such work directory, checkpoint or array records.
        ValueError: embeddings or index of something else; what building raises.
    """
    config = load_config(workdir)
    split, number = split or config.data.eval_split, step_number(workdir, step, config)
    folder = embeddings or default_folder(workdir, number, split, average=average)
    # One that is there may be of another precision: it is what was asked for then.
    made = read_manifest(folder) if (folder / MANIFEST).exists() else {"dtype": "float32", "rows": ROWS}
    embed_to_parquet(
        workdir,
        folder,
        split=split,
        data_dir=data_dir,
        step=number,
        average=average,
        dtype=made["dtype"],
        rows=made["rows"],
    )
    if rebuild or not (folder / "index").exists():
        build_index(folder, folder / "index", kind=kind, report=report)
    records = open_records(data_dir or config.data.data_dir, split)
    return Library(folder, open_index(folder / "index", folder), records, {d: item_ids(folder, d) for d in DOMAINS})


def default_folder(workdir: Path, step: int, split: str, *, average: bool = False) -> Path:
    """Where a run keeps the embeddings of a split."""
    return workdir / "eval" / str(step) / f"{'average-' if average else ''}embeddings" / split


def item_ids(folder: Path, domain: str) -> np.ndarray:
    """The item ids of a domain's embeddings, i64[N], in row order."""
    columns = [
        pq.read_table(path, columns=["item_id"])["item_id"] for path in sorted((folder / domain).glob("*.parquet"))
    ]
    return np.concatenate([np.zeros(0, np.int64), *columns])


def others(domain: str) -> tuple[str, ...]:
    """The domains but one: a page is most like other pages, while what is looked for is mostly elsewhere."""
    return tuple(other for other in DOMAINS if other != domain)


def check_domains(domains: Sequence[str]) -> None:
    """Raises a ValueError that names the unknown ones among some domains."""
    if unknown := sorted(set(domains) - set(DOMAINS)):
        raise ValueError(f"unknown domain {', '.join(map(repr, unknown))}: choose among {', '.join(DOMAINS)}")


def answer_table(answer: Answer, *, width: int = 50) -> str:
    """An answer as text; texts are cut to `width` characters, without any that could steer a terminal."""
    rows = [["rank", "domain", "item", "products (= the query's)", "score", "text"]]
    for rank, hit in enumerate(answer.hits, 1):
        card = hit.card
        products = " ".join(map(str, card.product_ids)) + (" =" if hit.same_product else "")
        text = "".join(c if c.isprintable() else " " for c in card.text[:width])
        rows.append([str(rank), card.domain, str(card.item_id), products, f"{hit.score:.3f}", text])
    return text_table(rows, left=(0, 1, 5))
