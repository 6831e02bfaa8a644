"""The product classifier against a float64 loop over items, on meshes of one and eight devices."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cope_jax.losses import ring
from cope_jax.losses.classifier import CLASS_AXES, classifier_loss, init_table, table_rows
from cope_jax.losses.ring import BATCH_AXES, TILE
from cope_jax.parallel.mesh import make_mesh
from data_prep.common.domains import DOMAINS

from .conftest import relative_error

# Classes on each of eight devices, with padding on the last, and items for two tiles.
CLASSES, B, E, M = 3000, 96, 7, 3
assert TILE < 3 * B < 2 * TILE


def mesh_of(sizes):
    data, fsdp, tensor = sizes
    return make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=jax.devices()[: data * fsdp * tensor])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def batch():
    """Items near their products, so that some are recognized; some missing, some of other products, too."""
    rng = np.random.default_rng(0)
    rows = table_rows(CLASSES)
    table = rng.normal(size=(rows, E)).astype(np.float32) * rng.uniform(0.01, 2, (rows, 1))
    table[CLASSES:] *= 100
    target = rng.choice(CLASSES, B).astype(np.int32)
    target[5] = target[80] = target[7]  # one product three times in a batch
    target[11] = CLASSES - 1
    embeddings, labels, present = {}, {}, {}
    for domain in DOMAINS:
        embeddings[domain] = unit(unit(table[target]) + 0.2 * rng.normal(size=(B, E))).astype(np.float32)
        labels[domain] = np.full((B, M), -1, np.int32)
        labels[domain][:, 0] = target
        # Near products, which would have a high weight as negatives; the target is not always first.
        nearest = np.argsort(-embeddings[domain] @ unit(table[:CLASSES]).T)[:, :3]
        for b in range(0, B, 3):
            others = [c for c in nearest[b] if c != target[b]][: b % 2 + 1]
            labels[domain][b, : 1 + len(others)] = sorted([target[b], *others])
        present[domain] = rng.random(B) < 0.8
    embeddings["video"][~present["video"]] = 5.0
    embeddings["live"][~present["live"]] = np.nan
    return table.astype(np.float32), embeddings, target, labels, present


def reference(table, embeddings, target, labels, present, *, scale, margin, considered=None):
    """Computes loss and statistics item by item in float64, with the gradients by hand."""
    table = table.astype(np.float64)
    considered = range(CLASSES) if considered is None else considered
    length = np.linalg.norm(table, axis=-1)
    total, d_table, d_embeddings, statistics = 0.0, np.zeros_like(table), {}, {}
    for domain in embeddings:
        count = present[domain].sum()
        d_embeddings[domain] = np.zeros((B, E))
        losses, hits, positives = [], [], []
        for b in np.flatnonzero(present[domain]):
            x = embeddings[domain][b].astype(np.float64)
            others = set(labels[domain][b].tolist()) - {target[b]}
            ids = np.array([c for c in considered if c not in others])
            unit_rows = table[ids] / length[ids, None]
            cos = unit_rows @ x
            logits = scale * (cos - margin * (ids == target[b]))
            exponentials = np.exp(logits - logits.max())
            probability = exponentials / exponentials.sum()
            losses.append(np.log(exponentials.sum()) + logits.max() - logits[ids == target[b]].item())
            hits.append(ids[cos.argmax()] == target[b])
            positives.append(cos[ids == target[b]].item())
            slope = scale * (probability - (ids == target[b])) / count
            d_embeddings[domain][b] = slope @ unit_rows
            tangent = x[None] - cos[:, None] * unit_rows  # of the cosines, across the rows
            d_table[ids] += slope[:, None] * tangent / length[ids, None]
        total += np.sum(losses) / max(count, 1)
        values = {"loss": losses, "accuracy": hits, "positive": positives}
        statistics |= {f"{name}/{domain}": (np.sum(value), count) for name, value in values.items()}
    return total, d_table, d_embeddings, statistics


@pytest.fixture(scope="module")
def run():
    """Returns a function that computes loss and gradients on a mesh; equal settings compile once."""
    made = {}

    def call(batch, *, sizes=(2, 2, 2), scale=16.0, margin=0.4, rate=1.0, key=0, precision="highest"):
        settings = (sizes, scale, margin, rate, precision)
        if settings not in made:
            mesh = mesh_of(sizes)
            table, examples = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (CLASS_AXES, BATCH_AXES))
            options = {"scale": scale, "margin": margin, "rate": rate, "precision": precision}
            loss = partial(classifier_loss, mesh=mesh, classes=CLASSES, **options)
            made[settings] = jax.jit(
                lambda key, *arrays: jax.value_and_grad(partial(loss, key=key), argnums=(0, 1), has_aux=True)(*arrays),
                in_shardings=(None, table, *[examples] * 4),
            )
        return jax.device_get(made[settings](jax.random.key(key), *batch))

    return call


def assert_close(found, expected):
    (loss, statistics), (d_table, d_embeddings) = found
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    gradients = [(d_table, expected[1]), *((d_embeddings[domain], expected[2][domain]) for domain in DOMAINS)]
    for gradient, wanted in gradients:
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    assert statistics.keys() == expected[3].keys()
    for name, pair in expected[3].items():
        np.testing.assert_allclose(statistics[name], pair, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_loss_and_gradients_equal_the_reference_on_every_mesh(batch, run, sizes):
    expected = reference(*batch, scale=16.0, margin=0.4)
    hits = sum(total for name, (total, _) in expected[3].items() if name.startswith("accuracy"))
    assert 20 < hits < 200  # neither all right nor all wrong
    found = run(batch, sizes=sizes)
    assert_close(found, expected)
    assert not found[1][0][CLASSES:].any()


def test_the_last_tile_may_be_partly_empty(batch, run, monkeypatch):
    monkeypatch.setattr(ring, "TILE", 61)  # five tiles of 58 for 288 items
    assert_close(run(batch, margin=0.3), reference(*batch, scale=16.0, margin=0.3))


def test_loss_and_gradients_equal_the_reference_at_the_authors_scale(batch, run):
    assert_close(run(batch, scale=64.0), reference(*batch, scale=64.0, margin=0.4))


@pytest.mark.parametrize(("precision", "least", "most"), [("highest", 0.0, 2e-6), ("bfloat16", 1e-4, 2e-2)])
def test_the_error_of_products_in_each_precision(batch, run, precision, least, most):
    """Rounded factors change gradients by some thousandths of their norm."""
    (loss, _), gradients = run(batch, precision=precision)
    expected_loss, *expected, _ = reference(*batch, scale=16.0, margin=0.4)
    assert least < relative_error(gradients, expected) < most
    assert relative_error(loss, expected_loss) < most / 4


def test_a_domain_without_items_adds_nothing(batch, run):
    table, embeddings, target, labels, present = batch
    batch = (table, embeddings, target, labels, present | {"live": np.zeros(B, bool)})
    found = run(batch)
    assert_close(found, reference(*batch, scale=16.0, margin=0.4))
    assert found[0][1]["loss/live"] == (0, 0)


def test_an_example_without_a_class_is_absent(batch, run):
    table, embeddings, target, labels, present = batch
    unknown = np.isin(np.arange(B), [0, 40, 41])
    found = run((table, embeddings, np.where(unknown, -1, target).astype(np.int32), labels, present))
    absent = {domain: present[domain] & ~unknown for domain in DOMAINS}
    assert_close(found, reference(table, embeddings, target, labels, absent, scale=16.0, margin=0.4))


def test_the_gradient_is_scaled_by_the_cotangent_and_the_loss_works_without_gradients(batch):
    settings = {"mesh": mesh_of((2, 2, 2)), "classes": CLASSES, "scale": 16.0, "margin": 0.4, "rate": 1.0}
    loss = jax.jit(lambda *arrays: classifier_loss(*arrays, key=jax.random.key(0), **settings))
    expected = reference(*batch, scale=16.0, margin=0.4)
    (value, statistics) = loss(*batch)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(statistics["loss/page"], expected[3]["loss/page"], rtol=1e-5)
    d_table = jax.grad(lambda table: jnp.square(loss(table, *batch[1:])[0]))(batch[0])
    wanted = 2 * expected[0] * expected[1]
    np.testing.assert_allclose(d_table, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_a_sample_contains_all_targets_and_defines_the_loss(batch, run, sizes):
    _, _, target, _, present = batch
    # The small scale keeps all probabilities above 0 in float32, so that each row in use has a gradient.
    (found, other, again) = (run(batch, sizes=sizes, scale=4.0, rate=0.3, key=key) for key in (0, 1, 0))
    kept, others = (np.flatnonzero(gradients[0].any(axis=-1)) for _, gradients in (found, other))
    shown = target[np.any([present[domain] for domain in DOMAINS], axis=0)]
    devices = math.prod(sizes)
    per_device = table_rows(CLASSES) // devices
    assert np.bincount(kept // per_device).tolist() == [math.ceil(0.3 * per_device)] * devices
    assert kept.max() < CLASSES
    assert set(shown) <= set(kept) & set(others)
    negatives, other_negatives = set(kept) - set(shown), set(others) - set(shown)
    # About 3 in 10 of a device's other rows are drawn, and 3 in 10 of those again.
    assert 0.1 < len(negatives & other_negatives) / len(negatives) < 0.4
    first, second = (set(kept[kept // per_device == device] % per_device) for device in (0, 1))
    assert len(first & second) < 0.6 * len(first)  # devices draw independently
    assert_close(found, reference(*batch, scale=4.0, margin=0.4, considered=kept))
    jax.tree.map(np.testing.assert_array_equal, found, again)


def test_a_small_sample_is_enlarged_to_contain_all_targets(batch, run):
    table, embeddings, *_ = batch
    target = np.arange(0, 2 * B, 2, dtype=np.int32)  # all on the first device
    labels = {domain: np.where(np.arange(M) == 0, target[:, None], -1).astype(np.int32) for domain in DOMAINS}
    pages = {domain: embeddings["page"] for domain in DOMAINS}
    batch = (table, pages, target, labels, {domain: np.ones(B, bool) for domain in DOMAINS})
    found = run(batch, scale=4.0, rate=0.01)
    kept = np.flatnonzero(found[1][0].any(axis=-1))
    assert np.bincount(kept // 384).tolist() == [B] * 8
    assert kept[:B].tolist() == target.tolist()
    assert_close(found, reference(*batch, scale=4.0, margin=0.4, considered=kept))


def test_nothing_overflows(batch, run):
    table, _, target, labels, present = batch
    right = unit(table[target]).astype(np.float32)
    for sign, bound in ((1, (0, 100)), (-1, (3 * 64, 3 * 200))):
        embeddings = {domain: sign * right for domain in DOMAINS}
        (loss, _), gradients = run((table, embeddings, target, labels, present), scale=64.0)
        assert bound[0] < loss < bound[1]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_a_table_row_of_zeros_gives_finite_values(batch, run):
    table, *rest = batch
    table = table.copy()
    table[[rest[1][0], 1500]] = 0
    (loss, _), gradients = run((table, *rest))
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_ties_count_against_the_model(batch, run):
    table, *rest = batch
    (_, statistics), _ = run((np.zeros_like(table), *rest))
    assert [statistics[f"accuracy/{domain}"][0] for domain in DOMAINS] == [0, 0, 0]


def test_no_device_gathers_the_table_or_holds_all_logits_of_its_classes():
    classes, examples, embedding = 3_000_000, 1024, 64
    mesh = mesh_of((2, 2, 2))
    table, batch = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (CLASS_AXES, BATCH_AXES))

    def shape(sharding, dtype, *sizes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    loss = partial(classifier_loss, key=jax.random.key(0), mesh=mesh, classes=classes, scale=64.0, margin=0.4, rate=0.1)
    found = (
        jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        .lower(
            shape(table, jnp.float32, table_rows(classes), embedding),
            {domain: shape(batch, jnp.float32, examples, embedding) for domain in DOMAINS},
            shape(batch, jnp.int32, examples),
            {domain: shape(batch, jnp.int32, examples, 1) for domain in DOMAINS},
            {domain: shape(batch, jnp.bool_, examples) for domain in DOMAINS},
        )
        .compile()
    )
    gathered = re.findall(r"= (\w+)\[([\d,]*)\]\S* all-gather", found.as_text())
    assert gathered
    assert max(math.prod(map(int, sizes.split(","))) for _, sizes in gathered) <= 3 * examples * embedding
    memory = found.memory_analysis()
    part, kept = 4 * table_rows(classes) // 8 * embedding, table_rows(classes) // 80
    assert part < memory.argument_size_in_bytes < 1.01 * part
    # The sampled rows with their gradients, and a few arrays of the logits of a tile.
    assert memory.temp_size_in_bytes < 4 * kept * (3 * embedding + 5 * TILE)


def test_the_table_is_padded_to_a_multiple_of_any_usual_number_of_devices():
    assert [table_rows(classes) for classes in (1, 3072, 3073, 187_431)] == [3072, 3072, 6144, 187_392 + 3072]
    sharding = NamedSharding(mesh_of((2, 2, 2)), PartitionSpec(CLASS_AXES))
    init = partial(init_table, classes=3073, embedding=5)
    table = jax.jit(init, out_shardings=sharding)(jax.random.key(3))
    assert (table.shape, table.dtype) == ((6144, 5), jnp.float32)
    assert table.addressable_shards[0].data.shape == (768, 5)
    np.testing.assert_allclose([np.std(table), np.mean(table)], [0.01, 0], rtol=0.02, atol=2e-4)
    np.testing.assert_allclose(table, init(jax.random.key(3)), rtol=1e-6)
