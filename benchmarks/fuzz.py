"""Feeds damaged files to builds, `Embedder`, the search server and `table`: `python -m benchmarks.fuzz --files=10000`.

Three fifths of the files are pictures, a fifth videos and a fifth tables, each a valid file with bits flipped, or parts
cut off, moved, repeated, zeroed, or replaced by those of another file. A file passes if it is used or reported as
invalid: each picture and video that goes into a build must be counted as kept or dropped, `Embedder` must embed it or
leave it out, the server must answer with 200 or a status from 400 to 499, and `table` must build a catalog or raise
ValueError. The last line is JSON: counts of outcomes. The exit code is 1 if a file is lost, or anything else happens;
such files are kept.
"""

import asyncio
import csv
import gzip
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags
from PIL import Image

from cope_jax import Embedder
from data_prep.synthetic.videos import encode
from data_prep.table import build_table_catalog

FLAGS = flags.FLAGS
BATCH = 64  # files that Embedder gets at once
SENT_AT_ONCE = 2  # requests to the server, which answers more of them with status 503 on a loaded machine
BUSY_TRIES = 60
ROWS = 30  # of a valid table
Files = dict[str, bytes]  # name → content


def valid_pictures() -> Files:
    """Returns pictures in the formats that a build reads, by suffix."""
    photo = Image.effect_mandelbrot((160, 120), (-3, -2.5, 2, 2.5), 100)
    kinds = {
        "jpg": (photo.convert("RGB"), "JPEG", {}),
        "progressive.jpg": (photo.convert("RGB"), "JPEG", {"progressive": True}),
        "cmyk.jpg": (photo.convert("CMYK"), "JPEG", {}),
        "png": (photo.convert("RGBA"), "PNG", {}),
        "palette.png": (photo.convert("P"), "PNG", {}),
        "webp": (photo.convert("RGB"), "WEBP", {}),
        "gif": (photo.convert("P"), "GIF", {}),
        "bmp": (photo.convert("RGB"), "BMP", {}),
        "tiff": (photo.convert("RGB"), "TIFF", {"compression": "tiff_lzw"}),
    }
    files = {}
    for suffix, (image, kind, options) in kinds.items():
        image.save(buffer := io.BytesIO(), kind, **options)
        files[suffix] = buffer.getvalue()
    return files


def valid_videos(folder: Path) -> Files:
    """Returns videos of three seconds, by suffix."""
    shots = [valid_pictures()["jpg"]] * 3
    for suffix in ("mp4", "mov", "mkv"):
        encode(folder / f"clip.{suffix}", shots)
    return {path.suffix[1:]: path.read_bytes() for path in sorted(folder.glob("clip.*"))}


def valid_tables(folder: Path) -> Files:
    """Returns the same products as tables in the formats that `table` reads, by suffix."""
    rows = [
        {"product": f"P{i // 2}", "item": f"I{i}", "text": f"红色 dress {i}", "images": f"{i}.jpg", "price": i / 2}
        for i in range(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "table.parquet")
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    return {
        "csv": content,
        "csv.gz": gzip.compress(content),
        "jsonl": lines,
        "tsv": content.replace(b",", b"\t"),
        "parquet": (folder / "table.parquet").read_bytes(),
    }


def damage(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Returns a file with one kind of damage, in one to four places."""
    data = bytearray(content)
    kind = rng.choice(("flip", "cut", "delete", "repeat", "zero", "ones", "noise", "splice", "number"))
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data)) if rng.random() < 0.7 else rng.randrange(min(len(data), 64))
        end = min(len(data), start + rng.choice((1, 2, 4, 16, 200, 2000)))
        match kind:
            case "flip":
                data[start] ^= 1 << rng.randrange(8)
            case "cut":
                del data[max(1, start) :]
            case "delete":
                del data[start : max(end, start + 1)]
                data = data or bytearray(b"\0")
            case "repeat":
                data[start:start] = data[start:end] * rng.choice((1, 3, 50))
            case "zero":
                data[start:end] = bytes(end - start)
            case "ones":
                data[start:end] = b"\xff" * (end - start)
            case "noise":
                data[start:end] = rng.randbytes(end - start)
            case "splice":
                data[start:] = other[min(start, len(other) - 1) :]
            case "number":
                data[start : start + 4] = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 65_536)).to_bytes(4, "big")
    return bytes(data)


def damaged(valid: Files, count: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yields the names and contents of damaged files."""
    suffixes = sorted(valid)
    for number in range(count):
        suffix = rng.choice(suffixes)
        name = f"{number}.{suffix if rng.random() < 0.9 else rng.choice(suffixes)}"  # some with another's name
        yield name, damage(valid[suffix], valid[rng.choice(suffixes)], rng)


def run(module: str, *words: str) -> None:
    """Runs a command; raises RuntimeError with its output if it fails."""
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")


def fuzz_build(folder: Path, files: Files, column: str) -> Counter:
    """Builds records of the files, each an item of its own; `column` is images or video."""
    source = folder / column
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content)
    with (folder / f"{column}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("product", "item", "domain", "text", "split", column))
        # Products with one valid item, which stay even if all files are dropped.
        domain = "page" if column == "images" else "video"
        writer.writerows((f"P{i // 4}", i, domain, "a text", "train", name) for i, name in enumerate(files))
    catalog, data = folder / f"{column}-catalog", folder / f"{column}-data"
    run("data_prep.table", f"--table={folder}/{column}.csv", f"--images={source}", f"--out={catalog}")
    words = [f"--catalog={catalog}", f"--images={source}", f"--data_dir={data}", "--max_missing=1", "--splits=train"]
    run("data_prep.build", *words)
    run("data_prep.verify", f"--data_dir={data}")
    summary = json.loads((data / "rope/build_summary.json").read_text())["splits"]["train"][domain]
    items, frames = summary["items"], summary["frames"]
    dropped = Counter(items["dropped"]) if column == "video" else Counter(frames["dropped"])
    lost = (len(files) if column == "video" else frames["in"]) - sum(dropped.values())
    kept = items["kept"] if column == "video" else frames["kept"]
    return Counter({f"build: dropped, {name}": count for name, count in dropped.items()}) + Counter(
        {"build: kept": kept, "build: LOST": lost - kept, "build: LOST rows": len(files) - items["in"]}
    )


def fuzz_embedder(embedder: Embedder, files: Files, argument: str) -> Counter:
    """Embeds the files; `argument` is images or frames."""
    outcomes: Counter[str] = Counter()
    domain = "page" if argument == "images" else "video"
    contents = list(files.values())
    for start in range(0, len(contents), BATCH):
        batch = contents[start : start + BATCH]
        images, frames = (batch, None) if argument == "images" else (None, batch)
        vectors = embedder.embed(domain, images=images, frames=frames, on_error="none")
        for vector in vectors:
            length = float(np.linalg.norm(vector))
            left_out = bool(np.isnan(length))
            outcomes["Embedder: left out" if left_out else "Embedder: embedded"] += 1
            outcomes["Embedder: INVALID"] += not (left_out or abs(length - 1) < 1e-3)
        outcomes["Embedder: LOST"] += len(batch) - len(vectors)
    return outcomes


async def fuzz_server(address: str, files: Files, keep: Path) -> Counter:
    """Searches with each file."""
    outcomes: Counter[str] = Counter()
    waiting = list(files.items())

    async def send_all(session: aiohttp.ClientSession) -> None:
        while waiting:
            name, content = waiting.pop()
            tries, status = 0, 503  # the server is busy
            while status == 503 and tries < BUSY_TRIES:
                if tries:
                    outcomes["server: busy"] += 1
                    await asyncio.sleep(1.0)
                form = aiohttp.FormData()
                form.add_field("pictures", content, filename=name)
                async with session.post("/api/search", data=form) as response:
                    await response.read()
                tries, status = tries + 1, response.status
            passed = status == 200 or 400 <= status < 500
            outcomes[f"server: {'' if passed else 'FAILED '}{status}"] += 1
            if not passed:
                (keep / name).write_bytes(content)

    async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(120)) as session:
        await asyncio.gather(*(send_all(session) for _ in range(SENT_AT_ONCE)))
        async with session.get("/api/health") as response:
            outcomes["server: DEAD"] += response.status != 200
    return outcomes


def fuzz_tables(folder: Path, tables: Files, keep: Path) -> Counter:
    """Builds a catalog of each table, in a process per core."""
    names, count = list(tables), os.cpu_count() or 1
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        parts = [{name: tables[name] for name in names[i::count]} for i in range(count)]
        folders = [Path(tempfile.mkdtemp(dir=folder)) for _ in parts]
        return sum(pool.map(fuzz_some_tables, folders, parts, [keep] * count), Counter())


def fuzz_some_tables(folder: Path, tables: Files, keep: Path) -> Counter:
    """Builds a catalog of each table."""
    outcomes: Counter[str] = Counter()
    for name, content in tables.items():
        (path := folder / name).write_bytes(content)
        out = folder / "catalog"
        try:
            catalog = build_table_catalog(path, None, out, max_rejected=1.0, report=lambda line: None)
            outcomes["table: built" if catalog.domains else "table: EMPTY"] += 1
        except (ValueError, OSError):
            outcomes["table: refused"] += 1
        except Exception as error:
            (keep / name).write_bytes(content)
            outcomes[f"table: FAILED {type(error).__name__} {str(error)[:100]}"] += 1
        shutil.rmtree(out, ignore_errors=True)
        path.unlink()
    return outcomes


def serve_and_fuzz(files: Files, keep: Path) -> Counter:
    """Starts a server and searches with each file."""
    command = [sys.executable, "-m", "cope_jax.search", "serve", f"--workdir={FLAGS.workdir}", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            found = next(filter(None, (re.search(r"search at (http://\S+)", line) for line in server.stdout)))
            return asyncio.run(fuzz_server(found[1], files, keep)) + Counter(
                {"server: ENDED": server.poll() is not None}
            )
        finally:
            server.terminate()


def main(_: Sequence[str]) -> None:
    """Makes the files, feeds them to all parts and prints the outcomes."""
    rng, folder = random.Random(FLAGS.seed), Path(tempfile.mkdtemp(prefix="fuzz-"))
    keep = Path(FLAGS.keep) if FLAGS.keep else folder / "failed"
    keep.mkdir(parents=True, exist_ok=True)
    fifth = FLAGS.files // 5
    pictures = dict(damaged(valid_pictures(), FLAGS.files - 2 * fifth, rng))
    videos = dict(damaged(valid_videos(folder), fifth, rng))
    tables = dict(damaged(valid_tables(folder), fifth, rng))
    outcomes: dict[str, Counter] = {"tables": fuzz_tables(folder, tables, keep)}
    print(outcomes, file=sys.stderr)
    embedder = Embedder.from_workdir(FLAGS.workdir)
    for name, files, column, argument in (
        ("pictures", pictures, "images", "images"),
        ("videos", videos, "video", "frames"),
    ):
        with ThreadPoolExecutor() as threads:  # all three compute in processes or outside of Python
            parts = [
                threads.submit(fuzz_build, folder, files, column),
                threads.submit(fuzz_embedder, embedder, files, argument),
                threads.submit(serve_and_fuzz, files, keep),
            ]
            outcomes[name] = sum((part.result() for part in parts), Counter())
        print(outcomes[name], file=sys.stderr)
    print(json.dumps({"files": FLAGS.files, **{name: dict(sorted(own.items())) for name, own in outcomes.items()}}))
    faults = [key for own in outcomes.values() for key, count in own.items() if count and re.search("[A-Z]{4}", key)]
    if faults:
        sys.exit(f"{faults}; see {keep}")
    shutil.rmtree(folder)


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_integer("files", 10_000, "Number of files.", lower_bound=50)
    flags.DEFINE_string("workdir", "runs/demo", "Work directory of a run with ROPE's domains.")
    flags.DEFINE_string("keep", None, "Folder for the files that do not pass. By default, a temporary one.")
    flags.DEFINE_integer("seed", 0, "Seed of the damage.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
