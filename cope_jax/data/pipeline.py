"""The Grain chains: training batches of products, evaluation batches of items.

A chain carries indices up to its last step, where one call reads, decodes and tokenises a whole batch into
its arrays; Grain's threads make several batches at once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grain
import numpy as np
from transformers import PreTrainedTokenizerFast

from cope_jax.data.bad_items import BadItem, Faults
from cope_jax.data.classes import to_classes
from cope_jax.data.collate import Example, LeafMaker, checked_id
from cope_jax.data.images import EvalView, TrainView, limit_opencv_threads
from cope_jax.data.records import Product, Records, open_records
from cope_jax.data.tokenizer import TextAugment
from cope_jax.domains import DOMAINS

Batch = dict[str, np.ndarray | dict[str, np.ndarray]]


def train_batches(
    *,
    data_dir: str | Path,
    split: str,
    batch_size: int,
    seed: int,
    frames: Mapping[str, int],
    view: TrainView | EvalView,
    text_length: int,
    tokenizer: PreTrainedTokenizerFast,
    max_products: int = 4,
    short_clips: str = "repeat",
    augment: TextAugment | None = None,
    host: int = 0,
    hosts: int = 1,
    threads: int = 2,
    start_step: int = 0,
    class_ids: np.ndarray | None = None,
    faults: Faults | None = None,
) -> grain.DatasetIterator[Batch]:
    """Endless training batches from `start_step` on; of each global batch, this host's slice.

    An example is a product with one random item of each domain it has. Every epoch holds each product once,
    in a new random order; epochs follow without a break, so that only a batch across their border can hold a
    product twice. Global batch s is a pure function of (seed, s): hosts take consecutive slices of it, and
    neither hosts nor threads nor start_step change it.

    Args:
      data_dir, split: array records, see `open_records`.
      batch_size: B of the global batch; a host's share is batch_size / hosts.
      seed: at least 0.
      frames: T of each domain that the batches shall have, e.g. {"page": 1, "video": 4, "live": 4}.
      view: frames of a clip → square frames.
      text_length: L.
      tokenizer: as `load_tokenizer` or `train_wordpiece` give it.
      max_products: M; of an item's products the smallest ids are kept, the drawn one always among them.
      short_clips: clips with fewer than T frames, "repeat" or "mask" (see `frames.choose`).
      augment: noise for the texts of all domains, or None.
      host, hosts: which slice of the global batch.
      threads: batches made at once, and as many held ready; 0 makes each when asked for it.
      start_step: step of the first batch.
      class_ids: as `classes.product_ids` gives them; batches then tell the classes of products.
      faults: takes note of records and images that cannot be read. Another item of the same product and domain stands
        for such a one, the next of its rows that can be read, so that batch s still is a function of (seed, s) and
        the records; where there is none, the example lacks the domain. For a product it is the next product.

    Returns:
      Iterator of {"product_id": i32[B], "bad_items": i32[B], domain: leaf, …}, see `cope_jax.data`, with class_ids
      also "product_class": i32[B] and in every leaf "classes": i32[B, M]. `close()` stops its threads.

    Raises:
      FileNotFoundError, ValueError: from `open_records`.
      ValueError: batch_size is no multiple of hosts; an unknown domain or T < 1; a negative seed; no
        products. While iterating: a product id of more than 32 bits, no product whose record can be read.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0")
    share = _host_slice(batch_size, host, hosts)
    frames = _checked_frames(frames)
    records = open_records(data_dir, split)
    if not len(records.products):
        raise ValueError(f"split {split!r} of {data_dir} has no products to train on")
    makers = {
        domain: LeafMaker(domain, T, view, text_length, tokenizer, max_products, short_clips, augment)
        for domain, T in frames.items()
    }
    chain = (
        grain.MapDataset.range(len(records.products))
        .seed(seed)
        .shuffle()  # before repeat: every epoch is a permutation of its own
        .repeat(None)
        .map_with_index(lambda number, row: (number, row))  # after repeat: an example's number never returns
        .batch(batch_size)  # of indices only, so cutting out the host's share costs nothing
        .map(lambda indices: tuple(column[share] for column in indices))
        .map(_TrainLoader(records, makers, seed, class_ids, faults or Faults()))
    )
    iterator = _start(chain, threads)
    iterator.set_state({"next_index": start_step})
    return iterator


def eval_batches(
    *,
    data_dir: str | Path,
    split: str,
    domain: str,
    batch_size: int,
    frames: int,
    view: EvalView,
    text_length: int,
    tokenizer: PreTrainedTokenizerFast,
    max_products: int = 4,
    short_clips: str = "repeat",
    rows: Sequence[int] | None = None,
    host: int = 0,
    hosts: int = 1,
    threads: int = 2,
    faults: Faults | None = None,
) -> grain.DatasetIterator[Batch]:
    """Every item of a domain once, in row order, with the frames at the middles of their segments.

    The last batch is filled up with examples that are not present. Hosts take consecutive slices of each
    global batch and all yield the same number. Arguments and errors as in `train_batches`; frames is the
    domain's T; rows are the items to yield, in this order, all of them if None. An item that cannot be read is an
    error; with faults, which take note of it, it becomes an example that fills up.

    Returns:
      Iterator of {"item_id": i64[B], "row": i64[B], "frame_count": i32[B], domain: leaf}. item_id and row are −1
      where an example fills up; frame_count is the number of frames that the item has.
    """
    share = _host_slice(batch_size, host, hosts)
    T = _checked_frames({domain: frames})[domain]
    records = open_records(data_dir, split)
    wanted = np.arange(len(records.items[domain])) if rows is None else np.asarray(rows, np.int64)

    def rows_of(batch: int) -> np.ndarray:
        taken = wanted[batch * batch_size : (batch + 1) * batch_size]
        return np.pad(taken, (0, batch_size - len(taken)), constant_values=-1)[share]

    maker = LeafMaker(domain, T, view, text_length, tokenizer, max_products, short_clips)
    chain = grain.MapDataset.range(-(-len(wanted) // batch_size)).map(rows_of).map(_EvalLoader(records, maker, faults))
    return _start(chain, threads)


@dataclass(frozen=True)
class _TrainLoader:
    """(example numbers, product rows) → the batch.

    The draws of an example come from (seed, number, domain) alone: the same on any host and thread, and for
    any set of domains.
    """

    records: Records
    makers: Mapping[str, LeafMaker]
    seed: int
    class_ids: np.ndarray | None
    faults: Faults

    def __call__(self, indices: tuple[np.ndarray, np.ndarray]) -> Batch:
        numbers, rows = indices
        bad_items = np.zeros(len(rows), np.int32)

        def on_fault(b: int, fault: BadItem) -> None:
            bad_items[b] += 1
            self.faults.add(fault)

        products = [self._product(int(row), partial(on_fault, b)) for b, row in enumerate(rows)]
        batch: Batch = {
            "product_id": np.array([checked_id(p.product_id) for p in products], np.int32),
            "bad_items": bad_items,
        }
        for domain, maker in self.makers.items():
            candidates = [
                self._draw(domain, int(n), product, partial(on_fault, b))
                for b, (n, product) in enumerate(zip(numbers, products, strict=True))
            ]
            batch[domain] = maker(candidates, on_fault)
        if self.class_ids is not None:
            batch["product_class"] = to_classes(batch["product_id"], self.class_ids)
            for domain in self.makers:
                batch[domain]["classes"] = to_classes(batch[domain]["products"], self.class_ids)
        return batch

    def _product(self, row: int, on_fault: Callable[[BadItem], None]) -> Product:
        """The product of a row, or the next one that can be read."""
        products = self.records.products
        for turn in range(len(products)):
            try:
                return products[(row + turn) % len(products)]
            except BadItem as error:
                on_fault(error)
                fault = error
        raise fault

    def _draw(
        self, domain: str, number: int, product: Product, on_fault: Callable[[BadItem], None]
    ) -> Iterator[Example]:
        """One random item of the product, and behind it those that may stand for it; nothing without the domain."""
        rows, items, first = product.rows[domain], self.records.items[domain], 0
        for turn in range(len(rows)):
            rng = np.random.default_rng([self.seed, number, DOMAINS.index(domain), *([turn] if turn else [])])
            if not turn:
                first = rng.integers(len(rows))
            row = int(rows[(first + turn) % len(rows)])
            try:
                item = items[row]
            except BadItem as fault:
                on_fault(fault)
            else:
                yield Example(item, product.product_id, rng, partial(items.place, row))


@dataclass(frozen=True)
class _EvalLoader:
    """Rows, −1 where there is none → the batch."""

    records: Records
    maker: LeafMaker
    faults: Faults | None

    def __call__(self, rows: np.ndarray) -> Batch:
        items, rows = self.records.items[self.maker.domain], rows.copy()
        examples: list[list[Example]] = [[] for _ in rows]

        def on_fault(b: int, fault: BadItem) -> None:
            if self.faults is None:
                raise fault
            self.faults.add(fault)
            rows[b], examples[b] = -1, []

        for b, row in enumerate(rows.tolist()):
            try:
                examples[b] = [Example(items[row], place=partial(items.place, row))] if row >= 0 else []
            except BadItem as fault:
                on_fault(b, fault)
        leaf = self.maker(examples, on_fault)
        return {
            "item_id": np.array([own[0].item.item_id if own else -1 for own in examples], np.int64),
            "row": rows,
            "frame_count": np.array([len(own[0].item.frames) if own else 0 for own in examples], np.int32),
            self.maker.domain: leaf,
        }


def _checked_frames(frames: Mapping[str, int]) -> dict[str, int]:
    """The same in domain order, or a ValueError."""
    if not frames or not set(frames) <= set(DOMAINS):
        raise ValueError(f"frames is for the domains {sorted(frames)}; choose among {', '.join(DOMAINS)}")
    if min(frames.values()) < 1:
        raise ValueError(f"frames is {dict(frames)}; every domain needs at least 1")
    return {domain: frames[domain] for domain in DOMAINS if domain in frames}


def _host_slice(batch_size: int, host: int, hosts: int) -> slice:
    if not 0 <= host < hosts:
        raise ValueError(f"host is {host} of {hosts}; hosts count from 0")
    if batch_size < 1 or batch_size % hosts:
        raise ValueError(f"batch_size {batch_size} does not divide among {hosts} hosts; make it a multiple")
    size = batch_size // hosts
    return slice(host * size, (host + 1) * size)


def _start(chain: grain.MapDataset[Batch], threads: int) -> grain.DatasetIterator[Batch]:
    limit_opencv_threads()
    # Read one batch ahead per thread: fewer would leave threads idle, more would only take memory.
    return iter(chain.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)))
