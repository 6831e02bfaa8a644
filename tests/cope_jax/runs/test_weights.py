"""Runs that start from published weights."""

import shutil
import string

import jax
import numpy as np
import pytest

from cope_jax.data.tokenizer import save_tokenizer, train_wordpiece
from cope_jax.evaluation.evaluate_run import evaluate
from cope_jax.parallel.mesh import make_mesh
from cope_jax.runs.checkpoints import Checkpoints
from cope_jax.runs.config_file import save_config
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import run_tokenizer
from cope_jax.training.loop import start


@pytest.fixture(scope="module")
def sources(tmp_path_factory, write_checkpoint):
    """A folder with an X-CLIP and a BERT with its tokenizer, and their tensors."""
    folder = tmp_path_factory.mktemp("sources")
    tokenizer = train_wordpiece(list(string.ascii_lowercase), 60)
    save_tokenizer(tokenizer, folder / "bert")
    vision = write_checkpoint(folder / "xclip", "xclip")
    text = write_checkpoint(folder / "bert", "bert", vocab_size=len(tokenizer))
    return folder, vision, text


@pytest.fixture
def config(tiny_config, sources):
    """The tiny run, with encoders of the sources' shape."""
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


def start_here(config, workdir, *, vocab_size=31, **sizes):
    """The initial state on a mesh."""
    mesh = make_mesh(**({"data": 1, "fsdp": 2, "tensor": 1} | sizes), devices=jax.devices()[:2])
    with Checkpoints(workdir) as checkpoints:
        return start(config, mesh, checkpoints, vocab_size=vocab_size)[0]


def test_encoders_start_from_their_weights_and_the_rest_as_ever(config, sources, tmp_path, capsys):
    _, vision, text = sources
    state = start_here(config, tmp_path / "loaded")
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
    fresh = start_here(replace_fields(config, scratch), tmp_path / "fresh").params
    jax.tree.map(np.testing.assert_array_equal, model["fusion"], fresh["model"]["fusion"])


def test_a_run_that_goes_on_does_not_need_the_weights(config, sources, tmp_path):
    copy = shutil.copytree(sources[0] / "xclip", tmp_path / "xclip")
    config = replace_fields(config, {"model.vision.init_from": str(copy)})
    state = start_here(config, tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    shutil.rmtree(copy)
    again = start_here(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)


def test_the_untrained_model_of_a_run_is_what_it_started_from(config, tmp_path, capsys):
    save_config(config, tmp_path)
    run_tokenizer(config, tmp_path)
    evaluate(tmp_path, step=0)
    assert "vision encoder: 41 parameters from 81 tensors of" in capsys.readouterr().out


def test_weights_of_another_vocabulary_are_refused_before_anything_starts(config, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer has 17 entries, and it has vectors for 31: set config\.data"):
        start_here(config, tmp_path, vocab_size=17)
