"""The loss of a run and its terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cope_jax.models.fusion import Embeddings
from cope_jax.parallel.mesh import make_mesh
from cope_jax.runs.config_validation import replace_fields
from cope_jax.training.objective import Mean, init_losses, make_loss, make_pairs, make_views
from data_prep.common.domains import DOMAINS

B, E, CLASSES = 6, 16, 9


@pytest.fixture
def one_device():
    return make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


@pytest.fixture
def items():
    """Embeddings and their batch: example 1 has no video, page 2 no text, live 3 neither frame nor text."""
    rng = np.random.default_rng(0)

    def unit():
        x = rng.normal(size=(B, E))
        return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)

    embeddings, batch = {}, {"product_class": jnp.arange(B)}
    for domain in DOMAINS:
        there = {name: np.ones(B, bool) for name in ("present", "vision", "text")}
        if domain == "video":
            there["present"][1] = False
        if domain == "page":
            there["text"][2] = False
        if domain == "live":
            there["vision"][3] = there["text"][3] = False
        embeddings[domain] = Embeddings(unit(), unit(), unit(), *map(jnp.asarray, (there["vision"], there["text"])))
        products = jnp.arange(B, dtype=jnp.int32)[:, None]
        batch[domain] = {"products": 10 * products, "classes": products, "present": jnp.asarray(there["present"])}
    return embeddings, batch


@pytest.fixture
def evaluate(tiny_config, items, one_device):
    """A function that computes the loss with some weights of terms."""

    def evaluate(weights, embeddings=items[0]):
        changes = {f"losses.{name}.weight": weights.get(name, 0.0) for name in ("sigmoid", "infonce", "classifier")}
        config = replace_fields(tiny_config, changes | {"losses.classifier.classes": CLASSES})
        return jax.jit(make_loss(config, one_device))(init_losses(config), embeddings, items[1], jax.random.key(0))

    return evaluate


def test_views_mark_missing_items(items):
    views = make_views(*items, DOMAINS)
    absent = {name: np.flatnonzero(~np.asarray(view.present)).tolist() for name, view in views.items()}
    assert absent == {"page": [], "page_text": [2], "page_vision": [], "video": [1], "live": [3]}
    np.testing.assert_array_equal(views["page_text"].vectors, items[0]["page"].text)
    np.testing.assert_array_equal(views["page_vision"].vectors, items[0]["page"].vision)


def test_pairs_are_those_of_the_authors(tiny_config):
    losses = replace_fields(tiny_config, {"losses.infonce.page_vision": 0.5}).losses
    assert {pair.name: pair.weight for pair in make_pairs(losses.infonce, DOMAINS)} == {
        "page_video": 1.0,
        "page_live": 1.0,
        "video_live": 1.0,
        "page_text_video": 1.0,
        "page_text_live": 1.0,
        "page_vision_video": 0.5,
        "page_vision_live": 0.5,
    }
    assert len(make_pairs(losses.sigmoid, DOMAINS)) == 3


def test_the_loss_is_the_weighted_sum_of_its_terms(evaluate):
    weights = {"sigmoid": 2.0, "infonce": 0.5, "classifier": 0.25}
    total, metrics = evaluate(weights)
    parts = {name: metrics[f"{name}/loss"].compute() for name in weights}
    assert min(parts.values()) > 0
    np.testing.assert_allclose(total, sum(weights[name] * part for name, part in parts.items()), rtol=1e-6)
    alone, its_metrics = evaluate({"infonce": 1.0})
    np.testing.assert_allclose(alone, parts["infonce"], rtol=1e-6)
    assert all(name.startswith("infonce/") for name in its_metrics)


def test_terms_without_a_weight_have_no_parameters(tiny_config):
    config = replace_fields(tiny_config, {"losses.classifier.classes": CLASSES})
    assert {name: sorted(part) for name, part in init_losses(config).items()} == {"sigmoid": ["bias", "log_t"]}
    config = replace_fields(config, {"losses.sigmoid.weight": 0.0, "losses.classifier.weight": 1.0})
    assert {name: sorted(part) for name, part in init_losses(config).items()} == {"classifier": ["table"]}


def test_each_term_reports_metrics(evaluate):
    _, metrics = evaluate({"sigmoid": 1.0, "infonce": 1.0, "classifier": 1.0})
    for name in ("sigmoid", "infonce"):
        for what in ("loss/page_video", "positive/page_video", "negative/page_video"):
            assert isinstance(metrics[f"{name}/{what}"], Mean)
        for a in DOMAINS:
            assert {f"{name}/accuracy/{a}_{b}" for b in DOMAINS if b != a} <= metrics.keys()
    np.testing.assert_allclose([metrics[f"sigmoid/{what}"].compute() for what in ("t", "bias")], [10, -10], rtol=1e-6)
    assert {f"classifier/accuracy/{domain}" for domain in DOMAINS} <= metrics.keys()
    assert metrics["classifier/loss/video"].count == B - 1
    assert metrics["classifier/loss/live"].count == B - 1


def test_missing_items_do_not_change_the_loss(evaluate, items):
    weights = {"sigmoid": 1.0, "infonce": 1.0, "classifier": 1.0}
    embeddings = items[0]
    changed = dict(embeddings)
    changed["video"] = embeddings["video"].replace(fused=embeddings["video"].fused.at[1].set(1.0))
    changed["page"] = embeddings["page"].replace(text=embeddings["page"].text.at[2].set(1.0))
    changed["live"] = embeddings["live"].replace(fused=embeddings["live"].fused.at[3].set(1.0))
    assert evaluate(weights)[0] == evaluate(weights, changed)[0]


def test_a_mean_over_nothing_is_nan():
    assert np.isnan(Mean(np.float32(0), np.float32(0)).compute())
