"""Loss and gradients of a batch: at once, or with gradient caching in microbatches (arXiv 2101.06983)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from cope_jax.losses.ring import BATCH_AXES
from cope_jax.models.fusion import EMBEDDING_KINDS, Embeddings
from cope_jax.training.objective import LossFunction, Mean

# (parameters of the model, its statistics, batch, random keys of its examples) → (embeddings by domain, new statistics)
EmbedFunction = Callable[[PyTree, PyTree, Any, jax.Array], tuple[dict[str, Embeddings], PyTree]]


class Gradients(NamedTuple):
    """Loss and gradients of a batch."""

    loss: jax.Array  # float32[]
    metrics: dict[str, Mean]  # of the loss
    statistics: PyTree  # of the model after the batch
    params: PyTree  # gradients {"model": …, "loss": …}


def batch_gradients(
    embed: EmbedFunction,
    loss_of: LossFunction,
    params: PyTree,
    statistics: PyTree,
    batch: Any,
    key: jax.Array,
    *,
    mesh: Mesh,
) -> Gradients:
    """Computes gradients of the whole batch at once, which keeps the activations of all its examples.

    On a mesh of `data` alone, each device embeds its own examples as in `cached_gradients`, unless the model has
    statistics of the batch. XLA then sums the gradients of a stack of blocks over devices at once, not block by block.
    """
    embed_keys, loss_key = _split_key(key, batch)
    is_shared = _is_data_parallel(mesh) and not jax.tree.leaves(statistics)
    whole, share = PartitionSpec(), PartitionSpec("data")
    each_device = partial(jax.shard_map, mesh=mesh, check_vma=False) if is_shared else lambda function, **_: function

    @partial(each_device, in_specs=(whole, share, share), out_specs=(share, whole))
    def embed_batch(model: PyTree, batch: Any, keys: jax.Array) -> tuple[dict[str, Embeddings], PyTree]:
        return embed(model, statistics, batch, keys)

    def loss(params: PyTree) -> Any:
        embeddings, new_statistics = embed_batch(params["model"], batch, embed_keys)
        value, metrics = loss_of(params["loss"], embeddings, batch, loss_key)
        return value, (metrics, new_statistics)

    (value, (metrics, new_statistics)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return Gradients(value, metrics, new_statistics, gradients)


def cached_gradients(
    embed: EmbedFunction,
    loss_of: LossFunction,
    params: PyTree,
    statistics: PyTree,
    batch: Any,
    key: jax.Array,
    *,
    parts: int,
    mesh: Mesh,
) -> Gradients:
    """Computes gradients of the whole batch, keeping the activations of one microbatch at a time.

    The first pass embeds all microbatches and keeps only embeddings, which the loss compares. The second pass embeds
    each microbatch again, with the same random draws, and backpropagates the gradients of its embeddings. The model
    must treat examples independently: batch normalization would see microbatches. The number of microbatches, `parts`,
    divides each device's share of the batch.

    On a mesh of `data` alone, each device embeds its own examples and sums their gradients, which are summed over
    devices once, not for each microbatch. On other meshes, XLA decides: cuDNN's attention cannot be partitioned along
    some axes by hand.
    """
    embed_keys, loss_key = _split_key(key, batch)
    split, join = (partial(function, mesh=mesh) for function in (split_batch, join_parts))
    is_shared = _is_data_parallel(mesh)
    on_device = partial(jax.shard_map, mesh=mesh, check_vma=False)
    each_device = on_device if is_shared else lambda function, **_: function
    share = PartitionSpec(None, "data")
    batch_parts = split((batch, embed_keys), parts=parts)

    def embed_part(model: PyTree, part: tuple[Any, jax.Array]) -> tuple[PyTree, PyTree]:
        embeddings, _ = embed(model, statistics, *part)
        return _split_masks(embeddings)

    @partial(each_device, in_specs=(PartitionSpec(), share), out_specs=share)
    def embed_parts(model: PyTree, batch_parts: Any) -> tuple[PyTree, PyTree]:
        return jax.lax.map(partial(embed_part, model), batch_parts)

    vectors, masks = jax.tree.map(join, embed_parts(params["model"], batch_parts))

    def loss(params: PyTree, vectors: PyTree) -> Any:
        return loss_of(params, _join_masks(vectors, masks), batch, loss_key)

    (value, metrics), (loss_gradients, vector_gradients) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        params["loss"], vectors
    )

    @partial(each_device, in_specs=(PartitionSpec(), share, share), out_specs=PartitionSpec())
    def backpropagate(model: PyTree, batch_parts: Any, vector_gradients: PyTree) -> PyTree:
        def add_part(gradients: PyTree, part: Any) -> tuple[PyTree, None]:
            batch_part, vector_gradients = part
            _, backward, _ = jax.vjp(lambda model: embed_part(model, batch_part), model, has_aux=True)
            return jax.tree.map(jnp.add, gradients, *backward(vector_gradients)), None

        zeros = jax.tree.map(jnp.zeros_like, model)
        gradients, _ = jax.lax.scan(add_part, zeros, (batch_parts, vector_gradients))
        return jax.lax.psum(gradients, "data") if is_shared else gradients

    model_gradients = backpropagate(params["model"], batch_parts, split(vector_gradients, parts=parts))
    return Gradients(value, metrics, statistics, {"model": model_gradients, "loss": loss_gradients})


def embed_in_parts(
    model: Callable[[Any], dict[str, Embeddings]], batch: Any, *, parts: int, mesh: Mesh
) -> dict[str, dict[str, jax.Array]]:
    """Returns the embeddings of a batch by domain and kind, without dropout; arguments as in `cached_gradients`."""

    def embed(batch: Any) -> dict[str, dict[str, jax.Array]]:
        return {name: {kind: getattr(own, kind) for kind in EMBEDDING_KINDS} for name, own in model(batch).items()}

    if parts == 1:
        return embed(batch)
    return jax.tree.map(partial(join_parts, mesh=mesh), jax.lax.map(embed, split_batch(batch, parts=parts, mesh=mesh)))


def _is_data_parallel(mesh: Mesh) -> bool:
    return 1 < mesh.shape["data"] == mesh.size


def _split_key(key: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Returns random keys for the examples of a batch, one each, and for the loss."""
    embed_key, loss_key = jax.random.split(key)
    return jax.random.split(embed_key, len(jax.tree.leaves(batch)[0])), loss_key


def _split_masks(embeddings: Mapping[str, Embeddings]) -> tuple[PyTree, PyTree]:
    """Separates vectors, which have gradients, from masks, which have none."""
    vectors = {domain: (e.fused, e.vision, e.text) for domain, e in embeddings.items()}
    return vectors, {domain: (e.has_vision, e.has_text) for domain, e in embeddings.items()}


def _join_masks(vectors: PyTree, masks: PyTree) -> dict[str, Embeddings]:
    """Inverts `_split_masks`."""
    return {domain: Embeddings(*vectors[domain], *masks[domain]) for domain in vectors}


def split_batch(batch: Any, *, parts: int, mesh: Mesh) -> Any:
    """Reshapes sharded arrays [B, …] to [parts, B / parts, …]; each device splits its own share, no data moves."""
    return jax.shard_map(
        lambda leaves: jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), leaves),
        mesh=mesh,
        in_specs=PartitionSpec(BATCH_AXES),
        out_specs=PartitionSpec(None, BATCH_AXES),
    )(batch)


def join_parts(leaf: jax.Array, *, mesh: Mesh) -> jax.Array:
    """Inverts `split_batch` for one array."""
    return jax.shard_map(
        lambda share: share.reshape(-1, *share.shape[2:]),
        mesh=mesh,
        in_specs=PartitionSpec(None, BATCH_AXES),
        out_specs=PartitionSpec(BATCH_AXES),
    )(leaf)
