"""Measures exact retrieval at the size of ROPE's test split, next to faiss: `python -m benchmarks.retrieval`.

Embeddings are random unit vectors. Ours: the ranks of all positives, and R@1, R@5, R@10, mAP and median rank in six
directions. faiss: the ten nearest neighbors by IndexFlatIP in the same directions, which is less than mAP and the
median rank need. They take turns, each in a process of its own, so that the memory is ours alone. The last line is
JSON: medians of `seconds` and `faiss_seconds`, their `ratio`, our largest `peak_rss_bytes`, and `growth`: our seconds
from page to video with 1, 2 and 4 times as many videos.
"""

import json
from statistics import median

import numpy as np
from absl import app, flags

from benchmarks.measuring import peak_memory, run_in_process, summarize_ratio, time_call
from cope_jax.evaluation.metrics import retrieval
from cope_jax.evaluation.metrics.ranks import ranks_between
from data_prep.common.domains import DOMAINS, directions

SIZES = {"page": 31_388, "video": 29_810, "live": 30_981}
PRODUCTS, WIDTH = 2_527, 128
GROWTH = (1, 2, 4)
FLAGS = flags.FLAGS


def make_embeddings(scale: float) -> retrieval.Embeddings:
    """Returns the embeddings and products of each domain, with `scale` times as many items and products."""
    scale *= FLAGS.fraction
    rng = np.random.default_rng(0)
    embeddings = {}
    for domain, size in SIZES.items():
        size = round(size * scale)
        vectors = rng.normal(size=(size, WIDTH)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        embeddings[domain] = vectors, rng.integers(0, round(PRODUCTS * scale), (size, 1), np.int32)
    return embeddings


def time_ours() -> float:
    """Returns our seconds for all metrics of the six directions."""
    embeddings = make_embeddings(1)
    return time_call(lambda: retrieval.direction_metrics(retrieval.direction_ranks(embeddings)))


def time_growing() -> float:
    """Returns our seconds from page to video with --scale times as many videos, of as many times the products."""
    pages, videos = make_embeddings(1)["page"], make_embeddings(FLAGS.scale)["video"]
    return time_call(lambda: retrieval.retrieval_metrics(ranks_between(pages[0], videos[0], pages[1], videos[1])[0]))


def time_faiss() -> float:
    """Returns the seconds of faiss for the ten nearest neighbors in the six directions, including indexing."""
    import faiss

    embeddings = make_embeddings(1)

    def search() -> None:
        for source, target in directions(DOMAINS).values():
            index = faiss.IndexFlatIP(WIDTH)
            index.add(embeddings[target][0])
            index.search(embeddings[source][0], 10)

    return time_call(search)


PARTS = {"ours": time_ours, "faiss": time_faiss, "growing": time_growing}


def measure(part: str, scale: int = 1) -> dict[str, float]:
    """Measures a part in a process of its own: its seconds, and the peak memory of the process in bytes."""
    return run_in_process("retrieval", f"--part={part}", f"--scale={scale}", f"--fraction={FLAGS.fraction}")


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_float("fraction", 1.0, "Size as a fraction of ROPE's test split.", lower_bound=0.01)
    flags.DEFINE_integer("rounds", 5, "Number of measurements.", lower_bound=1)
    flags.DEFINE_enum("part", None, list(PARTS), "Measure only this part, in this process.")
    flags.DEFINE_integer("scale", 1, "Size of the growing part.", lower_bound=1)


def main(_: list[str]) -> None:
    """Measures and prints the result."""
    if FLAGS.part:
        seconds = PARTS[FLAGS.part]()
        print(json.dumps({"seconds": seconds, "bytes": peak_memory()}))
        return
    rounds = []
    for _round in range(FLAGS.rounds):
        rounds.append((measure("ours"), measure("faiss")))
        print(f"ours {rounds[-1][0]['seconds']:.2f} s, faiss {rounds[-1][1]['seconds']:.2f} s", flush=True)
    ours, faiss = ([measured["seconds"] for measured in side] for side in zip(*rounds, strict=True))
    growth = {
        f"x{scale}": round(median(measure("growing", scale)["seconds"] for _ in range(FLAGS.rounds)), 2)
        for scale in GROWTH
    }
    result = {
        "seconds": round(median(ours), 2),
        "faiss_seconds": round(median(faiss), 2),
        **summarize_ratio("ratio", ours, faiss),
        "peak_rss_bytes": int(max(own["bytes"] for own, _ in rounds)),
        "growth": growth,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    define_flags()
    app.run(main)
