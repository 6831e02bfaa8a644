"""All embeddings of a split as Parquet: `OUT/page/00000-of-00004.parquet`, …, rows in the records' order.

Columns: domain, item_id, product_ids (list of int64), embedding (list of fixed size). A killed job keeps its finished
shards; `manifest.json` tells what they were made from, so that they are not mixed with those of another source.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cope_jax.data.records import ProductRecords, fingerprint, open_records
from cope_jax.domains import DOMAINS
from cope_jax.evaluation.embed_items import Items, count_items
from cope_jax.evaluation.evaluate_run import LATEST, resolve_step, what_is_evaluated
from cope_jax.evaluation.loaded_run import LoadedRun, load_run
from cope_jax.parallel.processes import allgather, barrier
from cope_jax.runs.checkpoints import Checkpoints
from cope_jax.runs.config_file import load_config
from cope_jax.runs.config_validation import replace_fields
from data_prep.common.progress import Progress

MANIFEST = "manifest.json"
ROWS = 16_384  # of a shard, which is what a kill can lose: 8 MB at 128 dimensions
TYPES = {"float32": pa.float32(), "float16": pa.float16()}


@dataclass(frozen=True)
class Shard:
    """Rows start … stop of a domain, and their file."""

    domain: str
    start: int
    stop: int
    path: Path


def embed_to_parquet(
    workdir: Path,
    out: Path,
    *,
    split: str,
    data_dir: Path | None = None,
    step: int | str = LATEST,
    average: bool = False,
    dtype: str = "float32",
    rows: int = ROWS,
) -> dict[str, int]:
    """Embeds every item of a split and writes it, going on where an earlier call was stopped.

    Args:
        workdir: of a training run.
        out: folder to write; one that this wrote before for the same run, step and records, or a new one.
        split, data_dir: of the records, as of `open_records`; data_dir None is the run's own.
        step, average: as of `evaluation.run.evaluate`.
        dtype: of the embeddings, a key of TYPES.
        rows: of a shard.

    Returns:
        The number of items of each domain, all of them written.

    Raises:
        FileNotFoundError: no such work directory, checkpoint or array records.
        ValueError: no such split; `out` holds something else; an embedding is zero or not finite; rows got lost; there
            is no average.
    """
    config = load_config(workdir)
    config = replace_fields(config, {"data.data_dir": str((data_dir or Path(config.data.data_dir)).absolute())})
    with Checkpoints(workdir) as checkpoints:
        if not isinstance(step, int):
            step = resolve_step(step, checkpoints, workdir, what_is_evaluated(config, None))
        config = replace_fields(config, {"data.eval_split": split})
        records = open_records(config.data.data_dir, split)
        sizes = {domain: len(records.items[domain]) for domain in DOMAINS}
        manifest = {
            "run": workdir.absolute().name,
            "step": step,
            "average": average,
            "checkpoint": checkpoint_fingerprint(workdir, step),
            "split": split,
            "data": fingerprint(config.data.data_dir, split),
            "frames": asdict(config.eval.frames),
            "width": config.model.embedding,
            "dtype": dtype,
            "rows": rows,
            "items": sizes,
        }
        claim(out, manifest)
        shards = [shard for domain, size in sizes.items() for shard in shards_of(out, domain, size, rows)]
        # Process 0 decides for all: they compute together, and may see a shared folder at different times.
        written = allgather(np.array([shard.path.exists() for shard in shards], bool))[0]
        todo = [shard for shard, there in zip(shards, written, strict=True) if not there]
        if todo:
            write_shards(todo, load_run(config, workdir, checkpoints, step, average=average), records.products, dtype)
    barrier("embedded")
    check_rows(shards)
    return sizes


def checkpoint_fingerprint(workdir: Path, step: int) -> str:
    """Tells a checkpoint from one of the same step of another training, wherever the work directory lies."""
    saved = workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"  # Orbax writes times of saving into it
    # The untrained model has no checkpoint: the config makes it.
    return hashlib.sha256((saved if saved.exists() else workdir / "config.json").read_bytes()).hexdigest()[:16]


def claim(out: Path, manifest: Mapping[str, Any]) -> None:
    """Makes `out` the folder of a manifest, or finds that it is.

    Raises:
        ValueError: it holds something else; lists what differs.
    """
    path = out / MANIFEST
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = [
            f"  {key}: {there.get(key)!r} there, {value!r} now"
            for key, value in manifest.items()
            if there.get(key) != value
        ]
        if differing:
            raise ValueError(
                f"{out} holds other embeddings; choose another folder, or remove it:\n" + "\n".join(differing)
            )
    elif out.exists() and any(not child.name.startswith(".") for child in out.iterdir()):
        raise ValueError(f"{out} is not empty and has no {MANIFEST}; choose another folder")
    barrier("looked")  # before one of them writes
    if jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # before anything else: a folder without it is not ours
            write_whole(path, (json.dumps(manifest, indent=2) + "\n").encode())
        for domain in DOMAINS:
            (out / domain).mkdir(exist_ok=True)
    barrier("claimed")


def shards_of(out: Path, domain: str, size: int, rows: int) -> list[Shard]:
    """The shards of a domain of `size` items."""
    starts = range(0, size, rows)
    return [
        Shard(domain, start, min(start + rows, size), out / domain / f"{i:05}-of-{len(starts):05}.parquet")
        for i, start in enumerate(starts)
    ]


def write_shards(shards: list[Shard], run: LoadedRun, products: ProductRecords, dtype: str) -> None:
    """Embeds and writes shards; all hosts embed each together, and take turns in writing."""
    owned = product_lists(products)
    for domain in DOMAINS:
        own = [shard for shard in shards if shard.domain == domain]
        total = sum(shard.stop - shard.start for shard in own)
        with Progress(total=total, desc=f"embedded {domain}", unit="items") as progress:
            for number, shard in enumerate(own):
                wanted = np.arange(shard.start, shard.stop)
                items = run.items(domain, wanted, partial(count_items, progress))
                if items.rows.tolist() != wanted.tolist():
                    raise ValueError(
                        f"{shard.path}: {len(items.rows)} items came back of rows {shard.start} … {shard.stop - 1}"
                    )
                if number % jax.process_count() == jax.process_index():
                    write_whole(shard.path, table_bytes(as_table(domain, items, owned[domain], dtype)))


def product_lists(products: ProductRecords) -> dict[str, dict[int, list[int]]]:
    """Of each domain, row → all products of its item, sorted: an embedded item knows no more than data.max_products."""
    owned: dict[str, dict[int, list[int]]] = {domain: {} for domain in DOMAINS}
    for index in range(len(products)):
        product = products[index]
        for domain, rows in product.rows.items():
            for row in rows.tolist():
                owned[domain].setdefault(row, []).append(product.product_id)
    return {domain: {row: sorted(ids) for row, ids in rows.items()} for domain, rows in owned.items()}


def as_table(domain: str, items: Items, owned: Mapping[int, list[int]], dtype: str) -> pa.Table:
    """The rows of a file."""
    vectors = pa.array(items.vectors.astype(dtype).reshape(-1), TYPES[dtype])
    return pa.table(
        {
            "domain": pa.array([domain] * len(items.rows), pa.string()),
            "item_id": pa.array(items.item_ids, pa.int64()),
            "product_ids": pa.array([owned.get(row, []) for row in items.rows.tolist()], pa.list_(pa.int64())),
            "embedding": pa.FixedSizeListArray.from_arrays(vectors, items.vectors.shape[1]),
        }
    )


def table_bytes(table: pa.Table) -> bytes:
    """A Parquet file. Embeddings are as good as random: they are stored as they are."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=["domain"])
    return sink.getvalue().to_pybytes()


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file such that it is there whole, also after a power cut, or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def check_rows(shards: list[Shard]) -> None:
    """Raises a ValueError that lists files which do not hold as many rows as they should, as their footers say."""
    faulty = []
    for shard in shards:
        rows = pq.read_metadata(shard.path).num_rows
        if rows != shard.stop - shard.start:
            faulty.append(f"{shard.path} has {rows} rows instead of {shard.stop - shard.start}")
    if faulty:
        raise ValueError(f"rows got lost; remove these files and run the same command again: {'; '.join(faulty)}")


def vectors_of(out: Path, domain: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The item ids i64[n] and embeddings f32[n, E] of a domain, a file at a time, in row order."""
    for path in sorted((out / domain).glob("*.parquet")):
        yield read_shard(path)


def read_shard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The item ids i64[n] and embeddings f32[n, E] of a file."""
    table = pq.read_table(path, columns=["item_id", "embedding"])
    flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return table["item_id"].to_numpy(), flat.reshape(len(table), -1)


def vectors_at(out: Path, domain: str, rows: np.ndarray) -> np.ndarray:
    """The embeddings f32[n, E] of some rows i64[n] of a domain, in their order; reads the files they lie in."""
    manifest = read_manifest(out)
    vectors = np.zeros((len(rows), manifest["width"]), np.float32)
    files = shards_of(out, domain, manifest["items"][domain], manifest["rows"])
    for number in np.unique(rows // manifest["rows"]):
        inside = rows // manifest["rows"] == number
        vectors[inside] = read_shard(files[number].path)[1][rows[inside] - files[number].start]
    return vectors


def read_manifest(out: Path) -> dict[str, Any]:
    """What a folder of embeddings is of.

    Raises:
        FileNotFoundError: it is none.
    """
    path = out / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"no {path}: name a folder that `./run.sh embed` wrote")
    return json.loads(path.read_text(encoding="utf-8"))
