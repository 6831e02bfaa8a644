"""Grain pipelines: training batches of products, evaluation batches of items.

Pipelines carry indices up to their last step, in which one call reads, decodes and tokenizes a whole batch. All threads
work on the rows of one batch, and on those of the next when they run out of rows, so that few batches are in memory.
"""

import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grain
import numpy as np
from absl import flags

from cope_jax.data.collate import (
    Collator,
    Example,
    FeatureCollator,
    Threads,
    check_id,
    drop_modalities,
    to_classes,
)
from cope_jax.data.groups import Groups
from cope_jax.data.images import limit_opencv_threads
from cope_jax.data.records import InvalidItemError, InvalidItems, Product, Records, open_records
from data_prep.common.domains import DOMAINS, second_item
from data_prep.common.process_pool import follow_parent

EPOCHS = 1 << 32  # forever; Grain cannot count the batches of one of its own unlimited repetition
Batch = dict[str, Any]  # arrays, and for each domain a dict of arrays
READ_AHEAD = 2  # batches: one may be ready while the threads make another
SMALL_IMAGE = 8_192  # bytes; the demo's have 2,500, photos of 256 px 15,000
READ_AHEAD_PER_PROCESS = 3  # one that is being made, one in the queue of the process, and one that Grain takes from it


class Batches(Iterator[Batch]):
    """Batches in order; `close` stops what makes them. At most `read_ahead` batches are in memory before their turn."""

    def __init__(self, dataset: grain.IterDataset[Batch], threads: Threads, read_ahead: int) -> None:
        self.batches, self.threads, self.read_ahead = iter(dataset), threads, read_ahead
        self.started = False

    def __next__(self) -> Batch:
        try:
            if self.started:
                return next(self.batches)
            with _blocked_signals():
                self.started = True
                return next(self.batches)
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise ChildProcessError(
                "a process that makes batches was killed, probably because memory ran out; lower "
                "config.data.worker_processes and run the same command again: it resumes"
            ) from error

    def close(self) -> None:
        """Stops threads and processes; those of a batch that is being made end a little later."""
        self.batches.close()
        self.threads.close()


def train_batches(
    *,
    data_dir: str | Path,
    split: str,
    batch_size: int,
    seed: int,
    collators: Sequence[Collator | FeatureCollator],
    host: int = 0,
    hosts: int = 1,
    threads: int = 2,
    worker_processes: int = 0,
    start_step: int = 0,
    class_ids: np.ndarray | None = None,
    groups: Groups | None = None,
    modality_dropout: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    invalid_items: InvalidItems | None = None,
) -> Batches:
    """Yields training batches without end.

    An example is a product with a random item of each of its domains. Each epoch has each product once, in a new random
    order, and epochs follow without a break. Global batch s is a pure function of (seed, s) and the records: hosts take
    consecutive slices of it, and hosts, threads, processes and start_step do not change it. An item that cannot be read
    is replaced by the next of the same product and domain, and a product by the next product.

    Args:
        data_dir: Array records, see `open_records`.
        split: Their split.
        batch_size: Size of the global batch, a multiple of `hosts`.
        collators: One for each entry of the batches: a domain, or a second item of it.
        host: Which slice of the global batch to return.
        hosts: Number of slices.
        threads: Number of threads; with 0, batches are made when requested.
        worker_processes: Processes that make batches in turns and share `threads` among them; 0 makes them in this one.
        start_step: Step of the first batch.
        class_ids: From `collate.class_ids`, to add the classes of products.
        groups: Groups of products to mix into each global batch, which then also is a function of them.
        modality_dropout: Probabilities by domain, see `drop_modalities`.
        invalid_items: Collects records and images that cannot be read.

    Returns an iterator of batches as described in `cope_jax.data`.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0")
    share = _host_slice(batch_size, host, hosts)
    records = _open_records(data_dir, split, collators)
    if not len(records.products):
        raise ValueError(f"split {split!r} of {data_dir} has no products to train on")
    shared = _threads_for_rows(records, [collate.domain for collate in collators], threads // max(1, worker_processes))
    indices = (
        grain.MapDataset.range(len(records.products))
        .seed(seed)
        .shuffle()  # before repeat: each epoch has its own permutation
        .repeat(EPOCHS)
        .map_with_index(lambda number, row: (number, row))  # after repeat: numbers of examples are unique
        .batch(batch_size)  # only of indices, so it costs nothing to take the host's slice afterwards
        .map(lambda indices: (indices[0][share], (groups.mix(indices[1]) if groups else indices[1])[share]))
    )
    loader = _TrainLoader(records, collators, seed, class_ids, shared, modality_dropout)
    pipeline = indices[start_step:].map(loader).to_iter_dataset(_read_options(0 if worker_processes else threads))
    if worker_processes:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its flags, outside of a command as well
        pipeline = pipeline.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=worker_processes, per_worker_buffer_size=1), _start_worker
        )
    limit_opencv_threads()
    counter = invalid_items or InvalidItems()

    def count(loaded: tuple[Batch, list[InvalidItemError]]) -> Batch:
        batch, errors = loaded
        for error in errors:
            counter.add(error)
        return batch

    read_ahead = READ_AHEAD_PER_PROCESS * worker_processes or (READ_AHEAD if threads else 0)
    return Batches(pipeline.map(count), shared, read_ahead)


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
) -> Batches:
    """Yields each item of the collator's domain once, in row order, with the frames at the centers of their segments.

    Arguments are as for `train_batches`, except `rows`, which selects items and their order, and `invalid_items`:
    without it, an item that cannot be read is an error; with it, the item becomes padding. Hosts take consecutive
    slices of each global batch; all yield the same number of batches, the last of which is padded with examples that
    are not present.

    Returns an iterator of {"item_id": i64[B], "row": i64[B], "frame_count": i32[B], domain: …}. For padding, item_id
    and row are −1. frame_count is the number of frames of the whole item.
    """
    share = _host_slice(batch_size, host, hosts)
    records = _open_records(data_dir, split, [collator])
    wanted = np.arange(len(records.items[collator.domain])) if rows is None else np.asarray(rows, np.int64)

    def rows_of(batch: int) -> np.ndarray:
        taken = wanted[batch * batch_size : (batch + 1) * batch_size]
        return np.pad(taken, (0, batch_size - len(taken)), constant_values=-1)[share]

    shared = _threads_for_rows(records, [collator.domain], threads)
    loader = _EvalLoader(records, collator, invalid_items, shared)
    pipeline = grain.MapDataset.range(-(-len(wanted) // batch_size)).map(rows_of).map(loader)
    limit_opencv_threads()
    return Batches(pipeline.to_iter_dataset(_read_options(threads)), shared, READ_AHEAD if threads else 0)


@dataclass(frozen=True)
class _TrainLoader:
    """Makes a batch from numbers of examples and rows of products; also returns the errors of invalid items.

    The random numbers of an example depend only on (seed, number, domain): they are the same on any host and thread,
    and for any set of domains.
    """

    records: Records
    collators: Sequence[Collator | FeatureCollator]
    seed: int
    class_ids: np.ndarray | None
    threads: Threads
    modality_dropout: Mapping[str, tuple[float, float]]

    def __call__(self, indices: tuple[np.ndarray, np.ndarray]) -> tuple[Batch, list[InvalidItemError]]:
        numbers, rows = indices
        invalid, errors = np.zeros(len(rows), np.int32), []

        def on_invalid(b: int, error: InvalidItemError) -> None:
            invalid[b] += 1
            errors.append(error)

        products = [self._product(int(row), partial(on_invalid, b)) for b, row in enumerate(rows)]
        product_id = np.array([check_id(product.product_id) for product in products], np.int32)
        batch: Batch = {"product_id": product_id, "bad_items": invalid}
        for collate in self.collators:
            candidates = [
                self._draw(collate, int(number), product, partial(on_invalid, b))
                for b, (number, product) in enumerate(zip(numbers, products, strict=True))
            ]
            batch[collate.entry or collate.domain] = arrays = collate(candidates, on_invalid, self.threads)
            if probabilities := self.modality_dropout.get(collate.domain):
                purpose = zlib.crc32(f"{collate.entry or collate.domain}.dropout".encode())
                drop_modalities(arrays, probabilities, [[self.seed, int(number), purpose] for number in numbers])
            if self.class_ids is not None:
                arrays["classes"] = to_classes(arrays["products"], self.class_ids)
        if self.class_ids is not None:
            batch["product_class"] = to_classes(product_id, self.class_ids)
        return batch, errors

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
        self,
        collate: Collator | FeatureCollator,
        number: int,
        product: Product,
        on_invalid: Callable[[InvalidItemError], None],
    ) -> Iterator[Example]:
        """Yields a random item of the product, then the items that may replace it; nothing without the domain.

        If a batch has two items of the domain, the product's items are divided at random between both.
        """
        domain, entry = collate.domain, collate.entry or collate.domain
        rows, items, first = product.rows[domain], self.records.items[domain], 0
        paired = any(other.domain == domain and other is not collate for other in self.collators)
        if paired:
            order = np.random.default_rng([self.seed, number, zlib.crc32(second_item(domain).encode())])
            rows = order.permutation(rows)[int(entry != domain) :: 2]
        key = DOMAINS.index(entry) if entry in DOMAINS else zlib.crc32(entry.encode()) + len(DOMAINS)
        for attempt in range(len(rows)):
            rng = np.random.default_rng([self.seed, number, key, *([attempt] if attempt else [])])
            if not attempt:
                first = rng.integers(len(rows))
            row = int(rows[(first + attempt) % len(rows)])
            try:
                item = items[row]
            except InvalidItemError as error:
                on_invalid(error)
            else:
                yield Example(item, product.product_id, rng, partial(items.place, row), row)


@dataclass(frozen=True)
class _EvalLoader:
    """Makes a batch from rows, −1 for padding."""

    records: Records
    collate: Collator
    invalid_items: InvalidItems | None
    threads: Threads

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
        arrays = self.collate(examples, on_invalid, self.threads)
        return {
            "item_id": np.array([own[0].item.item_id if own else -1 for own in examples], np.int64),
            "row": rows,
            "frame_count": np.array([len(own[0].item.frames) if own else 0 for own in examples], np.int32),
            domain: arrays,
        }


def _open_records(data_dir: str | Path, split: str, collators: Sequence[Collator | FeatureCollator]) -> Records:
    """Opens records; raises ValueError if they lack the domain of a collator."""
    records = open_records(data_dir, split)
    if unknown := [collate.domain for collate in collators if collate.domain not in records.items]:
        raise ValueError(f"{data_dir} has no domain {', '.join(unknown)}; it has {', '.join(records.items)}")
    return records


def _host_slice(batch_size: int, host: int, hosts: int) -> slice:
    """Returns a host's slice of a global batch."""
    if not 0 <= host < hosts:
        raise ValueError(f"host is {host} of {hosts}; hosts count from 0")
    if batch_size < 1 or batch_size % hosts:
        raise ValueError(f"batch_size {batch_size} is not a multiple of the number of hosts {hosts}")
    size = batch_size // hosts
    return slice(host * size, (host + 1) * size)


def _read_options(threads: int) -> grain.ReadOptions:
    """Returns how many batches Grain makes at once and holds."""
    return grain.ReadOptions(num_threads=min(threads, READ_AHEAD), prefetch_buffer_size=READ_AHEAD if threads else 0)


def _threads_for_rows(records: Records, domains: Sequence[str], threads: int) -> Threads:
    """Returns threads for the rows of batches: one for small images, none if the thread that makes a batch is to work.

    A small image takes longer in Python than in C, and threads only wait for the GIL. More than one thread for
    rows then costs a sixth of the speed, 16 cost half (row "a second thread" of docs/experiments.md).
    """
    if threads < 2:
        return Threads(0)
    sizes = []
    for domain in domains:
        with suppress(InvalidItemError, IndexError, ValueError):
            sizes.append(len(records.items[domain][0].frames[0]))
    return Threads(1 if sizes and max(sizes) < SMALL_IMAGE else threads)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Blocks SIGINT and SIGTERM in the threads and processes that start meanwhile; the caller handles them later.

    Both signals often reach a whole group of processes, but only the training process can stop after a step.
    """
    resource_tracker.ensure_running()  # a process of its own, whose start would unblock them
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _start_worker(index: int, count: int) -> None:
    """Makes a process that makes batches end with the training process, even if that is killed.

    Shared memory is registered for removal just after its creation; the process must not end in between.
    """
    creation = threading.Lock()

    class SharedMemory(shared_memory.SharedMemory):
        def __init__(self, *args, **kwargs) -> None:
            with creation:
                super().__init__(*args, **kwargs)

    shared_memory.SharedMemory = SharedMemory
    follow_parent(creation)
    limit_opencv_threads()
