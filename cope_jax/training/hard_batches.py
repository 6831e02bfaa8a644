"""Batches that are made harder by the model: some of their products are similar to others of the same batch."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np

from cope_jax.data.groups import Groups, group_products
from cope_jax.data.pipeline import Batch, Batches
from cope_jax.data.records import InvalidItems, fingerprint, open_records
from cope_jax.evaluation.embed_items import LoadedRun, check_whole_processes
from cope_jax.parallel.processes import allgather
from cope_jax.runs.checkpoints import ModelState, ProductOrder


class HardBatches(Iterator[Batch]):
    """Training batches whose groups of similar products change every `config.data.hard_every` steps.

    Args:
        make: Returns the batches with `groups` from `start_step`.
        run: Model that embeds the training products.
        order: Order of the products that the checkpoint of the first step has, or None. It is not used if it is that of
            other data.
        step: First step.
    """

    def __init__(self, make: Callable[..., Batches], run: LoadedRun, order: ProductOrder | None, step: int) -> None:
        check_whole_processes(run.mesh, "set config.data.hard_batches to 0")
        self.make, self.run = make, run
        self.data = fingerprint(run.config.data.data_dir, run.config.data.eval_split)
        self._set_order(order.order if order and self._is_of_this_data(order) else None, step)

    def __next__(self) -> Batch:
        return next(self.batches)

    @property
    def read_ahead(self) -> int:
        """Number of batches in memory before their turn."""
        return self.batches.read_ahead

    def close(self) -> None:
        """Stops what makes batches."""
        self.batches.close()

    def regroup(self, step: int, model: ModelState, on_batch: Callable[[], None]) -> None:
        """Groups the products by their embeddings after a step if that is due. All processes must call this."""
        data = self.run.config.data
        if step % data.hard_every == 0:
            self.close()
            order = group_products(self._embed_products(model, on_batch))
            self._set_order(allgather(order)[0], step)

    def _is_of_this_data(self, order: ProductOrder) -> bool:
        """Returns whether an order is that of the training products."""
        if order.data:
            return order.data == self.data
        data = self.run.config.data
        return len(order.order) == len(open_records(data.data_dir, data.eval_split).products)

    def _set_order(self, order: np.ndarray | None, step: int) -> None:
        groups = None if order is None else Groups(order, self.run.config.data.hard_batches)
        self.order = None if order is None else ProductOrder(order, self.data)
        self.batches = self.make(start_step=step, groups=groups)

    @cached_property
    def _first_rows(self) -> dict[str, np.ndarray]:
        """For each domain, the row int64[P] of the item that represents a product, −1 if that is of another domain."""
        config = self.run.config
        products = open_records(config.data.data_dir, config.data.eval_split).products
        rows = {domain: np.full(len(products), -1) for domain in config.data.domains}
        for number in range(len(products)):
            own = products[number].rows
            domain = next((domain for domain in rows if len(own[domain])), None)
            if domain:
                rows[domain][number] = own[domain][0]
        return rows

    def _embed_products(self, model: ModelState, on_batch: Callable[[], None]) -> np.ndarray:
        """Embeds an item of each product; float32[P, E] with zeros for items that cannot be read."""
        run = replace(self.run, model=model)
        shape = len(next(iter(self._first_rows.values()))), run.config.model.embedding
        vectors = np.zeros(shape, np.float32)
        for domain, rows in self._first_rows.items():
            wanted, places = np.unique(rows[rows >= 0], return_inverse=True)
            items = run.embed_rows(domain, wanted, lambda _: on_batch(), InvalidItems())
            found = np.zeros((len(wanted), shape[1]), np.float32)
            found[np.searchsorted(wanted, items.rows)] = items.vectors
            vectors[rows >= 0] = found[places]
        return vectors
