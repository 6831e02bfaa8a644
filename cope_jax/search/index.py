"""FAISS indexes of a folder of embeddings, one per domain, so that a filter by domain costs no recall.

An index folder has page.faiss, video.faiss, live.faiss, and `index.json`, which records what they were built from and
their recall. It is written atomically.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from cope_jax.data.records import add_file
from cope_jax.search.embedding_store import MANIFEST, check_shards, list_shards, read_manifest, read_rows, read_vectors
from data_prep.common.files import atomic_folder, read_json

FORMAT = "cope-jax index, version 1"
DESCRIPTION = "index.json"
FILE_TYPES = {"flat": b"IxFI", "hnsw": b"IHNf", "ivfpq": b"IwPQ"}  # kinds of indexes, and how their files begin
KINDS = tuple(FILE_TYPES)
FLAT_LIMIT = 200_000  # items; exact search takes 20 ms per query at 128 dimensions on one core
HNSW_LIMIT = 2_000_000  # items; 800 bytes of memory per item at 128 dimensions, IVF-PQ takes 72
TOP, QUERIES = 10, 256  # recall@10 is measured with this many queries
PQ_ITEMS = 39 * 256  # faiss wants 39 items for each of the 256 centroids of a byte


@dataclass(frozen=True)
class Index:
    """An opened index folder."""

    description: Mapping[str, Any]
    domains: Mapping[str, faiss.Index]

    def search(
        self, vectors: np.ndarray, domain: str, top: int, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest items of a domain to each of float32[Q, E], among those where bool[N] is true.

        Returns similarities float32[Q, top], best first, and rows int64[Q, top], -1 if the domain has fewer items.
        """
        index, params = self.domains[domain], None
        if mask is not None:
            library: Any = faiss  # its types lack the arguments by name
            allowed = library.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
            params = library.SearchParameters(sel=allowed)
            if isinstance(index, faiss.IndexHNSW):
                params = library.SearchParametersHNSW(sel=allowed, efSearch=index.hnsw.efSearch)
            elif isinstance(index, faiss.IndexIVF):
                params = library.SearchParametersIVF(sel=allowed, nprobe=index.nprobe)
        return index.search(np.ascontiguousarray(vectors, np.float32), top, params=params)


def build_index(
    embeddings: Path, out: Path, *, kind: str | None = None, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Builds the index of a complete folder of embeddings, or replaces it.

    Args:
        embeddings: Folder from `embed_to_parquet`.
        out: Folder to write.
        kind: One of KINDS for all domains; by default chosen for each domain by its number of items.
        report: Called with a line for each domain.

    Returns:
        The description: {"kinds": {domain: kind}, "recall_at_10": {domain: …}, "sizes": {domain: …}, …}.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"unknown kind of index {kind!r}: choose one of {', '.join(KINDS)}")
    manifest = read_manifest(embeddings)
    sizes, width = manifest["items"], manifest["width"]
    kinds = {domain: kind or default_kind(sizes[domain]) for domain in sizes}
    if small := [f"{sizes[d]} {d} items" for d in sizes if kinds[d] == "ivfpq" and sizes[d] < PQ_ITEMS]:
        raise ValueError(
            f"an IVF-PQ index needs {PQ_ITEMS} items per domain, not {', '.join(small)}: choose flat or hnsw"
        )
    check_shards(list_shards(embeddings, manifest))
    queries = _sample_queries(embeddings, sizes)
    recall = {}
    with atomic_folder(out, replace=True) as folder:
        for domain in sizes:
            index = _build_domain(kinds[domain], embeddings, domain, sizes[domain], width)
            recall[domain] = _measure_recall(index, queries, embeddings, domain)
            faiss.write_index(index, str(folder / f"{domain}.faiss"))
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
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    return description


def open_index(folder: Path, embeddings: Path) -> Index:
    """Opens an index folder. Raises ValueError if it has another format or other embeddings, or is invalid."""
    path = folder / DESCRIPTION
    if not path.exists():
        raise FileNotFoundError(f"no {path}: build the index with `./run.sh search build`")
    description = read_json(path, remedy="build the index again")
    if (found := description.get("format")) != FORMAT:
        raise ValueError(f"{path} has the format {found!r}, not {FORMAT!r}: build it again")
    if description.get("embeddings") != embeddings_fingerprint(embeddings):
        raise ValueError(f"{folder} is the index of other embeddings than those in {embeddings}: build it again")
    try:
        domains = read_manifest(embeddings)["items"]
        parts = {domain: (description["kinds"][domain], int(description["sizes"][domain])) for domain in domains}
        width = int(description["width"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} does not describe an index, build it again: {error!r}") from error
    indexes = {domain: _read_faiss(folder / f"{domain}.faiss", *parts[domain], width) for domain in parts}
    return Index(description, indexes)


def _read_faiss(path: Path, kind: str, size: int, width: int) -> faiss.Index:
    """Reads an index, but only of the kind, size, and width that its description says."""
    if not path.exists():
        raise FileNotFoundError(f"no {path}: build the index again")
    try:
        check_index_file(path, kind, size, width)
        return faiss.read_index(str(path))
    except (RuntimeError, ValueError, MemoryError) as error:
        raise ValueError(f"{path} is invalid, build the index again: {error}") from error


def check_index_file(path: Path, kind: str, size: int, width: int) -> None:
    """Checks that a file has the index types of a kind, at every place where faiss reads one.

    faiss would also load others, such as lists on disk, which open any file that they name.

    Raises:
        ValueError: There is another type, or another number of items or dimensions.
    """
    with path.open("rb") as file:

        def read(form: str) -> tuple[Any, ...]:
            data = file.read(struct.calcsize(form))
            if len(data) < struct.calcsize(form):
                raise ValueError("the file ends too early")
            return struct.unpack(form, data)

        def skip_vectors(*bytes_per_item: int) -> None:
            for step in bytes_per_item:
                file.seek(read("<Q")[0] * step + file.tell())

        def expect_index(kind: str, items: int | None = None) -> None:
            name, dimensions, found, _, _, _, metric = read("<4siqqq?i")
            if (name, dimensions, metric) != (FILE_TYPES.get(kind), width, faiss.METRIC_INNER_PRODUCT):
                raise ValueError(f"it has an index of type {name!r} and {dimensions} dimensions")
            if items not in (None, found):
                raise ValueError(f"it has {found} items instead of {items}")

        expect_index(kind, size)
        if kind == "hnsw":
            skip_vectors(8, 4, 4, 8, 4)  # probabilities, numbers of neighbors, levels, offsets, neighbors
            read("<5i")  # entry point, highest level, and search options
            expect_index("flat", size)
        elif kind == "ivfpq":
            read("<QQ")  # lists, and lists to search
            expect_index("flat")
            skip_vectors(4)  # centroids of the lists
            read("<c")  # type of the map from items to lists
            skip_vectors(8)
            read("<?4Q")  # sizes of the codes
            skip_vectors(4)  # centroids of the codes
            if (name := read("<4s")[0]) != b"ilar":
                raise ValueError(f"it has lists of type {name!r}")


def default_kind(size: int) -> str:
    """Returns the kind of index for a number of items."""
    if size <= FLAT_LIMIT:
        return "flat"
    return "hnsw" if size <= HNSW_LIMIT else "ivfpq"


def _empty_index(kind: str, size: int, width: int) -> faiss.Index:
    """An index by inner product for `size` items of `width` dimensions."""
    if kind == "flat":
        return faiss.IndexFlatIP(width)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 100, 256
        return index
    lists = min(int(4 * math.sqrt(size)), size // 39)
    codes = max(m for m in range(1, width // 2 + 1) if width % m == 0)  # bytes per item, two dimensions each
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, lists, codes, 8, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = max(16, lists // 16)
    return index


def _build_domain(kind: str, embeddings: Path, domain: str, size: int, width: int) -> faiss.Index:
    """The index of a domain, trained on a sample if its kind needs it."""
    index = _empty_index(kind, size, width)
    if isinstance(index, faiss.IndexIVF):
        count = min(size, max(PQ_ITEMS, 64 * index.nlist))
        rows = np.sort(np.random.default_rng(0).choice(size, count, replace=False))
        index.train(read_rows(embeddings, domain, rows))
    for _, vectors in read_vectors(embeddings, domain):
        index.add(vectors)
    return index


def _sample_queries(embeddings: Path, sizes: Mapping[str, int]) -> np.ndarray:
    """About QUERIES embeddings, evenly from all domains."""
    share = -(-QUERIES // len(sizes))
    rows = {domain: np.arange(min(share, sizes[domain])) * sizes[domain] // share for domain in sizes}
    return np.concatenate([read_rows(embeddings, domain, own) for domain, own in rows.items()])


def _measure_recall(index: faiss.Index, queries: np.ndarray, embeddings: Path, domain: str) -> float:
    """Share of the exact TOP nearest items that the index finds; 1 if there are no items."""
    top = min(TOP, index.ntotal)
    if not top or not len(queries):
        return 1.0
    found, (_, exact) = index.search(queries, top)[1], exact_search(queries, embeddings, domain, top)
    return float(np.mean([len(set(a) & set(b)) / top for a, b in zip(found.tolist(), exact.tolist(), strict=True)]))


def exact_search(queries: np.ndarray, embeddings: Path, domain: str, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the exact result of `Index.search`, reading one file of embeddings at a time."""
    scores, rows = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    start = 0
    for _, vectors in read_vectors(embeddings, domain):
        more, found = faiss.knn(queries, vectors, min(top, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
        scores, rows = np.concatenate([scores, more], axis=1), np.concatenate([rows, found + start], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        start += len(vectors)
    return scores, rows


def embeddings_fingerprint(folder: Path) -> str:
    """Identifies the embeddings in a folder, wherever it is."""
    digest = hashlib.sha256((folder / MANIFEST).read_bytes())
    for domain in read_manifest(folder)["items"]:
        for path in sorted((folder / domain).glob("*.parquet")):
            add_file(digest, path, domain)
    return digest.hexdigest()[:16]
