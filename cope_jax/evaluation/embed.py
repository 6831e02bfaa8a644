"""Embeds every item of a split with a run's model."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cope_jax.training.mesh import batch_sharding, replicated, to_devices
from cope_jax.training.model import ModelState

MODEL_INPUTS = ("frames", "frame_mask", "text")
EmbedFunction = Callable[[ModelState, dict[str, Any]], jax.Array]


def embed_function(graphdef: nnx.GraphDef, shardings: ModelState, mesh: Mesh) -> EmbedFunction:
    """The compiled function (model, {domain: inputs}) → float32[B, E], fused embeddings on every device.

    Donates nothing: the model serves every call.
    """

    def embed(model: ModelState, batch: dict[str, Any]) -> jax.Array:
        (embeddings,) = nnx.merge(graphdef, *model)(batch).values()
        return embeddings.fused

    return jax.jit(embed, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=replicated(mesh))


def embed_items(
    batches: Iterable[dict[str, Any]], domain: str, embed: EmbedFunction, model: ModelState, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and products of all items of a domain.

    Args:
        batches: from `eval_batches`, the last one padded.

    Returns:
        float32[N, E] and int32[N, M], one row an item in row order, padding left out.

    Raises:
        ValueError: an embedding is zero or not finite; names the rows.
    """
    rows, vectors, products = [], [], []
    for batch, vector in late(dispatch(batches, domain, embed, model, mesh)):
        real = batch["row"] >= 0
        rows.append(batch["row"][real])
        products.append(batch[domain]["products"][real])
        vectors.append(np.asarray(vector)[real])
    rows, vectors, products = map(np.concatenate, (rows, vectors, products))
    lengths = np.linalg.norm(vectors, axis=-1)
    if len(bad := rows[~(np.abs(lengths - 1) < 1e-3)]):
        raise ValueError(f"{len(bad)} {domain} embeddings do not have length 1, of rows {bad[:10].tolist()}")
    return vectors, products


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
