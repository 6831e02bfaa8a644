"""FAISS indexes of a folder of embeddings, one for each domain, so that a filter by domain costs no recall.

An index folder holds page, video and live.faiss and `index.json`: what they were built from, and how often they find
what exact search finds. It appears whole or not at all.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from cope_jax.data.records import add_file
from cope_jax.domains import DOMAINS
from cope_jax.search.embedding_store import MANIFEST, check_rows, read_manifest, shards_of, vectors_at, vectors_of

FORMAT = "cope-jax index, version 1"
DESCRIPTION = "index.json"
KINDS = ("flat", "hnsw", "ivfpq")
FLAT_UP_TO = 200_000  # items; exact, 20 ms a query at 128 dimensions on one core
HNSW_UP_TO = 2_000_000  # 800 bytes an item at 128 dimensions, in memory; beyond, IVF-PQ takes 72
TOP, SAMPLE = 10, 256  # recall@10 is that of so many queries
PQ_ITEMS = 39 * 256  # faiss wants 39 items for each of the 256 centroids that a byte tells apart


@dataclass(frozen=True)
class Index:
    """What an index folder holds, opened."""

    description: Mapping[str, Any]
    domains: Mapping[str, faiss.Index]

    def search(self, vectors: np.ndarray, domain: str, top: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest items of a domain to each of f32[Q, E].

        Returns:
            Similarities f32[Q, top], best first, and rows i64[Q, top], −1 where the domain has fewer items.
        """
        return self.domains[domain].search(np.ascontiguousarray(vectors, np.float32), top)


def build_index(
    embeddings: Path, out: Path, *, kind: str | None = None, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Builds the index of a folder of embeddings; one that is there already is replaced.

    Args:
        embeddings: that `parquet.embed_to_parquet` wrote, finished.
        out: folder to write.
        kind: one of KINDS for all domains; None chooses for each by its number of items.
        report: gets a line for each domain.

    Returns:
        The description: {"kinds": {domain: kind}, "recall_at_10": {domain: …}, "sizes": {domain: …}, …}.

    Raises:
        FileNotFoundError: no such embeddings.
        ValueError: an unknown kind; too few items for IVF-PQ; embeddings that were not finished.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"unknown kind of index {kind!r}: choose one of {', '.join(KINDS)}")
    manifest = read_manifest(embeddings)
    sizes, width = manifest["items"], manifest["width"]
    kinds = {domain: kind or kind_for(sizes[domain]) for domain in DOMAINS}
    if small := [f"{sizes[d]} {d} items" for d in DOMAINS if kinds[d] == "ivfpq" and sizes[d] < PQ_ITEMS]:
        raise ValueError(
            f"an IVF-PQ index needs {PQ_ITEMS} items a domain, not {', '.join(small)}: choose flat or hnsw"
        )
    check_finished(embeddings, manifest)
    queries = sample(embeddings, sizes, SAMPLE)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        unfinished.chmod(0o755)  # mkdtemp makes it private
        recall = {}
        for domain in DOMAINS:
            index = filled(kinds[domain], embeddings, domain, sizes[domain], width)
            recall[domain] = recall_of(index, queries, embeddings, domain)
            faiss.write_index(index, str(unfinished / f"{domain}.faiss"))
            report(f"{domain}: {kinds[domain]} index of {sizes[domain]} items, recall@{TOP} {recall[domain]:.3f}")
        description = {
            "format": FORMAT,
            "embeddings": embeddings_fingerprint(embeddings),
            "kinds": kinds,
            "sizes": sizes,
            "width": width,
            f"recall_at_{TOP}": recall,
            "queries": len(queries),
        }
        (unfinished / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        for path in unfinished.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if out.exists():
            shutil.rmtree(out)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return description


def open_index(folder: Path, embeddings: Path) -> Index:
    """Opens an index folder.

    Raises:
        FileNotFoundError: no index there, or part of it.
        ValueError: it is of another format or of other embeddings, or a file of it is broken.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        raise FileNotFoundError(f"no {path}: build the index with `./run.sh search build`")
    description = json.loads(path.read_text(encoding="utf-8"))
    if description.get("format") != FORMAT:
        raise ValueError(f"{path} has the format {description.get('format')!r}, not {FORMAT!r}: build it again")
    if description["embeddings"] != embeddings_fingerprint(embeddings):
        raise ValueError(f"{folder} is the index of other embeddings than those in {embeddings}: build it again")
    return Index(description, {d: read_faiss(folder / f"{d}.faiss", description["sizes"][d]) for d in DOMAINS})


def read_faiss(path: Path, size: int) -> faiss.Index:
    """One domain's index of `size` items."""
    if not path.exists():
        raise FileNotFoundError(f"no {path}: build the index again")
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} is broken, build the index again: {error}") from error
    if index.ntotal != size:
        raise ValueError(f"{path} holds {index.ntotal} items instead of {size}: build the index again")
    return index


def kind_for(size: int) -> str:
    """The kind of index for so many items."""
    if size <= FLAT_UP_TO:
        return "flat"
    return "hnsw" if size <= HNSW_UP_TO else "ivfpq"


def empty(kind: str, size: int, width: int) -> faiss.Index:
    """An index of a kind for `size` items of `width` dimensions, by inner product."""
    if kind == "flat":
        return faiss.IndexFlatIP(width)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 100, 256
        return index
    lists = min(int(4 * math.sqrt(size)), size // 39)
    codes = max(m for m in range(1, width // 2 + 1) if width % m == 0)  # bytes an item: two dimensions each
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, lists, codes, 8, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = max(16, lists // 16)
    return index


def filled(kind: str, embeddings: Path, domain: str, size: int, width: int) -> faiss.Index:
    """The index of a domain's embeddings, trained on a sample of them where its kind learns."""
    index = empty(kind, size, width)
    if not index.is_trained:
        wanted = min(size, max(PQ_ITEMS, 64 * index.nlist))
        rows = np.sort(np.random.default_rng(0).choice(size, wanted, replace=False))
        index.train(vectors_at(embeddings, domain, rows))
    for _, vectors in vectors_of(embeddings, domain):
        index.add(vectors)
    return index


def check_finished(embeddings: Path, manifest: Mapping[str, Any]) -> None:
    """Raises a ValueError where a file of embeddings is missing or has lost rows."""
    shards = [
        s for domain in DOMAINS for s in shards_of(embeddings, domain, manifest["items"][domain], manifest["rows"])
    ]
    if missing := [str(shard.path.relative_to(embeddings)) for shard in shards if not shard.path.exists()]:
        raise ValueError(f"{embeddings} lacks {', '.join(missing[:10])}: finish embedding first")
    check_rows(shards)


def sample(embeddings: Path, sizes: Mapping[str, int], count: int) -> np.ndarray:
    """About `count` embeddings f32[Q, E], evenly from all domains: what is looked for comes from any."""
    share = -(-count // len(DOMAINS))
    rows = {domain: np.arange(min(share, sizes[domain])) * sizes[domain] // max(share, 1) for domain in DOMAINS}
    return np.concatenate([vectors_at(embeddings, domain, rows[domain]) for domain in DOMAINS])


def recall_of(index: faiss.Index, queries: np.ndarray, embeddings: Path, domain: str) -> float:
    """The share of the TOP nearest items, by exact search, that an index finds among its own TOP; 1 of no items."""
    top = min(TOP, index.ntotal)
    if not top or not len(queries):
        return 1.0
    found, (_, exact) = index.search(queries, top)[1], exact_search(queries, embeddings, domain, top)
    return float(np.mean([len(set(a) & set(b)) / top for a, b in zip(found.tolist(), exact.tolist(), strict=True)]))


def exact_search(queries: np.ndarray, embeddings: Path, domain: str, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The exact answer of `Index.search`, a file of embeddings after the other."""
    scores, rows = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    start = 0
    for _, vectors in vectors_of(embeddings, domain):
        more, places = faiss.knn(queries, vectors, min(top, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
        scores, rows = np.concatenate([scores, more], axis=1), np.concatenate([rows, places + start], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        start += len(vectors)
    return scores, rows


def embeddings_fingerprint(folder: Path) -> str:
    """Tells the embeddings of a folder from others, wherever it lies: hex digits."""
    digest = hashlib.sha256((folder / MANIFEST).read_bytes())
    for domain in DOMAINS:
        for path in sorted((folder / domain).glob("*.parquet")):
            add_file(digest, path, domain)
    return digest.hexdigest()[:16]
