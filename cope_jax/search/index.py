"""FAISS indexes of a folder of embeddings, one per domain, so that a filter by domain costs no recall.

An index folder has page.faiss, video.faiss, live.faiss, and `index.json`, which records what they were built from and
their recall. Indexes of codes also have page.npy and so on, the vectors in half precision, which stay on disk and
rescore the candidates that the codes find. The folder is written atomically.
"""

import functools
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from cope_jax.data.records import add_file
from cope_jax.search.embedding_store import (
    MANIFEST,
    check_shards,
    list_shards,
    read_item_ids,
    read_manifest,
    read_rows,
    read_vectors,
    shorten,
)
from data_prep.common.files import atomic_folder, read_json

FORMAT = "cope-jax index, version 1"
FOLDER, DESCRIPTION = "index", "index.json"
FILE_TYPES = {"flat": b"IxFI", "hnsw": b"IHNf", "codes": b"IxPT"}  # kinds of indexes, and how their files begin
KINDS = tuple(FILE_TYPES)
FLAT_LIMIT = 200_000  # items; exact search takes 20 ms per query at 128 dimensions on one core
TOP, QUERIES = 10, 256  # recall@10 is measured with this many queries
CODES = 32  # of 4 bits each, 16 bytes per item
CODE_ITEMS = 39 * 16  # faiss wants 39 items for each of the 16 centroids of a code
SAMPLE = 16_384  # items that codes are learned from
ENERGY = 0.9  # share of the squares of embeddings that coded axes keep
RECALL, CANDIDATES = 0.99, (100, 12_800)  # rescored candidates double from the first number until the recall is met
CHUNK = 65_536  # vectors compared at once


@dataclass(frozen=True)
class Index:
    """An opened index folder."""

    description: Mapping[str, Any]
    domains: Mapping[str, faiss.Index]
    vectors: dict[str, np.ndarray]  # float16[N, E] of domains with codes, on disk
    embeddings: Path  # folder of the embeddings

    @classmethod
    def open(cls, path: str | Path) -> "Index":
        """Opens the index of a folder of embeddings, `index` in it, which `./run.sh search build` wrote.

            index = Index.open("embeddings/shop")
            scores, rows = index.search(embedder.embed("page", images=["dress.jpg"]), "video", top=5)
            index.ids["video"][rows]

        Raises FileNotFoundError or ValueError if it is missing, invalid, or that of other embeddings.
        """
        folder = Path(path) if (Path(path) / DESCRIPTION).exists() else Path(path) / FOLDER
        return open_index(folder, folder.parent)

    @functools.cached_property
    def ids(self) -> dict[str, np.ndarray]:
        """Ids of the items of each domain by row, int64[N] or strings."""
        return {domain: read_item_ids(self.embeddings, domain) for domain in self.domains}

    def search(
        self, vectors: np.ndarray, domain: str, top: int = 10, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest items of a domain to each of float32[Q, E], among those where bool[N] is true.

        Vectors that are longer than those of the index are shortened.

        Returns:
            Similarities float32[Q, top], best first, and rows int64[Q, top], -1 if the domain has fewer items.

        Raises:
            ValueError: The domain is unknown, or the vectors have another shape.
        """
        if domain not in self.domains:
            raise ValueError(f"unknown domain {domain!r}: choose one of {', '.join(self.domains)}")
        width = self.description["width"]
        if np.ndim(vectors) != 2 or np.shape(vectors)[1] < width:
            raise ValueError(f"vectors are {list(np.shape(vectors))}; they must be [Q, {width}] or longer")
        index, params = self.domains[domain], None
        vectors = np.ascontiguousarray(shorten(vectors, width), np.float32)
        if domain in self.vectors:
            candidates = max(top, self.description["candidates"][domain])
            return _search_codes(index, self.vectors[domain], vectors, top, candidates, mask)
        if mask is not None:
            library: Any = faiss  # its types lack the arguments by name
            allowed = library.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
            params = library.SearchParameters(sel=allowed)
            if isinstance(index, faiss.IndexHNSW):
                params = library.SearchParametersHNSW(sel=allowed, efSearch=index.hnsw.efSearch)
        return index.search(vectors, top, params=params)


def _search_codes(
    index: faiss.Index, full: np.ndarray, queries: np.ndarray, top: int, candidates: int, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest items by their full vectors: among those with the nearest codes, or among all that a mask allows."""
    if mask is not None:  # codes cannot be filtered
        allowed = np.flatnonzero(mask)
        parts = (allowed[start : start + CHUNK] for start in range(0, len(allowed), CHUNK))
        return nearest(queries, ((rows, full[rows]) for rows in parts), top)
    found = index.search(queries, min(candidates, index.ntotal))[1]
    best = [nearest(query[None], [(rows, full[rows])], top) for query, rows in zip(queries, found, strict=True)]
    scores, rows = zip(*best, strict=True) if best else nearest(queries, [], top)
    return np.concatenate(scores), np.concatenate(rows)


def nearest(
    queries: np.ndarray, parts: Iterable[tuple[np.ndarray, np.ndarray]], top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the exact result of `Index.search` for parts of the items: rows int64[n] and vectors [n, E]."""
    scores, rows = np.full((len(queries), top), -np.inf, np.float32), np.full((len(queries), top), -1, np.int64)
    for own, vectors in parts:
        count = min(top, len(own))
        more, found = faiss.knn(queries, vectors.astype(np.float32), count, metric=faiss.METRIC_INNER_PRODUCT)
        scores, rows = np.concatenate([scores, more], axis=1), np.concatenate([rows, own[found]], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
    return scores, rows


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
    if small := [f"{sizes[d]} {d} items" for d in sizes if kinds[d] == "codes" and sizes[d] < CODE_ITEMS]:
        raise ValueError(
            f"an index of codes needs {CODE_ITEMS} items per domain, not {', '.join(small)}: choose flat or hnsw"
        )
    check_shards(list_shards(embeddings, manifest))
    queries = _sample_queries(embeddings, sizes)
    recall, candidates = {}, {}
    with atomic_folder(out, replace=True) as folder:
        for domain in sizes:
            index = _build_domain(kinds[domain], embeddings, domain, sizes[domain])
            built = Index({"candidates": candidates, "width": width}, {domain: index}, {}, embeddings)
            if kinds[domain] == "codes":
                candidates[domain] = CANDIDATES[0]
                built.vectors[domain] = _write_vectors(folder, embeddings, domain, (sizes[domain], width))
            exact = exact_search(queries, embeddings, domain, min(TOP, sizes[domain]))[1]
            recall[domain] = measure_recall(built, domain, queries, exact)
            faiss.write_index(index, str(folder / f"{domain}.faiss"))
            report(f"{domain}: {kinds[domain]} index of {sizes[domain]} items, recall@{TOP} {recall[domain]:.3f}")
        description = {
            "format": FORMAT,
            "embeddings": embeddings_fingerprint(embeddings),
            "kinds": kinds,
            "sizes": sizes,
            "width": width,
            "candidates": candidates,
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
        _ = [int(description["candidates"][domain]) for domain in domains if parts[domain][0] == "codes"]
        width = int(description["width"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} does not describe an index, build it again: {error!r}") from error
    indexes = {domain: _read_faiss(folder / f"{domain}.faiss", *parts[domain], width) for domain in parts}
    coded = [domain for domain, (kind, _) in parts.items() if kind == "codes"]
    vectors = {domain: _open_vectors(folder / f"{domain}.npy", parts[domain][1], width) for domain in coded}
    return Index(description, indexes, vectors, embeddings)


def _open_vectors(path: Path, size: int, width: int) -> np.ndarray:
    """Maps the vectors float16[size, width] of a file into memory."""
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is invalid, build the index again: {error}") from error
    if (vectors.dtype, vectors.shape) != (np.float16, (size, width)):
        raise ValueError(f"{path} has {vectors.dtype}{list(vectors.shape)}, build the index again")
    return vectors


def _write_vectors(folder: Path, embeddings: Path, domain: str, shape: tuple[int, int]) -> np.ndarray:
    """Writes the embeddings of a domain in half precision, and maps them into memory."""
    vectors = np.lib.format.open_memmap(folder / f"{domain}.npy", "w+", np.float16, shape)
    start = 0
    for _, part in read_vectors(embeddings, domain):
        vectors[start : (start := start + len(part))] = part
    vectors.flush()
    return vectors


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

        def expect_index(wanted: bytes | None, width: int) -> None:
            name, dimensions, found, _, _, _, metric = read("<4siqqq?i")
            if (name, dimensions, metric) != (wanted, width, faiss.METRIC_INNER_PRODUCT):
                raise ValueError(f"it has an index of type {name!r} and {dimensions} dimensions")
            if found != size:
                raise ValueError(f"it has {found} items instead of {size}")

        expect_index(FILE_TYPES.get(kind), width)
        if kind == "hnsw":
            skip_vectors(8, 4, 4, 8, 4)  # probabilities, numbers of neighbors, levels, offsets, neighbors
            read("<5i")  # entry point, highest level, and search options
            expect_index(FILE_TYPES["flat"], width)
        elif kind == "codes":
            if (name := read("<i4s?")[:2]) != (1, b"LTra"):
                raise ValueError(f"it has the transforms {name!r}")
            skip_vectors(4, 4)  # matrix and bias
            before, after, _ = read("<ii?")  # dimensions, and whether it is trained
            if before != width:
                raise ValueError(f"it transforms vectors of {before} dimensions")
            expect_index(b"IPfs", after)


def default_kind(size: int) -> str:
    """Returns the kind of index for a number of items."""
    return "flat" if size <= FLAT_LIMIT else "codes"


def empty_index(kind: str, sample: np.ndarray) -> faiss.Index:
    """An index by inner product for items like float32[n, E], trained on them if its kind needs it."""
    if kind == "flat":
        return faiss.IndexFlatIP(sample.shape[1])
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(sample.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 100, 256
        return index
    rotation = _coded_axes(sample)
    transform = faiss.LinearTransform(sample.shape[1], len(rotation), False)
    faiss.copy_array_to_vector(rotation.ravel(), transform.A)
    transform.is_trained = True
    codes = faiss.IndexPQFastScan(len(rotation), CODES, 4, faiss.METRIC_INNER_PRODUCT)
    index = faiss.IndexPreTransform(transform, codes)
    index.train(sample)
    return index


def _coded_axes(sample: np.ndarray) -> np.ndarray:
    """Matrix float32[D, E] to the D principal axes that keep most of the inner products, mixed by a random rotation.

    The rotation gives all codes about the same variance. D is a multiple of the number of codes.
    """
    values, axes = np.linalg.eigh((sample.T @ sample).astype(np.float64))
    kept = np.cumsum(values[::-1]) / values.sum()
    count = CODES * -(-int(np.searchsorted(kept, ENERGY) + 1) // CODES)
    mixed = np.linalg.qr(np.random.default_rng(0).normal(size=(count, count)))[0]
    padded = np.pad(axes[:, ::-1], ((0, 0), (0, max(0, count - len(axes)))))  # if there are fewer axes than codes
    return np.ascontiguousarray((padded[:, :count] @ mixed).T, np.float32)


def _build_domain(kind: str, embeddings: Path, domain: str, size: int) -> faiss.Index:
    """The index of a domain, trained on a sample."""
    rows = np.sort(np.random.default_rng(0).choice(size, min(size, SAMPLE if kind == "codes" else 1), replace=False))
    index = empty_index(kind, read_rows(embeddings, domain, rows))
    for _, vectors in read_vectors(embeddings, domain):
        index.add(vectors)
    return index


def _sample_queries(embeddings: Path, sizes: Mapping[str, int]) -> np.ndarray:
    """About QUERIES embeddings, evenly from all domains."""
    share = -(-QUERIES // len(sizes))
    rows = {domain: np.arange(min(share, sizes[domain])) * sizes[domain] // share for domain in sizes}
    return np.concatenate([read_rows(embeddings, domain, own) for domain, own in rows.items()])


def measure_recall(index: Index, domain: str, queries: np.ndarray, exact: np.ndarray) -> float:
    """Returns the share of the exact nearest items int64[Q, top] that the index finds; 1 if there are none.

    Doubles the number of candidates of codes until RECALL is reached.
    """
    candidates, top = index.description["candidates"], exact.shape[1]
    if not exact.size:
        return 1.0
    while True:
        found = index.search(queries, domain, top)[1].tolist()
        recall = float(np.mean([len(set(a) & set(b)) / top for a, b in zip(found, exact.tolist(), strict=True)]))
        if recall >= RECALL or domain not in candidates or candidates[domain] >= CANDIDATES[1]:
            return recall
        candidates[domain] *= 2


def exact_search(queries: np.ndarray, embeddings: Path, domain: str, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the exact result of `Index.search`, reading one file of embeddings at a time."""

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = 0
        for _, vectors in read_vectors(embeddings, domain):
            yield np.arange(start, start := start + len(vectors)), vectors

    return nearest(queries, parts(), top)


def embeddings_fingerprint(folder: Path) -> str:
    """Identifies the embeddings in a folder, wherever it is."""
    digest = hashlib.sha256((folder / MANIFEST).read_bytes())
    for domain in read_manifest(folder)["items"]:
        for path in sorted((folder / domain).glob("*.parquet")):
            add_file(digest, path, domain)
    return digest.hexdigest()[:16]
