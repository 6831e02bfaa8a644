"""From a config to the loss of a run: its terms, each with a weight, what they learn and what they report."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cope_jax.domains import DOMAINS, PAIRS
from cope_jax.losses.classifier import classifier_loss, init_table
from cope_jax.losses.infonce import infonce_loss
from cope_jax.losses.pairs import Pair, Side
from cope_jax.losses.sigmoid import init_scalars, sigmoid_loss
from cope_jax.losses.statistics import Watched
from cope_jax.models.fusion import Embeddings
from cope_jax.runs.config import InfoNCEConfig, RunConfig, SigmoidConfig
from cope_jax.training.metrics import Mean

# (params of all terms, embeddings per domain, batch, random key) → (loss, metrics)
LossFunction = Callable[
    [Any, Mapping[str, Embeddings], Mapping[str, Any], jax.Array], tuple[jax.Array, dict[str, Mean]]
]


def init_losses(config: RunConfig) -> dict[str, Any]:
    """What the terms of a config learn themselves, at the start; a pure function of it. Terms may learn nothing."""
    params = {}
    for name in config.losses.active:
        term: Any = getattr(config.losses, name)
        if name == "sigmoid":
            params[name] = init_scalars(temperature=term.temperature, bias=term.bias)
        elif name == "classifier":
            key = jax.random.fold_in(jax.random.key(config.seed), 1)  # the model has the seed's own
            table = init_table(key, classes=term.classes, embedding=config.model.embedding)
            params[name] = {"table": table}
    return params


def make_loss(config: RunConfig, mesh: Mesh) -> LossFunction:
    """The weighted sum of the config's terms on batches that are cut over a mesh."""

    def term_loss(name: str, params: Any, embeddings: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Watched]:
        term: Any = getattr(config.losses, name)
        if name == "classifier":
            settings = {"classes": term.classes, "scale": term.scale, "margin": term.margin, "rate": term.rate}
            items = classified_items(embeddings, batch)
            return classifier_loss(params[name]["table"], *items, key=key, mesh=mesh, **settings)
        sides, pairs = make_sides(embeddings, batch), make_pairs(term)
        if name == "infonce":
            return infonce_loss(sides, pairs=pairs, temperature=term.temperature, smoothing=term.smoothing, mesh=mesh)
        loss, watched = sigmoid_loss(sides, params[name], pairs=pairs, mesh=mesh)
        scalars = {"t": jnp.exp(params[name]["log_t"]), "bias": params[name]["bias"]}
        return loss, watched | {what: (value, jnp.ones(())) for what, value in scalars.items()}

    def loss_and_metrics(params: Any, embeddings: Any, batch: Any, key: jax.Array) -> Any:
        total, metrics = jnp.zeros(()), {}
        for name in config.losses.active:
            loss, watched = term_loss(name, params, embeddings, batch, key)
            total += config.losses.active[name] * loss
            metrics[f"{name}/loss"] = Mean.of(loss)
            metrics |= {f"{name}/{what}": Mean(*value) for what, value in watched.items()}
        return total, metrics

    return loss_and_metrics


def make_pairs(term: SigmoidConfig | InfoNCEConfig) -> list[Pair]:
    """The three pairs of domains, and those of pages' texts or frames alone where the term gives them a weight."""
    pairs = [Pair(a, b) for a, b in PAIRS]
    for side, weight in (("page_text", term.page_text), ("page_vision", term.page_vision)):
        pairs += [Pair(side, domain, weight) for domain in DOMAINS if domain != "page" and weight]
    return pairs


def make_sides(embeddings: Mapping[str, Embeddings], batch: Mapping[str, Any]) -> dict[str, Side]:
    """The sides that contrastive terms may compare: each domain's items, and pages' texts and frames alone."""
    sides = {}
    for domain in DOMAINS:
        items, e = batch[domain], embeddings[domain]
        example = jnp.arange(len(e.fused), dtype=jnp.int32)
        views = {domain: (e.fused, known(e))}
        if domain == "page":
            views |= {"page_text": (e.text, e.has_text), "page_vision": (e.vision, e.has_vision)}
        for name, (vectors, there) in views.items():
            sides[name] = Side(vectors, items["products"], items["present"] & there, example)
    return sides


def classified_items(embeddings: Mapping[str, Embeddings], batch: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    """What the classifier is given: embeddings per domain, targets, all classes per domain, what is present."""
    items = {domain: batch[domain] for domain in DOMAINS}
    return (
        {domain: embeddings[domain].fused for domain in DOMAINS},
        batch["product_class"],
        {domain: item["classes"] for domain, item in items.items()},
        {domain: item["present"] & known(embeddings[domain]) for domain, item in items.items()},
    )


def known(embeddings: Embeddings) -> jax.Array:
    """bool[B], whether an item has a frame or a text to know it by."""
    return embeddings.has_vision | embeddings.has_text
