"""Embeds batches of items with a run's model."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cope_jax.data.bad_items import BadItem, Faults
from cope_jax.parallel.mesh import batch_sharding, replicated, to_devices
from cope_jax.parallel.processes import allgather
from cope_jax.runs.model import ModelState

MODEL_INPUTS = ("frames", "frame_mask", "text")

Batch = dict[str, Any]
EmbedFunction = Callable[[ModelState, Batch], jax.Array]
T = TypeVar("T")


@dataclass(frozen=True)
class Items:
    """Embedded items of a domain, in the requested order.

    Attributes:
        vectors: float32[N, E] of unit length.
        products: int32[N, M] ids of their products, padded with -1.
        rows: int64[N] rows in the domain's records.
        item_ids: int64[N].
        frames: int32[N] number of frames of each item.
        has_text: bool[N].
    """

    vectors: np.ndarray
    products: np.ndarray
    rows: np.ndarray
    item_ids: np.ndarray
    frames: np.ndarray
    has_text: np.ndarray

    def select(self, mask: np.ndarray) -> "Items":
        """Returns the items where a mask is true."""
        return Items(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


def embed_function(graphdef: nnx.GraphDef, shardings: ModelState, mesh: Mesh) -> EmbedFunction:
    """Returns the compiled function (model, {domain: inputs}) → float32[B, E], the fused embeddings, replicated.

    It donates nothing, because the model is used by all calls.
    """

    def embed(model: ModelState, batch: Batch) -> jax.Array:
        (embeddings,) = nnx.merge(graphdef, *model)(batch).values()
        return embeddings.fused

    return jax.jit(embed, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=replicated(mesh))


def embed_items(
    batches: Iterable[Batch],
    domain: str,
    embed: EmbedFunction,
    model: ModelState,
    mesh: Mesh,
    on_batch: Callable[[int], object] | None = None,
    faults: Faults | None = None,
) -> Items:
    """Embeds all items of some batches. Every host gets the items of all hosts.

    Args:
        batches: This host's share of each batch, from `eval_batches`; the last batch is padded.
        domain: Domain of the items.
        embed: Function from `embed_function`.
        model: Its first argument.
        mesh: Mesh of the model.
        on_batch: Called after each batch with its size.
        faults: Collects items whose embedding is zero or not finite, which are skipped.

    Raises:
        ValueError: An embedding is zero or not finite, and there is no `faults` or all items are invalid.
    """
    vectors, columns = [], []
    for batch, vector in lookahead(_dispatch(batches, domain, embed, model, mesh)):
        products, has_text = batch[domain]["products"], batch[domain]["text"].any(-1)
        vectors.append(np.asarray(vector))
        columns.append([products, batch["row"], batch["item_id"], batch["frame_count"], has_text])
        if on_batch:
            on_batch(len(vector))
    items = Items(np.concatenate(vectors), *(gather_shares(np.stack(column)) for column in zip(*columns, strict=True)))
    items = items.select(items.rows >= 0)
    valid = _have_unit_length(items.vectors)
    if faults is not None and valid.any():
        for number in items.item_ids[~valid]:
            faults.add(BadItem(f"the embedding of {domain} item {number} does not have length 1"))
        items = items.select(valid)
    check_unit_length(items.vectors, domain, items.item_ids)
    return items


def _dispatch(
    batches: Iterable[Batch], domain: str, embed: EmbedFunction, model: ModelState, mesh: Mesh
) -> Iterator[tuple[Batch, jax.Array]]:
    """Starts the computation of each batch."""
    for batch in batches:
        inputs = {name: batch[domain][name] for name in MODEL_INPUTS}
        yield batch, embed(model, {domain: to_devices(inputs, mesh)})


def lookahead(items: Iterable[T]) -> Iterator[T]:
    """Yields each item after requesting the next one, so that the device computes while the host fetches results."""
    iterator = iter(items)
    try:
        previous = next(iterator)
    except StopIteration:
        return
    for item in iterator:
        yield previous
        previous = item
    yield previous


def gather_shares(shares: np.ndarray) -> np.ndarray:
    """Joins the shares [batches, B / hosts, …] of all hosts to [batches · B, …], in order."""
    by_batch = np.moveaxis(allgather(shares), 0, 1)
    return by_batch.reshape(-1, *shares.shape[2:])


def _have_unit_length(vectors: np.ndarray) -> np.ndarray:
    return np.abs(np.linalg.norm(vectors, axis=-1) - 1) < 1e-3


def check_unit_length(vectors: np.ndarray, domain: str, item_ids: np.ndarray) -> None:
    """Raises ValueError naming the items whose embeddings are zero or not finite."""
    if len(invalid := item_ids[~_have_unit_length(vectors)]):
        raise ValueError(f"{len(invalid)} {domain} embeddings do not have length 1, of items {invalid[:10].tolist()}")
