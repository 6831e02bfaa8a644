"""Looks for products in a recording: `python -m benchmarks.recording --release=DIR --workdir=DIR`.

A recording of ten minutes shows 30 products of the test split of the synthetic release, one after the other, each
for 20 seconds, with subtitles. Each of their pages, with its title, is a query. The last line is JSON: `first_hit`, the
fraction of queries whose nearest segment overlaps the 20 seconds of the product, `queries` and `segments`, and
`segments_per_s`, the speed of `Embedder.embed_segments`. Train the model with `./run.sh demo --videos`, which has the
release in data/demo/release and the run in runs/demo_videos.
"""

import json
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from cope_jax import Embedder
from data_prep.catalog.release_parser import NO_TEXT
from data_prep.synthetic import texts
from data_prep.synthetic.products import Product, generator
from data_prep.synthetic.release import OPTIONS_FILE, Plan, plan_release
from data_prep.synthetic.scenes import draw_item
from data_prep.synthetic.videos import encode

FLAGS = flags.FLAGS
SECONDS = 20  # that a product is shown


def write_recording(folder: Path, plan: Plan, products: Sequence[Product], side: int, seed: int) -> tuple[Path, Path]:
    """Writes show.mp4 and show.srt with scenes and words as in lives of the release; returns their paths."""
    images, cues = [], []
    for number, product in enumerate(products):
        rng = generator(seed, "recording", number)
        images += draw_item("live", (product.attributes,), plan.shelves["test"], frames=SECONDS, side=side, rng=rng)
        for turn in range(FLAGS.turns):
            said = texts.transcript((product,), plan.recipe, rng)
            sentences = [] if said == NO_TEXT else re.split("[,，] ?", said)
            begin, seconds = (number + turn / FLAGS.turns) * SECONDS, SECONDS / FLAGS.turns / max(1, len(sentences))
            cues += [(begin + i * seconds, begin + (i + 1) * seconds, words) for i, words in enumerate(sentences)]
    encode(folder / "show.mp4", images)
    lines = [f"{i}\n{srt_time(start)} --> {srt_time(end)}\n{said}\n" for i, (start, end, said) in enumerate(cues, 1)]
    (folder / "show.srt").write_text("\n".join(lines), encoding="utf-8")
    return folder / "show.mp4", folder / "show.srt"


def srt_time(seconds: float) -> str:
    """Formats a time as in an SRT file."""
    milliseconds = round(seconds * 1000)
    return f"00:{milliseconds // 60000:02}:{milliseconds // 1000 % 60:02},{milliseconds % 1000:03}"


def main(_: Sequence[str]) -> None:
    release = Path(FLAGS.release)
    options = json.loads((release / OPTIONS_FILE).read_text(encoding="utf-8"))
    plan = plan_release(*(options[name] for name in ("train_products", "test_products", "seed", "recipe")))
    order = generator(FLAGS.seed, "recording").permutation(len(plan.products["test"]))
    products = [plan.products["test"][i] for i in order[: FLAGS.products]]
    places = {product.product_id: place for place, product in enumerate(products)}
    pages = [
        (places[item.products[0].product_id], item)
        for item in plan.items
        if item.domain == "page" and len(item.products) == 1 and item.products[0].product_id in places
    ]
    embedder = Embedder.from_workdir(FLAGS.workdir)
    with tempfile.TemporaryDirectory() as folder:
        video, transcript = write_recording(Path(folder), plan, products, options["image_side"], FLAGS.seed)
        start = time.perf_counter()
        found = embedder.embed_segments(video, length=FLAGS.length, stride=FLAGS.stride, transcript=transcript)
        seconds = time.perf_counter() - start
    images = [release / "images" / item.frames[0][1] for _, item in pages]
    queries = embedder.embed("page", images=images, texts=[item.text for _, item in pages])
    first = np.argmax(queries @ found.vectors.T, axis=1)
    shown = SECONDS * np.array([place for place, _ in pages])
    overlaps = (found.starts[first] < shown + SECONDS) & (found.ends[first] > shown)
    result = {"first_hit": round(float(overlaps.mean()), 3), "queries": len(pages), "segments": len(found.starts)}
    print(json.dumps(result | {"segments_per_s": round(len(found.starts) / seconds, 1)}))


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("release", "data/demo/release", "Folder of the synthetic release.")
    flags.DEFINE_string("workdir", "runs/demo_videos", "Work directory of the run.")
    flags.DEFINE_integer("products", 30, "Number of products in the recording.", lower_bound=2)
    flags.DEFINE_float("length", 8.0, "Seconds of a segment.")
    flags.DEFINE_float("stride", 4.0, "Seconds from the start of a segment to that of the next one.")
    turns = "Transcripts per product. With 3, as many words per second as in lives, which last 6.5 seconds on average."
    flags.DEFINE_integer("turns", 3, turns, lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the recording.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
