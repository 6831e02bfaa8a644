"""How long exact retrieval takes at ROPE's test size, beside faiss's exact index: `python -m benchmarks.retrieval`.

Random embeddings of length 1. Ours: all ranks of all positives and R@1, R@5, R@10, mAP and median rank in six
directions. faiss: the ten nearest by IndexFlatIP in the same six, which is less than mAP and median rank need. Both
in turn, each in a process of its own, so that the memory is ours alone. The last line is JSON: medians of `seconds` and
`faiss_seconds`, their `ratio`, the largest `peak_rss_bytes` of ours, and `growth`: our seconds of page → video and back
with 1, 2 and 4 times as many videos.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

from benchmarks.ratios import ratio
from cope_jax import domains
from cope_jax.evaluation.metrics import retrieval
from cope_jax.evaluation.metrics.ranks import ranks_between

SIZES = {"page": 31_388, "video": 29_810, "live": 30_981}
PRODUCTS, WIDTH = 2_527, 128
GROWTH = (1, 2, 4)
FLAGS = flags.FLAGS


def items(scale: float) -> retrieval.Embeddings:
    """Each domain's embeddings and products; with `scale`, that many times as many items and products."""
    scale *= FLAGS.fraction
    rng = np.random.default_rng(0)
    made = {}
    for domain, size in SIZES.items():
        size = round(size * scale)
        vectors = rng.normal(size=(size, WIDTH)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        made[domain] = vectors, rng.integers(0, round(PRODUCTS * scale), (size, 1), np.int32)
    return made


def ours(embeddings: retrieval.Embeddings) -> float:
    """Seconds of the six directions."""
    started = time.perf_counter()
    retrieval.direction_metrics(retrieval.direction_ranks(embeddings))
    return time.perf_counter() - started


def growing(scale: int) -> float:
    """Seconds of page → video with `scale` times as many videos, of as many times the products."""
    pages, videos = items(1)["page"], items(scale)["video"]
    started = time.perf_counter()
    retrieval.retrieval_metrics(ranks_between(pages[0], videos[0], pages[1], videos[1])[0])
    return time.perf_counter() - started


def by_faiss(embeddings: retrieval.Embeddings) -> float:
    """Seconds of faiss's exact top ten in the six directions, indexing included."""
    import faiss

    started = time.perf_counter()
    for source, target in domains.DIRECTIONS:
        index = faiss.IndexFlatIP(WIDTH)
        index.add(embeddings[target][0])
        index.search(embeddings[source][0], 10)
    return time.perf_counter() - started


def alone(part: str, scale: int = 1) -> dict[str, float]:
    """A part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.retrieval", f"--part={part}", f"--scale={scale}"]
    command += [f"--fraction={FLAGS.fraction}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(what: str, scale: int) -> dict[str, float]:
    """Seconds of one of the above, and the most memory this process had."""
    seconds = {"ours": lambda: ours(items(1)), "faiss": lambda: by_faiss(items(1)), "growing": lambda: growing(scale)}
    measured = seconds[what]()
    return {"seconds": measured, "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_float("fraction", 1.0, "Size as a fraction of ROPE's test split.", lower_bound=0.01)
    flags.DEFINE_integer("rounds", 5, "Times that each is timed.", lower_bound=1)
    flags.DEFINE_enum("part", None, ["ours", "faiss", "growing"], "What to measure in this process.")
    flags.DEFINE_integer("scale", 1, "Of the part that grows.", lower_bound=1)


def main(_: list[str]) -> None:
    """Measures in turn, and prints."""
    if FLAGS.part:
        print(json.dumps(measure(FLAGS.part, FLAGS.scale)))
        return
    rounds = []
    for _ in range(FLAGS.rounds):
        rounds.append((alone("ours"), alone("faiss")))
        print(f"ours {rounds[-1][0]['seconds']:.2f} s, faiss {rounds[-1][1]['seconds']:.2f} s", flush=True)
    own, faiss = ([each["seconds"] for each in side] for side in zip(*rounds, strict=True))
    growth = {
        f"x{scale}": statistics.median(alone("growing", scale)["seconds"] for _ in range(FLAGS.rounds))
        for scale in GROWTH
    }
    result = {
        "seconds": round(statistics.median(own), 2),
        "faiss_seconds": round(statistics.median(faiss), 2),
        **ratio("ratio", own, faiss),
        "peak_rss_bytes": int(max(each["bytes"] for each, _ in rounds)),
        "growth": {name: round(value, 2) for name, value in growth.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    define_flags()
    app.run(main)
