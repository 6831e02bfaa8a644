"""Runs that start from other runs and from exports."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cope_jax.data.tokenizer import load_tokenizer, save_tokenizer, train_wordpiece
from cope_jax.export import export_run
from cope_jax.parallel.mesh import make_mesh
from cope_jax.runs.checkpoints import Checkpoints
from cope_jax.runs.config_file import save_config
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.initial_weights import prepare_weights
from cope_jax.runs.inputs import run_tokenizer
from cope_jax.runs.model import encoder_settings, load_model, split_model
from cope_jax.training.plan import make_plan, restore_or_initialize


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """A folder with the export of the run."""
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    export_run(workdir, folder)
    return folder


@pytest.fixture(scope="module")
def stored(workdir):
    """The newest checkpoint of the run, as NumPy arrays."""
    with ocp.StandardCheckpointer() as reader:
        return jax.tree.map(np.asarray, reader.restore(workdir.absolute() / "checkpoints/6/state"))


def first_state(config, folder):
    """The initial state on two devices of a run with the tokenizer of its config."""
    mesh = make_mesh(data=1, fsdp=2, tensor=1, devices=jax.devices()[:2])
    vocab_size = len(run_tokenizer(config, folder))
    plan = make_plan(config, mesh, vocab_size=vocab_size)
    with Checkpoints(folder) as checkpoints:
        return restore_or_initialize(config, plan, checkpoints, vocab_size=vocab_size)[0]


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


@pytest.mark.slow
def test_one_encoder_starts_from_a_run_and_the_rest_from_random_values(
    make_tiny_config, workdir, stored, tmp_path, capsys
):
    changes = {"model.embedding": 24, "data.tokenizer": str(workdir / "tokenizer"), "train.average_decay": 0.9}
    fresh = first_state(make_tiny_config(changes), tmp_path / "fresh")
    config = make_tiny_config(changes | {"model.vision.init_from": str(workdir), "model.vision.drop_path": 0.0})
    state = first_state(config, tmp_path / "run")
    assert f"vision from step 6 of {workdir}" in capsys.readouterr().out
    for model in (state.params["model"], state.average.params):
        assert_equal(model["vision"], stored["params"]["model"]["vision"])
        assert_equal(model["text"], fresh.params["model"]["text"])
        assert_equal(model["fusion"], fresh.params["model"]["fusion"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "checkpoint", "export"])
def test_a_whole_model_starts_from_a_run_or_an_export(
    make_tiny_config, workdir, exported, stored, tmp_path, monkeypatch, kind
):
    monkeypatch.chdir(workdir.parent)
    source = {"run": workdir.name, "checkpoint": str(workdir / "checkpoints/6"), "export": str(exported)}[kind]
    fields = {"model.vision.init_from": source, "model.text.init_from": source}
    config = make_tiny_config(fields | {"data.tokenizer": str(workdir / "tokenizer")})
    vocab_size = len(run_tokenizer(config, tmp_path))
    with Checkpoints(tmp_path) as checkpoints:
        mesh = make_mesh(data=1, fsdp=2, tensor=1, devices=jax.devices()[:2])
        _, model = load_model(config, checkpoints, 0, mesh, vocab_size=vocab_size)
    assert_equal(model.params, stored["params"]["model"])
    statistics, expected = dict(model.statistics), dict(stored["statistics"])
    axes, moments = np.asarray(statistics.pop("axes")), expected.pop("moments")
    assert_equal(statistics, expected)
    rotated = axes.T @ moments @ axes  # in the order of the eigenvalues
    np.testing.assert_allclose(rotated, np.diag(np.linalg.eigvalsh(moments)[::-1]), atol=1e-5)


@pytest.mark.slow
def test_a_convolutional_stem_and_more_frames_in_evaluation_are_no_obstacles(make_tiny_config, tmp_path):
    """They are with published weights."""
    sizes = {"model.vision.stem": "conv", "model.vision.stem_widths": (4, 8), "model.vision.stem_blocks": (0, 1)}
    config = make_tiny_config(sizes)
    first = first_state(config, tmp_path / "first")
    save_config(config, tmp_path / "first")
    with Checkpoints(tmp_path / "first", keep=2) as checkpoints:
        checkpoints.save(1, first, {})
    changes = {"model.vision.init_from": str(tmp_path / "first"), "seed": 1}
    second = first_state(replace_fields(config, changes), tmp_path / "second")
    assert_equal(second.params["model"]["vision"], first.params["model"]["vision"])


def test_dropout_may_differ_from_that_of_the_other_run(make_tiny_config, workdir):
    rates = {"model.text.dropout": 0.3, "model.text.attention_dropout": 0.2, "model.vision.drop_path": 0.0}
    fields = {"model.vision.init_from": str(workdir), "model.text.init_from": str(workdir)}
    config = make_tiny_config(fields | rates | {"data.tokenizer": str(workdir / "tokenizer")})
    vocab_size = len(load_tokenizer(workdir / "tokenizer"))
    _, initialize = split_model(config, vocab_size=vocab_size)
    prepare_weights(config, jax.eval_shape(initialize), encoder_settings(config, vocab_size=vocab_size))


def test_another_model_or_vocabulary_is_an_error(make_tiny_config, workdir, tmp_path):
    fields = {"model.vision.init_from": str(workdir), "model.vision.heads": 4, "model.vision.depth": 2}
    with pytest.raises(ValueError, match=r"config\.model\.vision\.init_from is .*, which is another model") as caught:
        first_state(make_tiny_config(fields), tmp_path / "vision")
    assert f"config.model.vision.heads: 2 in step 6 of {workdir}, 4 now" in str(caught.value)
    assert "vision/blocks/" in str(caught.value)
    words = [*map(chr, range(0x4E00, 0x4E00 + 400))]
    save_tokenizer(train_wordpiece(words, len(run_tokenizer(make_tiny_config(), workdir))), tmp_path / "words")
    fields = {"model.text.init_from": str(workdir), "data.tokenizer": str(tmp_path / "words")}
    with pytest.raises(ValueError, match=r"config\.data\.tokenizer is .*, which has other words than .*/tokenizer"):
        first_state(make_tiny_config(fields), tmp_path / "text")
