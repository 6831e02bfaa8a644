"""The loss of a run and its terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cope_jax.losses.pairs import Pair
from cope_jax.models.fusion import Embeddings
from cope_jax.parallel.mesh import make_mesh
from cope_jax.runs.config_validation import replace_fields
from cope_jax.training.objective import Mean, init_losses, make_loss, make_pairs, make_views
from data_prep.common.domains import DOMAINS

B, E, CLASSES = 6, 16, 9
PAGE_PAIRS = [Pair("page", "page_2"), Pair("page.text", "page.vision")]


@pytest.fixture
def one_device():
    return make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


@pytest.fixture
def items():
    """Embeddings and their batch: example 1 has no video, page 2 no text, live 3 neither frame nor text.

    Examples 0 and 4 have no second page.
    """
    rng = np.random.default_rng(0)

    def unit():
        x = rng.normal(size=(B, E))
        return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)

    embeddings, batch = {}, {"product_class": jnp.arange(B)}
    for domain in (*DOMAINS, "page_2"):
        there = {name: np.ones(B, bool) for name in ("present", "vision", "text")}
        if domain == "video":
            there["present"][1] = False
        if domain == "page":
            there["text"][2] = False
        if domain == "page_2":
            there["present"][[0, 4]] = False
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
    views = make_views(*items, [*PAGE_PAIRS, Pair("video", "live")])
    absent = {name: np.flatnonzero(~np.asarray(view.present)).tolist() for name, view in views.items()}
    assert absent == {"page": [], "page_2": [0, 4], "page.text": [2], "page.vision": [], "video": [1], "live": [3]}
    np.testing.assert_array_equal(views["page.text"].vectors, items[0]["page"].text)
    np.testing.assert_array_equal(views["page.vision"].vectors, items[0]["page"].vision)


def test_pairs_are_those_of_the_authors(tiny_config):
    names = ["page_video", "page_live", "video_live"]
    losses = tiny_config.losses
    assert [pair.name for pair in make_pairs(tiny_config.view_pairs(losses.sigmoid))] == names
    names += ["page_text_video", "page_text_live", "page_vision_video", "page_vision_live"]
    assert [(pair.name, pair.weight) for pair in make_pairs(losses.infonce.pairs)] == [(name, 1.0) for name in names]


def test_views_paired_with_themselves_need_second_items(tiny_config):
    assert list(tiny_config.batch_entries) == ["page", "video", "live"]
    pairs = (("page.text", "page.vision", 0.5), ("live.vision", "live.vision", 2.0))
    config = replace_fields(tiny_config, {"losses.sigmoid.pairs": pairs})
    assert list(config.batch_entries) == ["page", "video", "live", "live_2"]
    assert make_pairs(pairs) == [Pair("page.text", "page.vision", 0.5), Pair("live.vision", "live_2.vision", 2.0)]
    shop = {"shop": "image"}
    changes = {"data.domains": shop, "data.frames": {"shop": 1}, "eval.frames": {"shop": 1}}
    config = replace_fields(tiny_config, changes | {"model.text_domains": ()})
    assert config.batch_entries == {"shop": "shop", "shop_2": "shop"}


@pytest.mark.slow
def test_pairs_of_texts_images_and_second_items_equal_the_formula(tiny_config, items, one_device):
    """Loss of each pair in float64, from the embeddings. No two examples show the same product."""
    embeddings, batch = items
    pairs = (("page.text", "page.vision", 0.5), ("page", "page", 2.0))
    config = replace_fields(tiny_config, {"losses.sigmoid.pairs": pairs, "losses.sigmoid.temperature": 3.0})
    _, metrics = make_loss(config, one_device)(init_losses(config), embeddings, batch, jax.random.key(0))
    second = np.asarray(batch["page_2"]["present"])
    sides = {
        "page_text_page_vision": (embeddings["page"].text, embeddings["page"].vision, embeddings["page"].has_text),
        "page_page_2": (embeddings["page"].fused, embeddings["page_2"].fused, np.ones(B, bool)),
    }
    losses = {}
    for name, (a, b, present) in sides.items():
        logits = 3 * np.asarray(a, np.float64) @ np.asarray(b, np.float64).T + config.losses.sigmoid.bias
        both = np.outer(present, second if "2" in name else np.ones(B, bool))
        losses[name] = (both * np.log1p(np.exp(np.where(np.eye(B), -logits, logits)))).sum() / B
        np.testing.assert_allclose(metrics[f"sigmoid/loss/{name}"].compute(), losses[name], rtol=1e-5)
    total = 0.5 * losses["page_text_page_vision"] + 2 * losses["page_page_2"]
    np.testing.assert_allclose(metrics["sigmoid/loss"].compute(), total, rtol=1e-5)


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


def test_a_nested_loss_is_the_mean_over_lengths_in_float64(tiny_config, items, one_device):
    embeddings, batch = items
    changes = {"losses.nested": [3, 7], "losses.sigmoid.within": [["live", 0.5]], "losses.sigmoid.weight": 1.0}
    config = replace_fields(tiny_config, changes | {"losses.sigmoid.pairs": [["page", "video", 2.0]]})
    params = init_losses(config)

    def loss_of(page):
        changed = embeddings | {"page": embeddings["page"].replace(fused=page)}
        return make_loss(config, one_device)(params, changed, batch, jax.random.key(0))[0]

    t, bias = config.losses.sigmoid.temperature, config.losses.sigmoid.bias

    def reference(page):
        total = 0.0
        for length in (3, 7, E):
            short = {name: np.asarray(embeddings[name].fused, np.float64)[:, :length] for name in ("video", "live")}
            short["page"] = page[:, :length]
            short = {name: x / np.linalg.norm(x, axis=1)[:, None] for name, x in short.items()}
            for a, b, weight in (("page", "video", 2.0), ("live", "live", 0.5)):
                for i in range(B):
                    for j in range(B):
                        if (b == "video" and j == 1) or (a == b and (i == j or 3 in (i, j))):
                            continue
                        sign = 1 if i == j else -1
                        total += weight / B * np.log1p(np.exp(-sign * (t * short[a][i] @ short[b][j] + bias))) / 3
        return total

    page = np.asarray(embeddings["page"].fused, np.float64)
    value, gradient = jax.jit(jax.value_and_grad(loss_of))(embeddings["page"].fused)
    assert value == pytest.approx(reference(page), rel=1e-5)
    for place in ((0, 2), (4, 6), (5, 9)):
        step = np.zeros_like(page)
        step[place] = 1e-5
        expected = (reference(page + step) - reference(page - step)) / 2e-5
        assert gradient[place] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_mean_over_nothing_is_nan():
    assert np.isnan(Mean(np.float32(0), np.float32(0)).compute())
