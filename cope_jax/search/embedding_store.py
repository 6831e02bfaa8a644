"""Embeddings of a split in Parquet files, `OUT/page/00000-of-00004.parquet` and so on, in the order of the records.

Columns: domain, item_id and product_ids (int64, or text if the user's ids are not numbers), embedding (list of fixed
size), content (hash of the item's text and frames, so that an update computes only what is new). An interrupted job
keeps its finished shards. `manifest.json` records what they were made from, so that shards of different sources are not
mixed.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cope_jax.data.records import Item, Records, fingerprint, open_records
from cope_jax.evaluation.embed_items import LoadedRun, load_run
from cope_jax.evaluation.results import LATEST, find_step
from cope_jax.parallel.processes import allgather, barrier
from cope_jax.runs.config_file import load_config
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import check_domains
from data_prep.common.differences import describe_differences
from data_prep.common.files import TEMPORARY, atomic_write, file_sha256, read_json
from data_prep.common.parquet import open_parquet
from data_prep.common.progress import Progress

MANIFEST = "manifest.json"
ROWS = 16_384  # per shard, the most that an interruption can lose: 8 MB at 128 dimensions
# Types of the values: int8 scales each vector to ±127, and binary packs the signs of eight rotated values into a byte.
TYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}


class Shard(NamedTuple):
    """A file with the rows start to stop of a domain."""

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
    dims: int | None = None,
    dtype: str = "float32",
    rows: int = ROWS,
    update: bool = False,
) -> dict[str, int]:
    """Embeds every item of a split and writes the embeddings. If an earlier call was interrupted, it resumes.

    Args:
        workdir: Work directory of the run.
        out: Folder to write: a new one, or one that was written for the same run, step, and records.
        split: Split to embed, or several: "train+test".
        data_dir: Array records to embed instead of those in the run's config.
        step: Step of the checkpoint, "latest", or "best".
        average: Embed with the moving average of the parameters.
        dims: Number of values to keep, the first ones, scaled to length 1 again; by default, all.
        dtype: Type of the embeddings, a key of TYPES.
        rows: Rows per shard.
        update: If `out` has the embeddings of earlier records by the same checkpoint, replace them, but compute only
            those of items with other texts or frames.

    Returns:
        The number of items of each domain.
    """
    config = load_config(workdir)
    step = find_step(workdir, step, config)
    data_dir = (data_dir or Path(config.data.data_dir)).absolute()
    config = replace_fields(config, {"data.data_dir": str(data_dir), "data.eval_split": split})
    check_domains(config, subset=True)
    width = config.model.embedding if dims is None else dims
    if not 1 <= width <= config.model.embedding or (dtype == "binary" and width % 8):
        eights = ", in steps of 8" if dtype == "binary" else ""
        raise ValueError(f"--dims is {width}; embeddings of this run have 1 to {config.model.embedding} values{eights}")
    records = open_records(config.data.data_dir, split)
    sizes = {domain: len(items) for domain, items in records.items.items()}
    manifest = {
        "run": workdir.absolute().name,
        "step": step,
        "average": average,
        "checkpoint": checkpoint_fingerprint(workdir, step),
        "split": split,
        "data": fingerprint(config.data.data_dir, split),
        "frames": dict(config.eval.frames),
        "width": width,
        "dtype": dtype,
        "rows": rows,
        "items": sizes,
    }
    if dtype == "binary":
        manifest["rotated"] = True  # earlier versions took signs without a rotation
    previous = out.with_name(f"{out.name}.previous")
    _prepare_folder(out, manifest, previous if update else None)
    shards = list_shards(out, manifest)
    # Process 0 decides for all: they compute together, and a shared folder may look different to each.
    exists = allgather(np.array([shard.path.exists() for shard in shards], bool))[0]
    missing = [shard for shard, exists in zip(shards, exists, strict=True) if not exists]
    if missing:
        load = functools.cache(functools.partial(load_run, config, workdir, step, average=average))
        _write_shards(missing, load, records, manifest, previous if update else None)
    barrier("embedded")
    check_shards(shards)
    if update and jax.process_index() == 0:
        shutil.rmtree(previous, ignore_errors=True)
    return sizes


def checkpoint_fingerprint(workdir: Path, step: int) -> str:
    """Identifies a checkpoint, wherever the work directory is."""
    saved = workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"  # has Orbax's time stamps
    # The untrained model has no checkpoint; the config determines it.
    return file_sha256(saved if saved.exists() else workdir / "config.json")[:16]


def _prepare_folder(out: Path, manifest: Mapping[str, Any], previous: Path | None) -> None:
    """Creates a folder for a manifest. Embeddings of other records are moved to `previous`, if given.

    Raises:
        ValueError: The folder exists with other contents.
    """
    path, wanted = out / MANIFEST, {key: value for key, value in manifest.items() if key != "run"}  # it may be renamed
    if previous:
        _remove_unusable(previous, wanted)
    if previous and path.exists():
        stored = read_json(path, remedy="choose another folder, or remove it")
        if {key for key in wanted if stored.get(key) != wanted[key]} in ({"data"}, {"data", "items"}):
            barrier("compared")
            if jax.process_index() == 0:  # if an update was interrupted, `previous` has more than `out`
                _ = shutil.rmtree(out) if previous.exists() else out.rename(previous)
            barrier("moved")
    if path.exists():
        stored = read_json(path, remedy="choose another folder, or remove it")
        stored = {key: stored[key] for key in wanted if key in stored}
        if differences := describe_differences(stored, wanted, labels=("stored", "requested")):
            lines = "".join(f"\n  {difference}" for difference in differences)
            raise ValueError(f"{out} has other embeddings; choose another folder, remove it, or see --update:{lines}")
    elif out.exists() and any(not (child.name.startswith(".") or _is_temporary(child)) for child in out.iterdir()):
        raise ValueError(f"{out} is not empty and has no {MANIFEST}; choose another folder")
    barrier("looked")  # before one of them writes
    if jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # first of all: without a manifest, the folder would not be recognized
            with atomic_write(path, "w", durable=True) as file:
                file.write(json.dumps(manifest, indent=2) + "\n")
        for domain in manifest["items"]:
            (out / domain).mkdir(exist_ok=True)
        for file in (*out.iterdir(), *(file for domain in manifest["items"] for file in (out / domain).iterdir())):
            if _is_temporary(file):  # from a killed job
                file.unlink()
    barrier("prepared")


def _remove_unusable(previous: Path, wanted: Mapping[str, Any]) -> None:
    """Removes what an interrupted update left, unless only the records differ from those of the wanted manifest."""
    path = previous / MANIFEST
    stored = read_json(path, remedy=f"remove {previous}") if path.exists() else {}
    barrier("compared previous")
    if jax.process_index() == 0 and any(stored.get(key) != wanted[key] for key in wanted.keys() - {"data", "items"}):
        shutil.rmtree(previous, ignore_errors=True)  # it may not exist
    barrier("removed previous")


def _is_temporary(path: Path) -> bool:
    return path.suffix in (TEMPORARY, ".partial")  # earlier versions wrote .partial files


def list_shards(out: Path, manifest: Mapping[str, Any], domains: Sequence[str] | None = None) -> list[Shard]:
    """Returns the shards of a folder of embeddings, of all domains by default."""
    shards = []
    for domain in domains or manifest["items"]:
        size, rows = manifest["items"][domain], manifest["rows"]
        starts = range(0, size, rows)
        for i, start in enumerate(starts):
            path = out / domain / f"{i:05}-of-{len(starts):05}.parquet"
            shards.append(Shard(domain, start, min(start + rows, size), path))
    return shards


def _write_shards(
    shards: list[Shard], load: Callable[[], LoadedRun], records: Records, form: Mapping[str, Any], previous: Path | None
) -> None:
    """Embeds and writes shards. All hosts embed each shard together, and take turns writing.

    The manifest `form` has width and dtype. The model is loaded if an item is not in the embeddings of `previous`.
    """
    for domain, source in records.items.items():
        own = [shard for shard in shards if shard.domain == domain]
        total = sum(shard.stop - shard.start for shard in own)
        known = _read_contents(previous, domain) if previous else {}
        with Progress(desc=f"embedded {domain}", total=total, unit="items") as progress:
            for number, shard in enumerate(own):
                rows = np.arange(shard.start, shard.stop)
                new = [row for row in rows.tolist() if not known or content_hash(source[row]) not in known]
                vectors: dict[int, np.ndarray] = {}
                progress.update(len(rows) - len(new))
                if new:
                    items = load().embed_rows(domain, new, progress.update)
                    if items.rows.tolist() != new:
                        raise ValueError(f"{shard.path}: {len(items.rows)} of {len(new)} rows were embedded")
                    vectors = dict(zip(new, shorten(items.vectors, form["width"]), strict=True))
                if number % jax.process_count() == jax.process_index():
                    # Read again, because embedded items have numbers for ids, and the first data.max_products.
                    read = [source[row] for row in rows.tolist()]
                    vectors |= {
                        row: known[content_hash(item)]
                        for row, item in enumerate(read, shard.start)
                        if row not in vectors
                    }
                    every = np.stack([vectors[row] for row in rows.tolist()])
                    write_shard(shard.path, domain, every, read, form["dtype"])


def content_hash(item: Item) -> bytes:
    """Identifies what a model may read of an item."""
    clean = "" if item.clean_text == item.text else f"\0{item.clean_text}"
    digest = hashlib.blake2b(f"{item.text}{clean}".encode(), digest_size=16)
    for frame in item.frames:
        digest.update(hashlib.blake2b(frame).digest())
    return digest.digest()


def _read_contents(folder: Path, domain: str) -> dict[bytes, np.ndarray]:
    """Returns content hash → embedding float32[E] of a domain; empty if earlier versions wrote the files."""
    known = {}
    for path in sorted((folder / domain).glob("*.parquet")):
        with open_parquet(path) as file:
            if "content" in file.schema_arrow.names:
                contents = file.read(columns=["content"])["content"].to_pylist()
                known |= zip(contents, _read_shard(path)[1], strict=True)
    return known


def write_shard(path: Path, domain: str, embeddings: np.ndarray, items: Sequence[Item], dtype: str) -> None:
    """Writes embeddings float32[N, E] of N items.

    The Parquet file has no compression, because embeddings are practically random.
    """
    encoded = encode(embeddings, dtype)
    vectors = pa.array(encoded.reshape(-1), TYPES[dtype])
    table = pa.table(
        {
            "domain": pa.array([domain] * len(items), pa.string()),
            "item_id": pa.array([item.own_id for item in items]),
            "product_ids": pa.array([item.own_products for item in items]),
            "embedding": pa.FixedSizeListArray.from_arrays(vectors, encoded.shape[1]),
            "content": pa.array(map(content_hash, items), pa.binary(16)),
        }
    )
    with atomic_write(path, durable=True) as file:
        dictionary: Any = ["domain"]  # pyarrow declares only bool
        pq.write_table(table, file, compression="none", use_dictionary=dictionary)


def shorten(vectors: np.ndarray, width: int) -> np.ndarray:
    """Returns the first values of embeddings float32[N, E], scaled to length 1."""
    return vectors if vectors.shape[1] == width else _scale(vectors[:, :width])


def _scale(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def encode(vectors: np.ndarray, dtype: str) -> np.ndarray:
    """Returns embeddings float32[N, E] as they are stored: [N, E], or uint8[N, E / 8]."""
    if dtype == "binary":
        return np.packbits(vectors @ mixing_rotation(vectors.shape[1]) > 0, axis=1)
    if dtype == "int8":
        vectors = np.rint(vectors * (127 / np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-12)))
    return vectors.astype(dtype)


def decode(stored: np.ndarray) -> np.ndarray:
    """Returns the embeddings float32[N, E] that `encode` has stored, up to rounding."""
    if stored.dtype == np.uint8:
        signs = 2 * np.unpackbits(stored, axis=1).astype(np.float32) - 1
        return _scale(signs @ mixing_rotation(signs.shape[1]).T)
    vectors = stored.astype(np.float32)
    return _scale(vectors) if stored.dtype == np.int8 else vectors


@functools.cache
def mixing_rotation(width: int) -> np.ndarray:
    """Returns the rotation float32[E, E] before signs are taken, always the same one for a width.

    The signs of principal axes with hardly any variance are noise; after the rotation, all signs say about as much.
    """
    rotation, triangle = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))
    return (rotation * np.sign(np.diag(triangle))).astype(np.float32)  # which makes the decomposition unique


def check_shards(shards: list[Shard]) -> None:
    """Raises ValueError listing the files that do not exist or whose footers have another number of rows."""
    if missing := [str(shard.path) for shard in shards if not shard.path.exists()]:
        raise ValueError(f"{len(missing)} files of embeddings are missing, finish embedding first: {missing[:10]}")
    rows = {shard: _count_rows(shard.path) for shard in shards}
    wanted = {shard: shard.stop - shard.start for shard in shards}
    if wrong := [f"{s.path} has {rows[s]} rows instead of {wanted[s]}" for s in shards if rows[s] != wanted[s]]:
        raise ValueError(f"rows are missing; remove these files and run the same command again: {'; '.join(wrong)}")


def _count_rows(path: Path) -> int:
    with open_parquet(path) as file:
        return file.metadata.num_rows


def read_manifest(out: Path) -> dict[str, Any]:
    """Reads the manifest of a folder of embeddings.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is invalid, or an earlier version wrote the embeddings in a way that is no longer read.
    """
    path = out / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"no {path}: name a folder that `./run.sh embed` wrote")
    manifest = read_json(path, keys=("items", "rows", "width"), remedy="remove the folder, or restore the file")
    if manifest.get("dtype") == "binary" and not manifest.get("rotated"):
        raise ValueError(f"an earlier version wrote the binary embeddings in {out}; remove the folder and embed again")
    return manifest


def read_vectors(out: Path, domain: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the item ids int64[n] or object[n] and embeddings float32[n, E] of each file of a domain, in row order."""
    for path in sorted((out / domain).glob("*.parquet")):
        yield _read_shard(path)


def _read_shard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with open_parquet(path) as file:
        table = file.read(columns=["item_id", "embedding"])
    flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return table["item_id"].to_numpy(), decode(flat.reshape(len(table), -1))


def read_item_ids(out: Path, domain: str) -> np.ndarray:
    """Returns the item ids int64[N] of a domain, or object[N] if they are texts, in row order."""
    columns = [np.zeros(0, np.int64)]
    for path in sorted((out / domain).glob("*.parquet")):
        with open_parquet(path) as file:
            columns.append(file.read(columns=["item_id"])["item_id"].to_numpy())
    return np.concatenate(columns)


def read_rows(out: Path, domain: str, rows: np.ndarray) -> np.ndarray:
    """Returns the embeddings float32[n, E] of some rows of a domain, reading only the files they are in."""
    manifest = read_manifest(out)
    vectors = np.zeros((len(rows), manifest["width"]), np.float32)
    shards = list_shards(out, manifest, (domain,))
    for number in np.unique(rows // manifest["rows"]):
        in_shard = rows // manifest["rows"] == number
        vectors[in_shard] = _read_shard(shards[number].path)[1][rows[in_shard] - shards[number].start]
    return vectors
