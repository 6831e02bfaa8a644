"""Embeds the items of a split with a run's model."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cope_jax.data.bad_items import BadItem, Faults
from cope_jax.parallel.mesh import batch_sharding, replicated, to_devices
from cope_jax.parallel.processes import allgather
from cope_jax.runs.model import ModelState
from data_prep.common.progress import Progress

MODEL_INPUTS = ("frames", "frame_mask", "text")
EmbedFunction = Callable[[ModelState, dict[str, Any]], jax.Array]


@dataclass(frozen=True)
class Items:
    """Embedded items of a domain, in the order they were asked for.

    Attributes:
      vectors: f32[N, E] of length 1.
      products: i32[N, M] ids of their products, padded with -1.
      rows: i64[N] in the domain's records.
      item_ids: i64[N].
      frames: i32[N], how many frames each has.
      has_text: bool[N].
    """

    vectors: np.ndarray
    products: np.ndarray
    rows: np.ndarray
    item_ids: np.ndarray
    frames: np.ndarray
    has_text: np.ndarray


def embed_function(graphdef: nnx.GraphDef, shardings: ModelState, mesh: Mesh) -> EmbedFunction:
    """The compiled function (model, {domain: inputs}) → float32[B, E], fused embeddings on every device.

    Donates nothing: the model serves every call.
    """

    def embed(model: ModelState, batch: dict[str, Any]) -> jax.Array:
        (embeddings,) = nnx.merge(graphdef, *model)(batch).values()
        return embeddings.fused

    return jax.jit(embed, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=replicated(mesh))


def embed_items(
    batches: Iterable[dict[str, Any]],
    domain: str,
    embed: EmbedFunction,
    model: ModelState,
    mesh: Mesh,
    report: Callable[[int], None] | None = None,
    faults: Faults | None = None,
) -> Items:
    """Embeds all items of some batches; every host gets those of all hosts.

    Args:
        batches: from `eval_batches`, this host's share of each, the last one padded.
        report: told of each batch how many items it has.
        faults: takes note of items whose embedding is zero or not finite, which are then left out.

    Returns:
        One row an item, padding left out.

    Raises:
        ValueError: an embedding is zero or not finite, and there are no faults to take note of it or all are; names
            the items.
    """
    vectors, columns = [], []
    for batch, vector in late(dispatch(batches, domain, embed, model, mesh)):
        leaf = batch[domain]
        vectors.append(np.asarray(vector))
        columns.append([leaf["products"], batch["row"], batch["item_id"], batch["frame_count"], leaf["text"].any(-1)])
        if report:
            report(len(vector))
    items = Items(np.concatenate(vectors), *(whole(np.stack(column)) for column in zip(*columns, strict=True)))
    items = taken(items, items.rows >= 0)
    sound = have_length_1(items.vectors)
    if faults is not None and sound.any():
        for number in items.item_ids[~sound]:
            faults.add(BadItem(f"the embedding of {domain} item {number} does not have length 1"))
        items = taken(items, sound)
    check_lengths(items.vectors, domain, items.item_ids)
    return items


def count_items(progress: Progress, count: int) -> None:
    """Adds the items of a batch, the last of which may be padded, to a progress bar."""
    progress.update(min(count, int(progress.total or 0) - progress.n))


def have_length_1(vectors: np.ndarray) -> np.ndarray:
    """Which of some embeddings f32[N, E] are as they should be: bool[N]."""
    return np.abs(np.linalg.norm(vectors, axis=-1) - 1) < 1e-3


def check_lengths(vectors: np.ndarray, domain: str, item_ids: np.ndarray) -> None:
    """Raises a ValueError that names the items whose embeddings f32[N, E] are zero or not finite."""
    if len(bad := item_ids[~have_length_1(vectors)]):
        raise ValueError(f"{len(bad)} {domain} embeddings do not have length 1, of items {bad[:10].tolist()}")


def whole(shares: np.ndarray) -> np.ndarray:
    """This host's shares [batches, B / hosts, …] of some batches → all of them in order, [batches · B, …]."""
    by_batch = np.moveaxis(allgather(shares), 0, 1)
    return by_batch.reshape(-1, *shares.shape[2:])


def taken(items: Items, which: np.ndarray) -> Items:
    """Some of the items, by a mask or by places."""
    return Items(*(column[which] for column in vars(items).values()))


def dispatch(
    batches: Iterable[dict[str, Any]], domain: str, embed: EmbedFunction, model: ModelState, mesh: Mesh
) -> Iterator[tuple[dict[str, Any], jax.Array]]:
    """Starts the computation of each batch."""
    for batch in batches:
        inputs = {name: batch[domain][name] for name in MODEL_INPUTS}
        yield batch, embed(model, {domain: to_devices(inputs, mesh)})


def late(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, each handed on after the next one is made: the device works while the host fetches."""
    iterator = iter(items)
    held = next(iterator, None)
    for item in iterator:
        yield held
        held = item
    if held is not None:
        yield held
