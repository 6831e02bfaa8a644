"""Numbers of parameters at published sizes; nothing is computed."""

import jax
import pytest

from configs import default
from cope_jax.runs.config_validation import resolve_config
from cope_jax.runs.model import split_model

# config.model.vision for each X-CLIP and CLIP.
SHAPES = {
    "B/32": {"patch_size": 32},
    "B/16": {"patch_size": 16},
    "L/14": {"patch_size": 14, "width": 1024, "depth": 24, "heads": 16, "output_width": 768},
}


def counts(**changed) -> dict[str, int]:
    """Counts the parameters of each part of the default model with changed settings."""
    changes = {key.replace("__", "."): value for key, value in changed.items()}
    config = resolve_config(default.get_config(), changes)
    _, initialize = split_model(config, vocab_size=21128)
    params = jax.eval_shape(initialize).params
    return {name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in params}


def vision_settings(shape: str) -> dict[str, object]:
    return {f"model__vision__{key}": value for key, value in SHAPES[shape].items()}


@pytest.mark.parametrize(("shape", "published"), [("B/32", 87_849_216), ("B/16", 86_192_640), ("L/14", 303_966_208)])
def test_without_messages_and_integration_the_vision_encoder_is_clip(shape, published):
    """Compared with OpenAI's visual encoders."""
    plain = {"model__vision__cross_frame": False, "model__vision__integration_depth": 0}
    assert counts(**vision_settings(shape), **plain)["vision"] == published


@pytest.mark.parametrize("integration_depth", [1, 4])
@pytest.mark.parametrize(
    ("shape", "clip", "D", "depth", "E"),
    [("B/16", 86_192_640, 768, 12, 512), ("L/14", 303_966_208, 1024, 24, 768)],
)
def test_messages_and_integration_add_their_parameters(shape, clip, D, depth, E, integration_depth):
    """A block's message: a linear layer, a norm, attention (four matrices). Integration: positions and blocks."""
    messages = depth * (D**2 + D + 2 * D + 4 * (D**2 + D))
    integration = 8 * E + integration_depth * (12 * E**2 + 13 * E)
    settings = vision_settings(shape) | {"model__vision__integration_depth": integration_depth}
    assert counts(**settings)["vision"] == clip + messages + integration


@pytest.mark.parametrize("depth", [3, 6, 12])
def test_the_text_encoder_is_bert(depth):
    """bert-base-chinese has 102,267,648 with pooler and 512 positions; RBT3 and RBT6 leave out whole layers."""
    layer = 12 * 768**2 + 13 * 768
    found = counts(model__text__depth=depth, data__text_length=512)["text"]
    assert found == 102_267_648 - (12 - depth) * layer


def test_fusion_heads_have_the_sizes_of_their_parts():
    assert counts()["fusion"] == 3 * (512 * 128 + 768 * 128 + 256 * 128 + 3 * 128)
    D = 256
    transformer = 3 * D + (512 + 768) * D + 2 * D + 2 * (12 * D**2 + 13 * D) + 2 * D + D * 128 + 128
    assert counts(model__fusion__kind="transformer")["fusion"] == 3 * transformer
