"""Loss and gradients of a batch: at once, or with gradient caching in micro-batches (arXiv 2101.06983)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from cope_jax.losses.ring import AXES
from cope_jax.models.fusion import Embeddings
from cope_jax.training.metrics import Mean
from cope_jax.training.objective import LossFunction

# (model's params, its statistics, batch, random key) → (embeddings per domain, moved statistics)
Embed = Callable[[Any, Any, Any, jax.Array], tuple[dict[str, Embeddings], Any]]


class Gradients(NamedTuple):
    """What a batch says.

    Attributes:
        loss: float32[].
        metrics: of the loss.
        statistics: the model's, moved by the batch.
        params: gradients, a tree like {"model": …, "loss": …}.
    """

    loss: jax.Array
    metrics: dict[str, Mean]
    statistics: Any
    params: Any


def batch_gradients(
    embed: Embed, loss_of: LossFunction, params: Any, statistics: Any, batch: Any, key: jax.Array
) -> Gradients:
    """Of the whole batch at once: the activations of all its examples are kept until their gradients are known."""
    embed_key, loss_key = jax.random.split(key)

    def loss(params: Any) -> Any:
        embeddings, moved = embed(params["model"], statistics, batch, embed_key)
        value, metrics = loss_of(params["loss"], embeddings, batch, loss_key)
        return value, (metrics, moved)

    (value, (metrics, moved)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return Gradients(value, metrics, moved, gradients)


def cached_gradients(
    embed: Embed,
    loss_of: LossFunction,
    params: Any,
    statistics: Any,
    batch: Any,
    key: jax.Array,
    *,
    parts: int,
    mesh: Mesh,
) -> Gradients:
    """Of the whole batch, with the activations of one of `parts` micro-batches at a time.

    All are embedded and nothing but their embeddings kept; the loss compares all of them; then each is embedded once
    more, with the same random draws, and the gradients of its embeddings go on to the parameters. So the model runs
    forward twice. The model must treat examples alone: a batch normalisation would see micro-batches.

    Args:
        parts: micro-batches; each device's share of the batch is a multiple of it.
        mesh: that the batch is cut over.
    """
    embed_key, loss_key = jax.random.split(key)
    cut, join = (partial(function, mesh=mesh) for function in (cut_batch, join_parts))
    numbered = jnp.arange(parts), cut(batch, parts=parts)

    def embed_part(model: Any, number: jax.Array, part: Any) -> tuple[Any, Any]:
        embeddings, _ = embed(model, statistics, part, jax.random.fold_in(embed_key, number))
        return split_known(embeddings)

    vectors, known = jax.tree.map(join, jax.lax.map(lambda part: embed_part(params["model"], *part), numbered))

    def loss(params: Any, vectors: Any) -> Any:
        return loss_of(params, join_known(vectors, known), batch, loss_key)

    (value, metrics), (of_loss, of_vectors) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        params["loss"], vectors
    )

    def add_part(gradients: Any, part: Any) -> tuple[Any, None]:
        numbered, of_vectors = part
        _, pull, _ = jax.vjp(lambda model: embed_part(model, *numbered), params["model"], has_aux=True)
        return jax.tree.map(jnp.add, gradients, *pull(of_vectors)), None

    start = jax.tree.map(jnp.zeros_like, params["model"])
    of_model, _ = jax.lax.scan(add_part, start, (numbered, cut(of_vectors, parts=parts)))
    return Gradients(value, metrics, statistics, {"model": of_model, "loss": of_loss})


def split_known(embeddings: Mapping[str, Embeddings]) -> tuple[Any, Any]:
    """Vectors, which have gradients, and which of them exist, which has none."""
    vectors = {domain: (e.fused, e.vision, e.text) for domain, e in embeddings.items()}
    return vectors, {domain: (e.has_vision, e.has_text) for domain, e in embeddings.items()}


def join_known(vectors: Any, known: Any) -> dict[str, Embeddings]:
    """The inverse of `split_known`."""
    return {domain: Embeddings(*vectors[domain], *known[domain]) for domain in vectors}


def cut_batch(batch: Any, *, parts: int, mesh: Mesh) -> Any:
    """[B, …] cut over devices → [parts, B / parts, …], likewise: every device cuts its own share, nothing moves."""
    return jax.shard_map(
        lambda leaves: jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), leaves),
        mesh=mesh,
        in_specs=PartitionSpec(AXES),
        out_specs=PartitionSpec(None, AXES),
    )(batch)


def join_parts(leaf: jax.Array, *, mesh: Mesh) -> jax.Array:
    """The inverse of `cut_batch`, of one array."""
    return jax.shard_map(
        lambda share: share.reshape(-1, *share.shape[2:]),
        mesh=mesh,
        in_specs=PartitionSpec(None, AXES),
        out_specs=PartitionSpec(AXES),
    )(leaf)
