"""The loss of a run: a weighted sum of terms."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from cope_jax.losses.classifier import classifier_loss, init_table
from cope_jax.losses.infonce import infonce_loss
from cope_jax.losses.pairs import Pair, Statistics, View
from cope_jax.losses.sigmoid import init_scalars, sigmoid_loss
from cope_jax.models.fusion import Embeddings, l2_normalize
from cope_jax.runs.config import RunConfig, ViewPairs
from data_prep.common.domains import second_item


@struct.dataclass
class Mean:
    """A mean as a sum and a count, both f32[]. To merge means, add them with `jax.tree.map`."""

    total: jax.Array | np.ndarray | np.floating
    count: jax.Array | np.ndarray | np.floating

    @classmethod
    def of(cls, value: jax.Array) -> "Mean":
        """Returns the mean of one value."""
        return cls(total=value, count=np.float32(1))

    def where(self, kept: jax.Array) -> "Mean":
        """Returns the same mean if `kept` (bool[]), else a mean over nothing."""
        return Mean(jnp.where(kept, self.total, 0), jnp.where(kept, self.count, 0))

    def compute(self) -> float:
        """Returns the mean; NaN over nothing."""
        return float(self.total) / float(self.count) if float(self.count) else float("nan")


# (parameters of all terms, embeddings by domain, batch, random key) → (loss, metrics)
LossFunction = Callable[
    [Any, Mapping[str, Embeddings], Mapping[str, Any], jax.Array], tuple[jax.Array, dict[str, Mean]]
]


def init_losses(config: RunConfig) -> dict[str, Any]:
    """Returns the initial parameters of the terms that have a weight and learn parameters; a pure function."""
    params = {}
    if config.losses.sigmoid.weight:
        term = config.losses.sigmoid
        params["sigmoid"] = init_scalars(temperature=term.temperature, bias=term.bias)
    if config.losses.classifier.weight:
        key = jax.random.fold_in(jax.random.key(config.seed), 1)  # the model uses the seed's own key
        classes = config.losses.classifier.classes
        params["classifier"] = {"table": init_table(key, classes=classes, embedding=config.model.embedding)}
    return params


def make_loss(config: RunConfig, mesh: Mesh) -> LossFunction:
    """Returns the weighted sum of the config's terms, for batches that are sharded over a mesh."""
    losses, entries = config.losses, tuple(config.batch_entries)

    def sigmoid(params: Any, embeddings: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Statistics]:
        scalars, pairs = params["sigmoid"], make_pairs(config.view_pairs(losses.sigmoid))
        pairs += [Pair(view, view, weight) for view, weight in losses.sigmoid.within]
        compute = partial(sigmoid_loss, scalars=scalars, pairs=pairs, mesh=mesh, precision=losses.precision)
        loss, statistics = nested_loss(compute, make_views(embeddings, batch, pairs), losses.nested)
        learned = {"t": jnp.exp(scalars["log_t"]), "bias": scalars["bias"]}
        return loss, statistics | {name: (value, jnp.ones(())) for name, value in learned.items()}

    def infonce(params: Any, embeddings: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Statistics]:
        term, pairs = losses.infonce, make_pairs(config.view_pairs(losses.infonce))
        settings = {"temperature": term.temperature, "smoothing": term.smoothing, "precision": losses.precision}
        compute = partial(infonce_loss, pairs=pairs, mesh=mesh, **settings)
        return nested_loss(compute, make_views(embeddings, batch, pairs), losses.nested)

    def classifier(params: Any, embeddings: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Statistics]:
        term = losses.classifier
        return classifier_loss(
            params["classifier"]["table"],
            {entry: embeddings[entry].fused for entry in entries},
            batch["product_class"],
            {entry: batch[entry]["classes"] for entry in entries},
            {entry: batch[entry]["present"] & has_content(embeddings[entry]) for entry in entries},
            classes=term.classes,
            scale=term.scale,
            margin=term.margin,
            rate=term.rate,
            precision=losses.precision,
            key=key,
            mesh=mesh,
        )

    terms = {"sigmoid": sigmoid, "infonce": infonce, "classifier": classifier}

    def loss_and_metrics(params: Any, embeddings: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        total, metrics = jnp.zeros(()), {}
        if distill := config.finetune.distill:
            distance = embedding_distance(embeddings, batch["teacher"])
            total += distill * distance
            metrics["distill/loss"] = Mean.of(distance)
        for name, weight in losses.active.items():
            loss, statistics = terms[name](params, embeddings, batch, key)
            total += weight * loss
            metrics[f"{name}/loss"] = Mean.of(loss)
            metrics |= {f"{name}/{metric}": Mean(*value) for metric, value in statistics.items()}
        return total, metrics

    return loss_and_metrics


def nested_loss(
    compute: Callable[[Mapping[str, View]], tuple[jax.Array, Statistics]],
    views: Mapping[str, View],
    lengths: Sequence[int],
) -> tuple[jax.Array, Statistics]:
    """Returns the mean of a loss over whole vectors and their first values, scaled to length 1 (arXiv 2205.13147).

    Args:
        compute: Function from views to the loss and its statistics; those returned are of whole vectors.
        views: Views of the batch.
        lengths: Numbers of first values.
    """
    if not lengths:
        return compute(views)

    def shortened(length: jax.Array) -> tuple[jax.Array, Statistics]:
        def first_values(vectors: jax.Array) -> jax.Array:
            return l2_normalize(jnp.where(jnp.arange(vectors.shape[-1]) < length, vectors, 0.0))

        return compute({name: view._replace(vectors=first_values(view.vectors)) for name, view in views.items()})

    width = next(iter(views.values())).vectors.shape[-1]
    # A loop: many pairs of views would take minutes to compile once for each length.
    losses, statistics = jax.lax.map(shortened, jnp.array([width, *lengths]))
    own = {f"loss/first_{length}": (loss, jnp.ones(())) for length, loss in zip(lengths, losses[1:], strict=True)}
    return losses.mean(), jax.tree.map(lambda values: values[0], statistics) | own


def embedding_distance(
    embeddings: Mapping[str, Embeddings], teacher: Mapping[str, Mapping[str, jax.Array]]
) -> jax.Array:
    """Returns the mean cosine distance to other embeddings of the same items, over all kinds that an item has."""
    total = count = jnp.zeros(())
    for entry, own in embeddings.items():
        kinds = {"fused": has_content(own), "vision": own.has_vision, "text": own.has_text}
        for kind, exists in kinds.items():
            cosine = (getattr(own, kind) * teacher[entry][kind]).sum(axis=-1)
            total, count = total + jnp.where(exists, 1 - cosine, 0).sum(), count + exists.sum()
    return total / jnp.maximum(count, 1)


def make_pairs(pairs: ViewPairs) -> list[Pair]:
    """Returns the pairs of views in a batch; ("page.text", "page.text") becomes ("page.text", "page_2.text")."""

    def second(view: str) -> str:
        domain, dot, modality = view.partition(".")
        return f"{second_item(domain)}{dot}{modality}"

    return [Pair(a, second(b) if a == b else b, weight) for a, b, weight in pairs]


def make_views(
    embeddings: Mapping[str, Embeddings], batch: Mapping[str, Any], pairs: Iterable[Pair]
) -> dict[str, View]:
    """Returns the views of some pairs: the items of an entry of the batch, or their texts or frames alone."""
    views = {}
    for name in dict.fromkeys(name for pair in pairs for name in (pair.a, pair.b)):
        entry, _, modality = name.partition(".")
        items, e = batch[entry], embeddings[entry]
        kinds = {"": (e.fused, has_content(e)), "text": (e.text, e.has_text), "vision": (e.vision, e.has_vision)}
        vectors, has_input = kinds[modality]
        example = jnp.arange(len(e.fused), dtype=jnp.int32)
        views[name] = View(vectors, items["products"], items["present"] & has_input, example)
    return views


def has_content(embeddings: Embeddings) -> jax.Array:
    """bool[B], whether an item has a frame or a text."""
    return embeddings.has_vision | embeddings.has_text
