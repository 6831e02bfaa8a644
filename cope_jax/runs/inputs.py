"""Inputs of a run: tokenizer, classes, training and evaluation batches."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tokenizers.normalizers import Lowercase
from transformers import PreTrainedTokenizerFast

from cope_jax.data import collate
from cope_jax.data.groups import Groups
from cope_jax.data.images import RESIZES, EvalTransform, TrainTransform
from cope_jax.data.pipeline import Batches, eval_batches, train_batches
from cope_jax.data.records import InvalidItems, open_records, sample_texts
from cope_jax.data.tokenizer import (
    TextAugment,
    describe_texts,
    load_tokenizer,
    normalize,
    save_tokenizer,
    train_wordpiece,
)
from cope_jax.parallel.processes import barrier
from cope_jax.runs.config import RunConfig
from data_prep.common.domains import find_data_set, format_domains, read_domains

VOCABULARY_TEXTS = 200_000  # per domain; more would hardly change a vocabulary of 8,000
DESCRIBED_TEXTS = 500  # per domain, to describe how the tokenizer suits the texts


def check_domains(config: RunConfig, *, subset: bool = False) -> None:
    """Raises ValueError if the domains of the config are not those of its data set, or of other kinds.

    With `subset`, the data set may lack some of them.
    """
    folder, wanted = find_data_set(Path(config.data.data_dir)), config.data.domains
    found = read_domains(folder)
    fits = found.items() <= wanted.items() if subset else found == dict(wanted)
    if fits or not (folder / "product").is_dir():  # a missing data set is reported when it is opened
        return
    missing, unknown = (sorted(set(a) - set(b)) for a, b in ((found, wanted), (wanted, found)))
    problems = [f"{', '.join(names)} {what}" for names, what in ((missing, "missing"), (unknown, "unknown")) if names]
    raise ValueError(
        f"config.data.domains is {format_domains(wanted)}; expected those of {folder}, {format_domains(found)}"
        + (f" ({'; '.join(problems)})" if problems else "")
        + f"; use --config=configs/catalog.py:{folder}, or a config with these domains"
    )


def run_tokenizer(config: RunConfig, workdir: Path) -> PreTrainedTokenizerFast:
    """Loads the tokenizer in `tokenizer/` of a work directory; trains or copies it there at the start of a run.

    A run that uses no texts, or whose data have none, gets a tokenizer with special tokens only.

    Raises:
        FileNotFoundError: It is missing in a run that has checkpoints, or no tokenizer has the configured name.
    """
    folder = workdir / "tokenizer"
    if not folder.exists() and jax.process_index() == 0:
        if any((workdir / "checkpoints").glob("[0-9]*")):
            raise FileNotFoundError(
                f"{folder} is missing, but the model in {workdir / 'checkpoints'} was trained with it: copy it back, "
                "or start anew with another --workdir"
            )
        if config.data.tokenizer:
            tokenizer = load_tokenizer(config.data.tokenizer)
            tokenizer = normalize(tokenizer, Lowercase()) if config.data.lowercase else tokenizer
        else:
            texts = training_texts(config, VOCABULARY_TEXTS) if config.model.text_domains else []
            if config.model.text_domains and not texts:
                print(f"no item in split {config.data.train_split!r} has a text: the model learns from images alone")
            tokenizer = train_wordpiece(texts, config.data.vocab_size)
        save_tokenizer(tokenizer, folder)
    barrier("tokenizer")
    tokenizer = load_tokenizer(folder)
    if jax.process_index() == 0 and (report := describe_text_tokens(config, tokenizer)):
        print(report)
    return tokenizer


def training_texts(config: RunConfig, limit: int, domains: Sequence[str] | None = None) -> list[str]:
    """Returns at most `limit` texts of each of some or all domains of the training split, in their templates."""
    records, data = open_records(config.data.data_dir, config.data.train_split), config.data
    return [
        data.template(domain).replace("{}", text)
        for domain in domains or records.items
        for text in sample_texts(records, limit=limit, domains=(domain,), clean=data.clean_texts)
    ]


def describe_text_tokens(config: RunConfig, tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns `describe_texts` for the training texts; "" without any."""
    texts = training_texts(config, DESCRIBED_TEXTS, config.model.text_domains)
    return describe_texts(tokenizer, texts, config.data.text_length) if texts else ""


def training_classes(config: RunConfig) -> np.ndarray | None:
    """Returns the ids of all training products in the order of their classes; None if the classifier has no weight.

    Raises a ValueError if config.losses.classifier.classes is another number.
    """
    term, data = config.losses.classifier, config.data
    if not term.weight:
        return None
    ids = collate.class_ids(open_records(data.data_dir, data.train_split))
    if term.classes not in (0, len(ids)):
        raise ValueError(
            f"config.losses.classifier.classes is {term.classes}; expected {len(ids)}, the number of products in split "
            f"{data.train_split!r} of {data.data_dir}, or 0 to count them"
        )
    return ids


def training_batches(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    start_step: int,
    share: tuple[int, int] = (0, 1),
    class_ids: np.ndarray | None = None,
    features: Mapping[str, collate.ItemFeatures] | None = None,
    groups: Groups | None = None,
    invalid_items: InvalidItems | None = None,
) -> Batches:
    """Returns an endless iterator over the training batches from `start_step`.

    `share` is this process's share of each batch, from `batch_share`, `class_ids` the result of `training_classes`, and
    `groups` those of hard batches.
    With the outputs of frozen encoders for all items, `features`, these take the place of frames and texts.
    """
    data = config.data
    transform = TrainTransform(data.image_size, data.crop_scale, flip=data.flip, color_jitter=data.colour_jitter)
    augment = TextAugment(probability=data.text_noise) if data.text_noise else None
    host, hosts = share
    return train_batches(
        data_dir=data.data_dir,
        split=data.train_split,
        batch_size=config.train.batch_size,
        seed=config.seed,
        collators=[
            collate.FeatureCollator(domain, features[domain], data.max_products, entry)
            if features
            else _collator(config, tokenizer, domain, data.frames[domain], transform, augment, entry)
            for entry, domain in config.batch_entries.items()
        ],
        host=host,
        hosts=hosts,
        threads=data.threads,
        worker_processes=data.worker_processes,
        start_step=start_step,
        class_ids=class_ids,
        groups=groups,
        modality_dropout={domain: (frames, text) for domain, frames, text in data.modality_dropout},
        invalid_items=invalid_items,
    )


def training_batch_shapes(config: RunConfig) -> dict[str, Any]:
    """Returns the shapes and dtypes of a global training batch."""
    B, data = config.train.batch_size, config.data

    def shape(*sizes: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((B, *sizes), dtype)

    batch: dict[str, Any] = {"product_id": shape(), "bad_items": shape()}
    for entry, domain in config.batch_entries.items():
        T = data.frames[domain]
        batch[entry] = {
            "frames": shape(T, data.image_size, data.image_size, 3, dtype=np.uint8),
            "frame_mask": shape(T, dtype=bool),
            "text": shape(data.text_length),
            "present": shape(dtype=bool),
            "products": shape(data.max_products),
        }
        if config.finetune.method == "frozen":
            texts = config.model.text.output_width or config.model.text.width
            widths = config.model.vision.output_width, texts if domain in config.model.text_domains else 1
            vision, text = (shape(width, dtype=np.float32) for width in widths)
            kept = {key: batch[entry][key] for key in ("present", "products")}
            batch[entry] = kept | {"features": collate.ItemFeatures(vision, text, shape(2, dtype=bool))}
        if config.losses.classifier.weight:
            batch["product_class"] = shape()
            batch[entry]["classes"] = shape(data.max_products)
    return batch


def batch_bytes(config: RunConfig) -> int:
    """Returns the size of a global training batch in bytes."""
    return sum(prod(array.shape) * array.dtype.itemsize for array in jax.tree.leaves(training_batch_shapes(config)))


def evaluation_batches(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    domain: str,
    batch_size: int,
    rows: Sequence[int] | None = None,
    invalid_items: InvalidItems | None = None,
) -> Iterator[Any]:
    """Returns an iterator over this process's share of a domain's evaluation batches; see `eval_batches`."""
    data = config.data
    transform = EvalTransform(data.image_size, RESIZES[data.resize])
    return eval_batches(
        data_dir=data.data_dir,
        split=data.eval_split,
        batch_size=batch_size,
        collator=_collator(config, tokenizer, domain, config.eval.frames[domain], transform),
        rows=rows,
        host=jax.process_index(),
        hosts=jax.process_count(),
        threads=data.threads,
        invalid_items=invalid_items,
    )


def check_batch_sizes(config: RunConfig, mesh: Mesh) -> None:
    """Raises a ValueError if a training batch cannot be divided among the devices that share it."""
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    sizes = {"train.batch_size": config.train.batch_size, "train.microbatch": config.train.microbatch}
    for key, size in sizes.items():
        if size % shares:
            raise ValueError(
                f"config.{key} is {size}; expected a multiple of {shares}, the number of devices that share a batch "
                f"(config.mesh.data × config.mesh.fsdp), such as {-(-size // shares) * shares}"
            )


def _collator(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerFast,
    domain: str,
    T: int,
    transform: TrainTransform | EvalTransform,
    augment: TextAugment | None = None,
    entry: str = "",
) -> collate.Collator:
    names = ("text_length", "max_products", "short_clips", "frame_choice", "clean_texts")
    settings: dict[str, Any] = {name: getattr(config.data, name) for name in names}
    settings |= {"kind": config.data.domains[domain], "template": config.data.template(domain)}
    return collate.Collator(domain, T, transform, tokenizer, augment=augment, entry=entry, **settings)
