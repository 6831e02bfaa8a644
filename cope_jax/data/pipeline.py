"""Grain pipelines: training batches of products, evaluation batches of items.

Pipelines carry indices up to their last step, in which one call reads, decodes and tokenizes a whole batch. Grain's
threads make several batches at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grain
import numpy as np

from cope_jax.data.collate import Collator, Example, check_id, to_classes
from cope_jax.data.images import limit_opencv_threads
from cope_jax.data.records import InvalidItemError, InvalidItems, Product, Records, open_records
from data_prep.common.domains import DOMAINS

EPOCHS = 1 << 32  # for ever; Grain's own unlimited repetition cannot be counted in batches of one
Batch = dict[str, Any]  # arrays, and for each domain a dict of arrays


def train_batches(
    *,
    data_dir: str | Path,
    split: str,
    batch_size: int,
    seed: int,
    collators: Sequence[Collator],
    host: int = 0,
    hosts: int = 1,
    threads: int = 2,
    start_step: int = 0,
    class_ids: np.ndarray | None = None,
    invalid_items: InvalidItems | None = None,
) -> grain.DatasetIterator[Batch]:
    """Yields training batches without end.

    An example is a product with a random item of each of its domains. Each epoch has each product once, in a new random
    order, and epochs follow without a break. Global batch s is a pure function of (seed, s) and the records: hosts take
    consecutive slices of it, and hosts, threads and start_step do not change it. An item that cannot be read is
    replaced by the next of the same product and domain, and a product by the next product.

    Args:
        data_dir, split: Array records, see `open_records`.
        batch_size: Size of the global batch, a multiple of `hosts`.
        collators: One for each domain in the batches.
        host, hosts: Which slice of the global batch to return.
        threads: Batches made at once, and number of batches read ahead; with 0, batches are made when requested.
        start_step: Step of the first batch.
        class_ids: From `collate.class_ids`, to add the classes of products.
        invalid_items: Collects records and images that cannot be read.

    Returns an iterator of batches as described in `cope_jax.data`; `close()` stops its threads.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0")
    share = _host_slice(batch_size, host, hosts)
    records = open_records(data_dir, split)
    if not len(records.products):
        raise ValueError(f"split {split!r} of {data_dir} has no products to train on")
    pipeline = (
        grain.MapDataset.range(len(records.products))
        .seed(seed)
        .shuffle()  # before repeat: each epoch has its own permutation
        .repeat(EPOCHS)
        .map_with_index(lambda number, row: (number, row))  # after repeat: numbers of examples are unique
        .batch(batch_size)  # only of indices, so it costs nothing to take the host's slice afterwards
        .map(lambda indices: tuple(column[share] for column in indices))
        .map(_TrainLoader(records, collators, seed, class_ids, invalid_items or InvalidItems()))
    )
    iterator = _start(pipeline, threads)
    iterator.set_state({"next_index": start_step})
    return iterator


def eval_batches(
    *,
    data_dir: str | Path,
    split: str,
    batch_size: int,
    collator: Collator,
    rows: Sequence[int] | None = None,
    host: int = 0,
    hosts: int = 1,
    threads: int = 2,
    invalid_items: InvalidItems | None = None,
) -> grain.DatasetIterator[Batch]:
    """Yields each item of the collator's domain once, in row order, with the frames at the centers of their segments.

    Arguments are as for `train_batches`, except `rows`, which selects items and their order, and `invalid_items`:
    without it, an item that cannot be read is an error; with it, the item becomes padding. Hosts take consecutive
    slices of each global batch; all yield the same number of batches, the last of which is padded with examples that
    are not present.

    Returns an iterator of {"item_id": i64[B], "row": i64[B], "frame_count": i32[B], domain: …}. For padding, item_id
    and row are −1. frame_count is the number of frames of the whole item.
    """
    share = _host_slice(batch_size, host, hosts)
    records = open_records(data_dir, split)
    wanted = np.arange(len(records.items[collator.domain])) if rows is None else np.asarray(rows, np.int64)

    def rows_of(batch: int) -> np.ndarray:
        taken = wanted[batch * batch_size : (batch + 1) * batch_size]
        return np.pad(taken, (0, batch_size - len(taken)), constant_values=-1)[share]

    loader = _EvalLoader(records, collator, invalid_items)
    return _start(grain.MapDataset.range(-(-len(wanted) // batch_size)).map(rows_of).map(loader), threads)


@dataclass(frozen=True)
class _TrainLoader:
    """Makes a batch from numbers of examples and rows of products.

    The random numbers of an example depend only on (seed, number, domain): they are the same on any host and thread,
    and for any set of domains.
    """

    records: Records
    collators: Sequence[Collator]
    seed: int
    class_ids: np.ndarray | None
    invalid_items: InvalidItems

    def __call__(self, indices: tuple[np.ndarray, np.ndarray]) -> Batch:
        numbers, rows = indices
        invalid = np.zeros(len(rows), np.int32)

        def on_invalid(b: int, error: InvalidItemError) -> None:
            invalid[b] += 1
            self.invalid_items.add(error)

        products = [self._product(int(row), partial(on_invalid, b)) for b, row in enumerate(rows)]
        product_id = np.array([check_id(product.product_id) for product in products], np.int32)
        batch: Batch = {"product_id": product_id, "bad_items": invalid}
        for collate in self.collators:
            candidates = [
                self._draw(collate.domain, int(number), product, partial(on_invalid, b))
                for b, (number, product) in enumerate(zip(numbers, products, strict=True))
            ]
            batch[collate.domain] = arrays = collate(candidates, on_invalid)
            if self.class_ids is not None:
                arrays["classes"] = to_classes(arrays["products"], self.class_ids)
        if self.class_ids is not None:
            batch["product_class"] = to_classes(product_id, self.class_ids)
        return batch

    def _product(self, row: int, on_invalid: Callable[[InvalidItemError], None]) -> Product:
        """Reads a product, or the next one that can be read."""
        products = self.records.products
        for offset in range(len(products) - 1):
            try:
                return products[(row + offset) % len(products)]
            except InvalidItemError as error:
                on_invalid(error)
        return products[(row - 1) % len(products)]

    def _draw(
        self, domain: str, number: int, product: Product, on_invalid: Callable[[InvalidItemError], None]
    ) -> Iterator[Example]:
        """Yields a random item of the product, then the items that may replace it; nothing without the domain."""
        rows, items, first = product.rows[domain], self.records.items[domain], 0
        for attempt in range(len(rows)):
            rng = np.random.default_rng([self.seed, number, DOMAINS.index(domain), *([attempt] if attempt else [])])
            if not attempt:
                first = rng.integers(len(rows))
            row = int(rows[(first + attempt) % len(rows)])
            try:
                item = items[row]
            except InvalidItemError as error:
                on_invalid(error)
            else:
                yield Example(item, product.product_id, rng, partial(items.place, row))


@dataclass(frozen=True)
class _EvalLoader:
    """Makes a batch from rows, −1 for padding."""

    records: Records
    collate: Collator
    invalid_items: InvalidItems | None

    def __call__(self, rows: np.ndarray) -> Batch:
        domain, rows = self.collate.domain, rows.copy()
        items = self.records.items[domain]
        examples: list[list[Example]] = [[] for _ in rows]

        def on_invalid(b: int, error: InvalidItemError) -> None:
            if self.invalid_items is None:
                raise error
            self.invalid_items.add(error)
            rows[b], examples[b] = -1, []

        for b, row in enumerate(rows.tolist()):
            try:
                examples[b] = [Example(items[row], place=partial(items.place, row))] if row >= 0 else []
            except InvalidItemError as error:
                on_invalid(b, error)
        arrays = self.collate(examples, on_invalid)
        return {
            "item_id": np.array([own[0].item.item_id if own else -1 for own in examples], np.int64),
            "row": rows,
            "frame_count": np.array([len(own[0].item.frames) if own else 0 for own in examples], np.int32),
            domain: arrays,
        }


def _host_slice(batch_size: int, host: int, hosts: int) -> slice:
    """Returns a host's slice of a global batch."""
    if not 0 <= host < hosts:
        raise ValueError(f"host is {host} of {hosts}; hosts count from 0")
    if batch_size < 1 or batch_size % hosts:
        raise ValueError(f"batch_size {batch_size} is not a multiple of the number of hosts {hosts}")
    size = batch_size // hosts
    return slice(host * size, (host + 1) * size)


def _start(pipeline: grain.MapDataset[Batch], threads: int) -> grain.DatasetIterator[Batch]:
    limit_opencv_threads()
    # Read one batch ahead per thread: fewer would leave threads idle, more would only take memory.
    return iter(pipeline.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)))
