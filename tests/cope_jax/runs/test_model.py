"""Models of runs that start from published weights."""

import shutil
import string

import jax
import numpy as np
import pytest

from cope_jax.data.tokenizer import save_tokenizer, train_wordpiece
from cope_jax.evaluation.evaluate_run import evaluate
from cope_jax.parallel.mesh import make_mesh
from cope_jax.runs.checkpoints import Checkpoints, ModelState
from cope_jax.runs.config_file import save_config
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import run_tokenizer
from cope_jax.runs.model import with_principal_axes
from cope_jax.training.plan import make_plan, restore_or_initialize


@pytest.fixture(scope="module")
def sources(tmp_path_factory, write_checkpoint):
    """A folder with X-CLIP and BERT weights and a tokenizer, and the tensors of both."""
    folder = tmp_path_factory.mktemp("sources")
    tokenizer = train_wordpiece(list(string.ascii_lowercase), 60)
    save_tokenizer(tokenizer, folder / "bert")
    vision = write_checkpoint(folder / "xclip", "xclip")
    text = write_checkpoint(folder / "bert", "bert", vocab_size=len(tokenizer))
    return folder, vision, text


@pytest.fixture
def config(tiny_config, sources):
    """The tiny config with encoders that fit the sources."""
    folder = sources[0]
    return replace_fields(
        tiny_config,
        {
            "data.tokenizer": str(folder / "bert"),
            "model.vision.init_from": str(folder / "xclip"),
            "model.vision.width": 12,
            "model.vision.depth": 2,
            "model.vision.heads": 3,
            "model.vision.output_width": 10,
            "model.text.init_from": str(folder / "bert"),
            "model.text.init_cut": True,
            "model.text.width": 8,
            "train.steps": 3,
            "eval.frames.video": 2,
            "eval.frames.live": 2,
        },
    )


def first_state(config, workdir, *, vocab_size=31):
    """The restored or initial state on a mesh."""
    mesh = make_mesh(data=1, fsdp=2, tensor=1, devices=jax.devices()[:2])
    plan = make_plan(config, mesh, vocab_size=vocab_size)
    with Checkpoints(workdir) as checkpoints:
        return restore_or_initialize(config, plan, checkpoints, vocab_size=vocab_size)[0]


def test_encoders_start_from_published_weights_and_the_rest_from_random_ones(config, sources, tmp_path, capsys):
    _, vision, text = sources
    state = first_state(config, tmp_path / "loaded")
    report = capsys.readouterr().out
    assert "vision encoder: " in report
    assert "text encoder: " in report
    model = state.params["model"]
    np.testing.assert_array_equal(model["text"]["words"]["embedding"], text["embeddings.word_embeddings.weight"])
    stacked = model["vision"]["blocks"]["block"]["mlp"]["up"]["kernel"]
    assert stacked.sharding.spec == jax.P(None, "fsdp", "tensor")
    for i in range(2):
        kernel = vision[f"vision_model.encoder.layers.{i}.mlp.fc1.weight"].T
        np.testing.assert_array_equal(stacked[i], kernel)
    scratch = {"model.vision.init_from": "", "model.text.init_from": "", "model.text.init_cut": False}
    fresh = first_state(replace_fields(config, scratch), tmp_path / "fresh").params
    jax.tree.map(np.testing.assert_array_equal, model["fusion"], fresh["model"]["fusion"])


@pytest.mark.slow
def test_a_resumed_run_does_not_need_the_weights(config, sources, tmp_path):
    copy = shutil.copytree(sources[0] / "xclip", tmp_path / "xclip")
    config = replace_fields(config, {"model.vision.init_from": str(copy)})
    state = first_state(config, tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    shutil.rmtree(copy)
    again = first_state(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)


@pytest.mark.slow
def test_step_0_is_the_model_with_published_weights(config, tmp_path, capsys):
    save_config(config, tmp_path)
    run_tokenizer(config, tmp_path)
    evaluate(tmp_path, step=0)
    assert "vision encoder: 41 parameters from 81 tensors of" in capsys.readouterr().out


def test_weights_for_another_vocabulary_are_an_error(config, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer has 40 entries, but it has vectors for 31: set config\.data"):
        first_state(config, tmp_path, vocab_size=40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval.frames.video": 3}, r"config.eval.frames.video is 3; expected no more than all of config.data.frames"),
        (
            {"model.vision.stem": "conv", "model.vision.stem_widths": (4, 8), "model.vision.stem_blocks": (0, 1)},
            r"config.model.vision.stem is 'conv'; published weights need 'patch'",
        ),
    ],
)
def test_published_weights_need_a_patch_stem_and_no_more_frames_than_in_training(config, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        first_state(replace_fields(config, changes), tmp_path)


def test_axes_with_equal_moments_keep_their_order():
    """Otherwise, the rounding of a machine would decide."""
    moments = np.diag([1, 1, 3, 1]).astype(np.float32)
    found = with_principal_axes(ModelState({}, {"moments": jax.device_put(moments)}))
    np.testing.assert_allclose(found.statistics["axes"], np.eye(4)[:, [2, 0, 1, 3]], atol=1e-6)
