"""How much memory do indexes take, how fast do they search, and what do they find?

    python -m benchmarks.search --items=1000000 --data=trained

`trained` imitates embeddings of a trained model: ten items per product, with a cosine similarity of about 0.67 to one
another, and standard deviations along the axes of 1 / (1 + i / 8), for a participation ratio of 24 (the demo's is 21).
`random` has no structure and is the hardest case. Queries are more vectors of the same kind. As in `cope search build`,
the number of rescored candidates is chosen with items of the index as queries. Rates are of one query at a time, as
servers have them, and of batches.
"""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from absl import app, flags

from benchmarks.measuring import peak_memory, summarize_ratio, time_call
from cope_jax.search.index import CANDIDATES, CHUNK, SAMPLE, TOP, Index, empty_index, measure_recall, nearest

FLAGS = flags.FLAGS
WIDTH, QUERIES, SINGLE, ROUNDS = 128, 256, 16, 5
SCALE = 1 / (1 + np.arange(WIDTH, dtype=np.float32) / 8)


def define_flags() -> None:
    """Defines the flags."""
    flags.DEFINE_integer("items", 1_000_000, "Number of items.")
    flags.DEFINE_enum("data", "trained", ["trained", "random"], "Kind of vectors.")
    flags.DEFINE_list("kinds", ["flat", "codes"], "Kinds of indexes: flat, codes, hnsw.")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@cache
def make_centers(products: int) -> np.ndarray:
    """Returns the centers float32[products, WIDTH] of the products."""
    return unit(np.random.default_rng(0).standard_normal((products, WIDTH), dtype=np.float32) * SCALE)


def make_vectors(data: str, count: int, products: int, *, seed: int) -> np.ndarray:
    """Returns unit vectors float32[count, WIDTH]."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, WIDTH), dtype=np.float32)
    if data == "random":
        return unit(noise)
    return unit(make_centers(products)[rng.integers(products, size=count)] + 0.7 * unit(noise * SCALE))


def make_items(data: str, items: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields rows and vectors of the items, some at a time."""
    for seed, start in enumerate(range(0, items, CHUNK), 2):
        rows = np.arange(start, min(start + CHUNK, items))
        yield rows, make_vectors(data, len(rows), items // 10, seed=seed)


def build(kind: str, data: str, items: int, folder: Path) -> tuple[Index, float]:
    """Returns an index of the items, and the seconds that it took without making the vectors."""
    vectors = {}
    if kind == "codes":
        vectors["page"] = np.lib.format.open_memmap(folder / "page.npy", "w+", np.float16, (items, WIDTH))
    sample = next(make_items(data, items))[1][:SAMPLE]
    begin = time.perf_counter()
    index = empty_index(kind, sample)
    seconds = time.perf_counter() - begin
    for rows, own in make_items(data, items):
        begin = time.perf_counter()
        index.add(own)
        if kind == "codes":
            vectors["page"][rows[0] : rows[-1] + 1] = own
        seconds += time.perf_counter() - begin
    description = {"candidates": dict.fromkeys(vectors, CANDIDATES[0]), "width": WIDTH}
    return Index(description, {"page": index}, vectors, folder), seconds


def search_singly(index: Index, queries: np.ndarray) -> None:
    """Searches for some queries, one after the other."""
    for query in queries[:SINGLE]:
        index.search(query[None], "page", TOP)


def main(_: list[str]) -> None:
    """Measures and prints."""
    data, items = FLAGS.data, FLAGS.items
    queries = make_vectors(data, QUERIES, items // 10, seed=1)
    known = next(make_items(data, items))[1][:QUERIES]
    exact = nearest(np.concatenate([queries, known]), make_items(data, items), TOP)[1]
    result: dict[str, Any] = {"items": items, "data": data, "threads": faiss.omp_get_max_threads()}
    single, batched = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory() as folder:
        indexes = {}
        for kind in FLAGS.kinds:
            indexes[kind], seconds = build(kind, data, items, Path(folder))
            index = indexes[kind]
            measure_recall(index, "page", known, exact[QUERIES:])  # chooses the number of candidates
            found = index.search(queries, "page", TOP)[1]
            recall = np.mean([len(set(a) & set(b)) / TOP for a, b in zip(found, exact[:QUERIES], strict=True)])
            result[kind] = {
                "build_s": round(seconds, 1),
                "recall_at_10": round(float(recall), 4),
                "bytes_per_item": round(faiss.serialize_index(index.domains["page"]).nbytes / items, 2),
                "candidates": index.description["candidates"].get("page"),
            }
        for _round in range(ROUNDS):
            for kind, index in indexes.items():
                single[kind].append(SINGLE / time_call(partial(search_singly, index, queries)))
                batch = partial(index.search, queries, "page", TOP)
                batched[kind].append(QUERIES / time_call(batch))
    for kind in indexes:
        rates = {"queries_per_s": np.median(single[kind]), "batched_queries_per_s": np.median(batched[kind])}
        result[kind] |= {name: round(float(rate), 1) for name, rate in rates.items()}
    if {"flat", "codes"} <= single.keys():
        result |= {key: result["codes"][key] for key in ("recall_at_10", "bytes_per_item")}
        result |= summarize_ratio("rate_over_flat", single["codes"], single["flat"])
        result |= summarize_ratio("batched_rate_over_flat", batched["codes"], batched["flat"])
    print(json.dumps(result | {"peak_memory_mb": peak_memory() // 2**20}))


if __name__ == "__main__":
    define_flags()
    app.run(main)
