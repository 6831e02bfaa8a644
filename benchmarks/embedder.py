"""Measures `Embedder` as a service would use it: `python -m benchmarks.embedder --model=runs/demo`.

Photos are JPEG files in memory, 480 pixels wide and high. The last line is JSON: `p50_ms`, the median time of a single
photo; `images_per_second`, for 256 photos in one call; and `first_call_seconds`, from the import of `Embedder` to the
embedding of a first photo, so with the loading of the model, in a process of its own with a warm compilation cache;
`first_call_without_cache` is the same without one, and `import_seconds` what the import takes before.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from absl import app, flags, logging
from PIL import Image

from benchmarks.measuring import time_call
from cope_jax import Embedder
from cope_jax.exported import is_export

FLAGS = flags.FLAGS
SIDE, MANY = 480, 256
FIRST_CALL = """
import json, sys, time
from pathlib import Path
start = time.perf_counter()
from cope_jax import Embedder
imported = time.perf_counter()
embedder = getattr(Embedder, sys.argv[1])(sys.argv[2])
loaded = time.perf_counter()
embedder.embed(next(iter(embedder.config.data.domains)), images=[sys.argv[3]])
ended = time.perf_counter()
print(json.dumps({"import": imported - start, "load": loaded - imported, "first_call": ended - imported}))
"""


def make_photos(count: int) -> list[bytes]:
    """Returns JPEG files of smooth random colors."""
    photos = []
    for colors in np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(colors).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        photos.append(file.getvalue())
    return photos


def first_call(loader: str, model: str, photo: Path, cache: str) -> dict[str, float]:
    """Returns the seconds of the import, the loading, and the first call in a process of its own."""
    command = [sys.executable, "-c", FIRST_CALL, loader, model, str(photo)]
    settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("model", None, "Work directory of a run, or folder of an export.", required=True)
    flags.DEFINE_integer("rounds", 5, "Number of measurements.", lower_bound=1)


def main(_: list[str]) -> None:
    """Measures and prints the result."""
    logging.set_verbosity(logging.WARNING)  # Orbax logs each step of loading
    loader = "from_export" if is_export(Path(FLAGS.model)) else "from_workdir"
    photos = make_photos(MANY)
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        photo.write_bytes(photos[0])
        cold, *warm = [first_call(loader, FLAGS.model, photo, folder) for _ in range(1 + FLAGS.rounds)]
    embedder: Embedder = getattr(Embedder, loader)(FLAGS.model)
    domain = next(iter(embedder.config.data.domains))
    embedder.warm_up(domain)
    single = [time_call(lambda photo=photo: embedder.embed(domain, images=[photo])) for photo in photos]
    many = [time_call(lambda: embedder.embed(domain, images=photos)) for _ in range(FLAGS.rounds)]
    result: dict[str, Any] = {
        "p50_ms": round(1000 * median(single), 2),
        "p95_ms": round(1000 * float(np.quantile(single, 0.95)), 2),
        "images_per_second": round(MANY / median(many), 1),
        "first_call_seconds": round(median(round_["first_call"] for round_ in warm), 2),
        "first_call_without_cache": round(cold["first_call"], 2),
        "load_seconds": round(median(round_["load"] for round_ in warm), 2),
        "import_seconds": round(median(round_["import"] for round_ in warm), 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    define_flags()
    app.run(main)
