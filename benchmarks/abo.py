"""Measures the catalog of Amazon Berkeley Objects at its real size: `python -m benchmarks.abo`.

Writes metadata of 147,702 listings, 398,212 catalog images and 8,209 spins with 586,584 frames, whose images are a few
shared files, and runs `data_prep.sources.abo` on it. The last line is JSON: `listings`, `frames`, `seconds`,
`peak_rss_bytes`.
"""

import gzip
import json
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks.measuring import time_call

FLAGS = flags.FLAGS
LISTINGS, IMAGES, SPINS, FRAMES = 147_702, 398_212, 8_209, 586_584
SHARED = 20  # files
LANGUAGES = ("en_US", "en_GB", "de_DE", "ja_JP", "zh_CN", "es_MX")
WORDS = ("sofa", "lamp", "case", "walnut", "leather", "modern", "Stuhl", "cotton", "Amazon", "Basics", "ケース", "with")


def write_download(folder: Path, scale: float) -> None:
    """Writes the metadata and a few images."""
    rng = np.random.default_rng(0)
    listings, images, spins = (max(1, round(scale * count)) for count in (LISTINGS, IMAGES, SPINS))
    for part in ("listings/metadata", "images/metadata", "images/small/00", "spins/metadata", "spins/original/00"):
        (folder / part).mkdir(parents=True)
    for i in range(SHARED):
        (folder / f"images/small/00/{i}.jpg").touch()
        (folder / f"spins/original/00/{i}.jpg").touch()
    with gzip.open(folder / "images/metadata/images.csv.gz", "wt", compresslevel=1) as file:
        file.write("image_id,height,width,path\n")
        file.writelines(f"i{i:07d},256,200,00/{i % SHARED}.jpg\n" for i in range(images))
    with gzip.open(folder / "spins/metadata/spins.csv.gz", "wt", compresslevel=1) as file:
        file.write("spin_id,azimuth,image_id,height,width,path\n")
        turns = FRAMES // SPINS
        file.writelines(
            f"s{i:05d},{turn},t{i}_{turn},2000,2000,00/{turn % SHARED}.jpg\n"
            for i in range(spins)
            for turn in range(turns + (i < scale * (FRAMES % SPINS)))
        )
    for part in range(16):
        with gzip.open(folder / f"listings/metadata/listings_{part:x}.json.gz", "wt", compresslevel=1) as file:
            for i in range(part, listings, 16):
                file.write(
                    json.dumps(_listing(rng, i, range(i * images // listings, (i + 1) * images // listings), spins))
                    + "\n"
                )


def _listing(
    rng: np.random.Generator, i: int, images: range, spins: int
) -> dict[str, str | list[str] | list[dict[str, str]]]:
    """Returns a listing: one in ten in another marketplace, with 2.7 images on average."""

    def texts(words: int) -> list[dict[str, str]]:
        tags = rng.choice(LANGUAGES, size=2, replace=False)
        return [{"language_tag": str(tag), "value": " ".join(rng.choice(WORDS, size=words))} for tag in tags]

    shown = [f"i{number:07d}" for number in images]
    fields = {"item_id": f"B{i if i % 10 else i + 1:09d}", "domain_name": "amazon.com" if i % 10 else "amazon.de"}
    fields |= {"item_name": texts(12), "brand": texts(1), "color": texts(1), "bullet_point": texts(60)}
    fields |= {
        "product_type": [{"value": "CELLULAR_PHONE_CASE"}],
        "main_image_id": shown[0],
        "other_image_id": shown[1:],
    }
    if i % 18 == 0 and i // 18 < spins:
        fields["spin_id"] = f"s{i // 18:05d}"
    return fields


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_float("scale", 1.0, "Fraction of the real size.", lower_bound=0.001)


def main(_: list[str]) -> None:
    """Measures and prints the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_download(folder / "abo", FLAGS.scale)
        command = [sys.executable, "-m", "data_prep.sources.abo", str(folder / "abo"), f"--out={folder / 'catalog'}"]
        seconds = time_call(partial(subprocess.run, command, check=True))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        with (folder / "catalog.jsonl").open(encoding="utf-8") as rows:
            frames = sum(1 for _ in rows)
    listings = round(FLAGS.scale * LISTINGS)
    print(json.dumps({"listings": listings, "frames": frames, "seconds": round(seconds, 1), "peak_rss_bytes": peak}))


if __name__ == "__main__":
    define_flags()
    app.run(main)
