"""Ways to fine-tune a model that starts from another: low-rank matrices, frozen encoders, distillation, mixtures."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from cope_jax.data.tokenizer import load_tokenizer
from cope_jax.evaluation.embed_items import load_run
from cope_jax.export import export_run
from cope_jax.models.fusion import Embeddings
from cope_jax.models.lora import merge_lora
from cope_jax.parallel.mesh import make_mesh
from cope_jax.parallel.path_rules import leaf_paths
from cope_jax.parallel.sharding_rules import parameter_shardings
from cope_jax.runs.checkpoints import Checkpoints, ModelState
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import run_tokenizer, training_batch_shapes, training_batches
from cope_jax.runs.log_files import read_json_lines
from cope_jax.runs.model import load_model, model_maker, split_model
from cope_jax.runs.pretrained import start_from_weights
from cope_jax.training import feature_cache
from cope_jax.training.loop import train
from cope_jax.training.objective import embedding_distance

FRAMES = {"data.frames.video": 3, "data.frames.live": 3, "data.frame_choice": "center"}  # as in evaluation


@pytest.fixture(scope="module")
def make_config(make_tiny_config, workdir):
    """A function that makes the config of a run of two steps that starts from the tiny run."""

    def make(**changes):
        fields = {"model.init_from": str(workdir), "train.steps": 2, "optimizer.warmup_steps": 1, "train.log_every": 1}
        return start_from_weights(make_tiny_config(FRAMES | fields | changes), keep=changes)

    return make


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


def stored(config, folder, step, mesh):
    """The model of a step as NumPy arrays by path."""
    with Checkpoints(folder) as checkpoints:
        _, model = load_model(config, checkpoints, step, mesh, vocab_size=len(load_tokenizer(folder / "tokenizer")))
    return dict(
        zip(jax.tree.leaves(leaf_paths(model.params)), map(np.asarray, jax.tree.leaves(model.params)), strict=True)
    )


def changed_parts(config, folder, mesh):
    """The parameters that two steps changed, as "vision", "text" and "fusion"; and whether all of each part did."""
    first, last = (stored(config, folder, step, mesh) for step in (0, 2))
    return {path for path in first if not np.array_equal(first[path], last[path])}


@pytest.mark.parametrize("scan_layers", [True, False])
def test_merged_matrices_embed_like_separate_ones(make_config, workdir, one_device, scan_layers):
    config = make_config(**{"finetune.method": "lora", "finetune.rank": 3, "model.scan_layers": scan_layers})
    size = len(load_tokenizer(workdir / "tokenizer"))
    graphdef, initialize = split_model(config, vocab_size=size, mesh=one_device)
    params, statistics = jax.jit(initialize)()
    keys = iter(jax.random.split(jax.random.key(1), 99))
    paths = leaf_paths(params)
    # The second matrix starts at 0.
    assert all(
        (leaf == 0).all()
        for path, leaf in zip(*map(jax.tree.leaves, (paths, params)), strict=True)
        if path.endswith("lora_b")
    )
    params = jax.tree.map(
        lambda path, leaf: jax.random.normal(next(keys), leaf.shape) if path.endswith("lora_b") else leaf, paths, params
    )
    plain, _ = split_model(make_config(**{"model.scan_layers": scan_layers}), vocab_size=size, mesh=one_device)
    rng = np.random.default_rng(0)
    batch = {
        "page": {
            "frames": rng.integers(0, 256, (2, 1, 16, 16, 3), np.uint8),
            "frame_mask": np.ones((2, 1), bool),
            "text": rng.integers(1, size, (2, 12), np.int32),
        }
    }
    scale = config.finetune.alpha / 3
    separate = nnx.merge(graphdef, params, statistics)(batch)["page"]
    merged = nnx.merge(plain, merge_lora(params, scale), statistics)(batch)["page"]
    without = nnx.merge(plain, merge_lora(params, 0.0), statistics)(batch)["page"]
    np.testing.assert_allclose(separate.fused, merged.fused, atol=1e-6)
    assert np.abs(separate.fused - without.fused).max() > 0.01


@pytest.mark.slow  # compiles a training step
def test_low_rank_matrices_and_heads_are_all_that_training_changes(make_config, one_device, tmp_path):
    config = make_config(**{"finetune.method": "lora", "finetune.targets": "/attention/(qkv|out)$"})
    train(config, tmp_path)
    changed = changed_parts(config, tmp_path, one_device)
    encoders = {path for path in changed if not path.startswith("fusion/")}
    assert encoders == {
        f"{stack}/attention/{name}/kernel"
        for stack in ("vision/blocks/block", "vision/integration/blocks", "text/blocks")
        for name in ("qkv", "out")
    }
    assert len(changed) > len(encoders)
    export_run(tmp_path, tmp_path / "export", interpolate=0.25)
    first, last = (stored(config, tmp_path, step, one_device) for step in (0, 2))
    for name, value in load_file(tmp_path / "export/model.safetensors").items():
        if name in first:
            np.testing.assert_allclose(value, 0.25 * last[name] + 0.75 * first[name], atol=1e-6)
    with pytest.raises(ValueError, match="has low-rank matrices: export it"):
        make_config(**{"model.init_from": str(tmp_path)})


@pytest.mark.slow  # compiles a training step
def test_frozen_encoders_run_once(make_config, one_device, tmp_path, monkeypatch):
    config = make_config(**{"finetune.method": "frozen", "data.flip": False, "data.crop_scale": (1.0, 1.0)})
    train(config, tmp_path)
    changed = changed_parts(config, tmp_path, one_device)
    assert changed
    assert all(path.startswith("fusion/") for path in changed)
    losses = [line["loss"] for line in read_json_lines(tmp_path / "metrics.jsonl")]
    monkeypatch.setattr(feature_cache, "_encode", None)
    tokenizer = run_tokenizer(config, tmp_path)
    run = load_run(config, tmp_path, 0, mesh=one_device)
    model = ModelState(*run.model)
    trained = replace(run, config=replace_fields(config, {"data.eval_split": config.data.train_split}))
    features = feature_cache.cached_features(trained, None, model, tmp_path)
    kept = next(training_batches(config, tokenizer, start_step=0, features=features))
    seen = next(training_batches(config, tokenizer, start_step=0))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), kept)
    assert shapes == training_batch_shapes(config)
    make = model_maker(config, vocab_size=len(tokenizer), mesh=one_device, rotated=True)
    graphdef = nnx.graphdef(nnx.eval_shape(make))
    embed = jax.jit(lambda batch: nnx.merge(graphdef, *model)(batch))
    for domain, expected in embed({domain: seen[domain] for domain in config.data.domains}).items():
        found = embed({domain: kept[domain] for domain in config.data.domains})[domain]
        np.testing.assert_array_equal(kept[domain]["products"], seen[domain]["products"])
        np.testing.assert_allclose(found.fused, expected.fused, atol=1e-5)
    assert len(losses) == 2


@pytest.mark.slow  # compiles a training step
def test_distillation_keeps_the_initial_model(make_config, one_device, tmp_path):
    plain = {
        "model.head_norm": "none",
        "model.principal_axes": False,
        "model.vision.drop_path": 0.0,
        "model.text.dropout": 0.0,
    }
    config = make_config(**plain, **{"finetune.distill": 1.0, "train.microbatch": 4})
    train(config, tmp_path)
    losses = [line["distill/loss"] for line in read_json_lines(tmp_path / "metrics.jsonl")]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    with Checkpoints(tmp_path) as checkpoints:
        kept = {path for path in checkpoints.shapes(2) if path.startswith("teacher/")}
    first = stored(config, tmp_path, 0, one_device)
    assert {path.removeprefix("teacher/params/") for path in kept} == set(first)


def test_the_distance_to_other_embeddings_is_the_mean_over_what_an_item_has():
    """Cosines 0.6 and 0 of two fused vectors, 0.6 of one image, 1 of one text: distances 0.4, 1, 0.4, 0."""
    e = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    other = jnp.array([[0.6, 0.8], [1.0, 0.0]])
    own = Embeddings(e, e, e, jnp.array([True, False]), jnp.array([False, True]))
    teacher = {"fused": other, "vision": other, "text": e}
    assert embedding_distance({"page": own}, {"page": teacher}) == pytest.approx((0.4 + 1 + 0.4 + 0) / 4)


def test_the_share_of_trained_parameters_of_siglip_2_with_low_rank_matrices(make_tiny_config):
    sizes = {"width": 768, "depth": 12, "heads": 12, "output_width": 768}
    encoders = {f"model.{part}.{name}": value for part in ("vision", "text") for name, value in sizes.items()}
    config = make_tiny_config(
        encoders
        | {"model.vision.family": "siglip", "model.vision.pooling": "attention", "model.vision.across_frames": "gated"}
        | {"model.vision.cross_frame": False, "model.vision.integration_depth": 0, "data.image_size": 224}
        | {"model.text.family": "siglip", "model.text.pooling": "last", "model.text.dropout": 0.0}
        | {"model.fusion.kind": "aligned", "model.embedding": 768, "model.head_norm": "none"}
        | {"data.text_length": 64, "model.vision.patch_size": 16, "finetune.method": "lora"}
    )
    _, initialize = split_model(config, vocab_size=256_000)
    params = jax.eval_shape(initialize).params
    parameter_shardings(params, make_mesh(data=4, fsdp=2, tensor=1))  # all have rules
    sizes = {path: leaf.size for path, leaf in zip(*map(jax.tree.leaves, (leaf_paths(params), params)), strict=True)}
    trained = sum(size for path, size in sizes.items() if "lora" in path or path.startswith("fusion"))
    assert 0.01 < trained / sum(sizes.values()) < 0.03
