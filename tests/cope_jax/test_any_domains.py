"""Tests that data sets with one, two and four domains are trained, evaluated, reported, searched and exported."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import catalog
from cope_jax import Embedder
from cope_jax.data.records import open_records
from cope_jax.evaluation.evaluate_run import evaluate
from cope_jax.evaluation.report.report import write_report
from cope_jax.evaluation.result_tables import format_tables
from cope_jax.export import export_run
from cope_jax.runs.config_validation import replace_fields, resolve_config
from cope_jax.runs.inputs import check_domains, training_batches
from cope_jax.runs.log_files import EVALUATIONS, read_json_lines
from cope_jax.search.library import open_library
from cope_jax.training.loop import train
from data_prep.common.domains import directions
from tests.conftest import TINY, rename_domains

SETS = {
    "shop": {"shop": ("page", 0, 1)},
    "pair": {"shop": ("page", 0, 1), "spin": ("video", 0, 1)},
    "quad": {"page": ("page", 0, 2), "live": ("live", 0, 1), "photo": ("page", 1, 2), "spin": ("video", 0, 1)},
}


# Each set trains a run of its own, which compiles for half a minute.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("pair", "quad")]


@pytest.fixture(scope="module", params=["shop", *SLOW])
def config(request, synthetic_data_dir, tmp_path_factory):
    """Config of a small run on a data set with other domains."""
    name = request.param
    data_dir = rename_domains(synthetic_data_dir, tmp_path_factory.mktemp(name) / "set", name, SETS[name])
    fields = catalog.get_config(str(data_dir))
    changes = {key: value for key, value in TINY.items() if ".frames." not in key}
    changes |= {"data.frames": dict.fromkeys(SETS[name], 1), "train.steps": 2, "train.evaluate_every": 2}
    changes |= {"optimizer.warmup_steps": 1}
    return resolve_config(
        fields,
        changes | {"model.vision.stem": "patch", "train.evaluate_products": 12, "losses.classifier.weight": 0.1},
    )


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    """Work directory of a run of two steps."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(config, folder)
    return folder


def test_configs_have_the_domains_of_the_data_set(config):
    name = open_records(config.data.data_dir, "train").items.keys()
    assert config.data.domains.keys() == config.eval.frames.keys() == name
    other = replace_fields(config, {"data.data_dir": "/nowhere"})
    check_domains(other)  # reported later, when the records are opened
    kinds = dict.fromkeys(config.data.domains, "image") | {"extra": "image"}
    frames = dict.fromkeys(kinds, 1)
    with pytest.raises(ValueError, match=r"config\.data\.domains is .*extra:image.*expected those of .*extra unknown"):
        check_domains(replace_fields(config, {"data.domains": kinds, "data.frames": frames, "eval.frames": frames}))


def test_weights_are_used_if_they_are_available(monkeypatch, capsys):
    scratch = resolve_config(catalog.get_config("/nowhere"))
    assert capsys.readouterr().out.startswith(
        "training from scratch: google/siglip2-base-patch16-224 is not in the cach"
    )
    assert (scratch.model.init_from, scratch.finetune.method) == ("", "full")
    monkeypatch.setattr(catalog, "is_available", lambda *_: True)
    for cpu, method in ((True, "frozen"), (False, "lora")):
        monkeypatch.setattr(catalog, "computes_on_cpu", lambda cpu=cpu: cpu)
        config = resolve_config(catalog.get_config("/nowhere"))
        assert f"starting from {config.model.init_from} with config.finetune.method={method}" in capsys.readouterr().out
        assert config.finetune.method == method
    assert resolve_config(catalog.get_config("/nowhere,scratch")) == scratch
    assert capsys.readouterr().out == ""


def test_settings_follow_from_the_statistics(capsys):
    """Few products, small images, and products with a second item in one of two domains only."""
    photo = catalog.Statistics(kind="image", frames=3, side=50, texts=0.05, tokens=9, several=0.4)
    spin = catalog.Statistics(kind="clip", frames=3, side=300, texts=0.7, tokens=41, several=0.05)
    fields = catalog.get_config("/nowhere").to_dict()
    catalog.fit(fields, {"photo": photo, "spin": spin}, products=45)
    config = resolve_config(fields)
    assert (config.data.image_size, config.data.text_length) == (48, 48)
    assert (config.data.frames, config.eval.frames) == ({"photo": 1, "spin": 2}, {"photo": 1, "spin": 3})
    assert config.model.text_domains == ("spin",)
    assert (config.train.batch_size, config.train.steps, config.losses.sigmoid.bias) == (16, 1680, -3)
    pairs = (("photo", "spin", 1.0), ("photo", "photo", 1.0), ("spin.text", "spin.vision", 0.5))
    assert config.losses.sigmoid.pairs == pairs
    views = [("photo", "spin"), ("photo", "photo")]
    frames = (*((f"{a}.vision", f"{b}.vision", 1.0) for a, b in views), ("spin.text", "spin.vision", 1.0))
    assert (config.losses.infonce.pairs, config.losses.infonce.weight, config.model.fusion.kind) == (
        frames,
        1.0,
        "mean",
    )
    assert "train.steps = 1,680: 26,880 products, each 597 times" in capsys.readouterr().out
    catalog.fit(fields, {"photo": dataclasses.replace(photo, several=0.0)}, products=10**6)
    assert (fields["train"]["batch_size"], fields["train"]["steps"]) == (64, 156_250)
    assert "warning: there is nothing to compare" in capsys.readouterr().out


def test_statistics_of_a_data_set(config):
    """All items of these sets have 32 pixels, and most have a text."""
    records = open_records(config.data.data_dir, "train")
    found, products = catalog.describe(records), [records.products[i] for i in range(len(records.products))]
    assert found.keys() == config.data.domains.keys()
    for domain, own in found.items():
        assert (own.kind, own.side) == (config.data.domains[domain], 32)
        assert own.texts > 0.5
        assert own.frames > 1 or own.kind == "image"
        counts = [len(product.rows[domain]) for product in products if len(product.rows[domain])]
        assert own.several == pytest.approx(np.mean([count > 1 for count in counts]))


def test_a_single_domain_is_trained_with_two_items_of_each_product(config, workdir):
    from cope_jax.data.tokenizer import load_tokenizer

    batches = training_batches(config, load_tokenizer(workdir / "tokenizer"), start_step=0)
    batch = next(batches)
    batches.close()
    domains = tuple(config.data.domains)
    assert {key for key, value in batch.items() if isinstance(value, dict)} == set(config.batch_entries)
    if len(domains) > 1:
        return
    first, second = batch["shop"], batch["shop_2"]
    rows = open_records(config.data.data_dir, "train").products
    counts = {product.product_id: len(product.rows["shop"]) for product in map(rows.__getitem__, range(len(rows)))}
    several = np.array([counts[product] > 1 for product in batch["product_id"].tolist()])
    assert 0 < several.sum() < len(several)
    np.testing.assert_array_equal(second["present"], several)
    assert first["present"].all()
    for pair in np.flatnonzero(several):
        assert (first["frames"][pair] != second["frames"][pair]).any()
        assert set(first["products"][pair]) & set(second["products"][pair]) - {-1}


def test_all_directions_are_evaluated_and_reported(config, workdir):
    evaluation = evaluate(workdir)
    metrics = evaluation.metrics
    names = directions(config.data.domains)
    assert metrics["retrieval"].keys() | metrics["empty"]["retrieval"].keys() == names.keys()
    assert "mean_r1" in metrics["retrieval_mean"]
    for name in metrics["retrieval"]:
        assert metrics["retrieval"][name]["gallery"] > 0
    if len(config.data.domains) == 1:
        assert metrics["retrieval"] == {"s2s": metrics["same_domain"]["shop"]}
        assert metrics["retrieval"]["s2s"]["gallery"] == len(evaluation.embedded.items["shop"].rows) - 1
    (probe,) = read_json_lines(workdir / EVALUATIONS)
    assert {f"{name}_r1" for name in metrics["retrieval"]} <= probe.keys()
    assert all(arrow in format_tables(metrics) for arrow in (" → ",))
    write_report(workdir, evaluation, evaluation.embedded)
    report = evaluation.files.report.read_text()
    assert all(f"{source} → {target}" in report for source, target in names.values())
    shown = json.loads(report.partition('id="data">')[2].partition("</script>")[0])["items"].values()
    assert all(card["id"].startswith("I") and card["products"][0].startswith("P") for card in shown)
    assert report.count(" products only: mean R@1 is ") == 1
    if len(config.data.domains) == 4:
        assert all(f'<path class="{mark}"' in report for mark in ("page", "video", "live", "fourth"))


def test_items_are_searched_in_any_domain(config, workdir):
    library = open_library(workdir, report=lambda line: None)
    assert library.domains == tuple(config.data.domains)
    for domain in library.domains:
        item = library.ids[domain][0]
        assert item.startswith("I")
        result = library.search_item(domain, item, among=library.other_domains(domain), top=3)
        assert len(result.hits) == 3
        assert all((hit.card.domain, hit.card.item_id) != (domain, item) for hit in result.hits)
        assert all(product.startswith("P") for hit in result.hits for product in hit.card.product_ids)
        rows = pq.read_table(next((library.embeddings / domain).glob("*.parquet"))).to_pylist()
        assert [row["item_id"] for row in rows] == library.ids[domain][: len(rows)].tolist()
        items = library.records.items[domain]
        assert [tuple(row["product_ids"]) for row in rows] == [items[row].own_products for row in range(len(rows))]
        cheap = library.search_item(domain, item, among=[domain], top=100, where="unit_price < 3").hits
        wanted = [items[row].own_id for row in range(len(items)) if int(items[row].columns["unit_price"]) < 3]
        assert {hit.card.item_id for hit in cheap} == set(wanted) - {item}
    with pytest.raises(ValueError, match=f"unknown domain 'video': choose among {', '.join(library.domains)}"):
        library.search_item("video", 1)


def test_exports_embed_the_same_domains(config, workdir, tmp_path):
    export_run(workdir, tmp_path / "export")
    photo = np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8)
    own, exported = Embedder.from_workdir(workdir), Embedder.from_export(tmp_path / "export")
    for domain in config.data.domains:
        vectors = [embedder.embed(domain, images=[photo], texts=["red"]) for embedder in (own, exported)]
        np.testing.assert_allclose(*vectors, atol=1e-5)
    with pytest.raises(ValueError, match=f"unknown domain 'video': choose one of {', '.join(config.data.domains)}"):
        own.embed("video", images=[photo])
