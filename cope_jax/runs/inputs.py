"""From a config to what feeds the model: tokenizer, training batches, evaluation batches."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from cope_jax.data.bad_items import Faults
from cope_jax.data.classes import product_ids
from cope_jax.data.images import EvalView, TrainView
from cope_jax.data.pipeline import eval_batches, train_batches
from cope_jax.data.records import open_records, sample_texts
from cope_jax.data.tokenizer import TextAugment, load_tokenizer, save_tokenizer, train_wordpiece
from cope_jax.parallel.processes import barrier
from cope_jax.runs.config import RunConfig

VOCABULARY_TEXTS = 200_000  # a domain; more would not change the vocabulary of 8,000 much


def run_tokenizer(config: RunConfig, workdir: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a run, from `tokenizer/` of its work directory; made or copied there at the first start."""
    folder = workdir / "tokenizer"
    if not folder.exists() and jax.process_index() == 0:
        if config.data.tokenizer:
            tokenizer = load_tokenizer(config.data.tokenizer)
        else:
            records = open_records(config.data.data_dir, config.data.train_split)
            tokenizer = train_wordpiece(sample_texts(records, limit=VOCABULARY_TEXTS), config.data.vocab_size)
        save_tokenizer(tokenizer, folder)
    barrier("tokenizer")
    return load_tokenizer(folder)


def training_classes(config: RunConfig) -> np.ndarray | None:
    """The ids of all training products in the order of their classes, where the classifier has a weight; else None.

    Raises:
        ValueError: config.losses.classifier.classes is another number.
    """
    term = config.losses.classifier
    if not term.weight:
        return None
    ids = product_ids(open_records(config.data.data_dir, config.data.train_split))
    if term.classes not in (0, len(ids)):
        raise ValueError(
            f"config.losses.classifier.classes is {term.classes}, but the split {config.data.train_split!r} of "
            f"{config.data.data_dir} has {len(ids)} products; set it to that, or to 0 to count them"
        )
    return ids


def training_batches(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    start_step: int,
    share: tuple[int, int] = (0, 1),
    class_ids: np.ndarray | None = None,
    faults: Faults | None = None,
) -> Iterator[Any]:
    """Training batches from `start_step` on, without end.

    Args:
        share: which share of each batch, and how many there are, as `batch_share` tells.
        class_ids: as `training_classes` gives them.
        faults: takes note of what cannot be read.
    """
    data = config.data
    host, hosts = share
    return train_batches(
        data_dir=data.data_dir,
        split=data.train_split,
        batch_size=config.train.batch_size,
        seed=config.seed,
        frames=asdict(data.frames),
        view=TrainView(size=data.image_size, scale=data.crop_scale, flip=data.flip, color_jitter=data.colour_jitter),
        text_length=data.text_length,
        tokenizer=tokenizer,
        max_products=data.max_products,
        short_clips=data.short_clips,
        augment=TextAugment(probability=data.text_noise) if data.text_noise else None,
        host=host,
        hosts=hosts,
        threads=data.threads,
        start_step=start_step,
        class_ids=class_ids,
        faults=faults,
    )


def training_batch_shapes(config: RunConfig) -> dict[str, Any]:
    """Shapes and types of a global training batch, without data."""
    B, data = config.train.batch_size, config.data

    products = jax.ShapeDtypeStruct((B, data.max_products), np.int32)
    classified = bool(config.losses.classifier.weight)

    def leaf(T: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "frames": jax.ShapeDtypeStruct((B, T, data.image_size, data.image_size, 3), np.uint8),
            "frame_mask": jax.ShapeDtypeStruct((B, T), bool),
            "text": jax.ShapeDtypeStruct((B, data.text_length), np.int32),
            "present": jax.ShapeDtypeStruct((B,), bool),
            "products": products,
            **({"classes": products} if classified else {}),
        }

    names = ("product_id", "bad_items", *(("product_class",) if classified else ()))
    leaves = {domain: leaf(T) for domain, T in asdict(data.frames).items()}
    return {**{name: jax.ShapeDtypeStruct((B,), np.int32) for name in names}, **leaves}


def evaluation_batches(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    domain: str,
    batch_size: int,
    rows: Sequence[int] | None = None,
    faults: Faults | None = None,
) -> Iterator[Any]:
    """This host's share of the items of a domain of the evaluation split: of some rows, or of all in row order.

    Items that cannot be read are left out where `faults` take note of them.
    """
    data = config.data
    return eval_batches(
        data_dir=data.data_dir,
        split=data.eval_split,
        domain=domain,
        batch_size=batch_size,
        frames=config.eval.frames[domain],
        view=EvalView(size=data.image_size),
        text_length=data.text_length,
        tokenizer=tokenizer,
        max_products=data.max_products,
        short_clips=data.short_clips,
        rows=rows,
        host=jax.process_index(),
        hosts=jax.process_count(),
        threads=data.threads,
        faults=faults,
    )


def check_batch_sizes(config: RunConfig, mesh: Mesh) -> None:
    """Raises a ValueError where a batch does not divide over the devices that share it."""
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    sizes = {
        "train.batch_size": config.train.batch_size,
        "train.microbatch": config.train.microbatch,
        "eval.batch_size": config.eval.batch_size,
    }
    for key, size in sizes.items():
        if size % shares:
            raise ValueError(
                f"config.{key} {size} is no multiple of the {shares} devices that share it (mesh.data × mesh.fsdp); "
                f"make it {-(-size // shares) * shares}, say, or change config.mesh"
            )
