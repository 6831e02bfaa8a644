"""Fields of configs: `configs/default.py` lists all of them, and the choices are those of the code."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from configs import default
from cope_jax.data.frames import FRAME_CHOICES, SHORT_CLIPS
from cope_jax.models.fusion import FUSIONS, HEAD_NORMS
from cope_jax.models.layers import ACTIVATIONS, ATTENTIONS, REMATS
from cope_jax.models.text import FAMILIES as TEXT_FAMILIES
from cope_jax.models.text import POOLINGS as TEXT_POOLINGS
from cope_jax.models.vision import ACROSS_FRAMES, NORMALISATIONS
from cope_jax.models.vision import FAMILIES as VISION_FAMILIES
from cope_jax.models.vision import POOLINGS as VISION_POOLINGS
from cope_jax.runs import config
from cope_jax.runs.config import flatten
from cope_jax.runs.config_validation import resolve_config
from data_prep.common.domains import KINDS

ROOT = Path(__file__).parents[3]


def test_every_field_has_a_comment_and_is_read():
    """A field that nobody reads would be a setting without effect."""
    lines = (ROOT / "configs/default.py").read_text(encoding="utf-8").splitlines()
    assignments = [line for line in lines if re.match(r"    \w+(\.\w+)+ = ", line)]
    assert [line for line in assignments if "#" not in line and "ConfigDict()" not in line] == []
    files = [path for path in (ROOT / "cope_jax").rglob("*.py") if not path.name.startswith("config")]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    keys = {key.split(".")[-1] for key in flatten(resolve_config(default.get_config()))}
    methods = (ROOT / "cope_jax/runs/config.py").read_text(encoding="utf-8")  # fields that are read by methods
    assert [key for key in keys if not re.search(rf"\b{key}\b", code) and f"self.{key}" not in methods] == []


def test_the_default_config_lists_the_fields_in_the_same_order():
    """It is the order of config.json."""

    def names(kind):
        hints = get_type_hints(kind)
        return [(name, names(hint) if dataclasses.is_dataclass(hint) else []) for name, hint in hints.items()]

    def is_section(key, value):
        return isinstance(value, dict) and key not in ("domains", "frames")  # which have a field per domain

    def keys(fields):
        return [(key, keys(value) if is_section(key, value) else []) for key, value in fields.items()]

    assert keys(json.loads(default.get_config().to_json())) == names(config.RunConfig)


@pytest.mark.parametrize(
    ("section", "field", "choices"),
    [
        (config.DataConfig, "short_clips", SHORT_CLIPS),
        (config.DataConfig, "frame_choice", FRAME_CHOICES),
        (config.ModelConfig, "attention", ATTENTIONS),
        (config.ModelConfig, "remat", REMATS),
        (config.ModelConfig, "head_norm", HEAD_NORMS),
        (config.DataConfig, "domains", KINDS),
        (config.VisionConfig, "normalisation", NORMALISATIONS),
        (config.VisionConfig, "family", VISION_FAMILIES),
        (config.VisionConfig, "across_frames", ACROSS_FRAMES),
        (config.VisionConfig, "pooling", VISION_POOLINGS),
        (config.VisionConfig, "activation", ACTIVATIONS),
        (config.TextConfig, "family", TEXT_FAMILIES),
        (config.TextConfig, "activation", ACTIVATIONS),
        (config.TextConfig, "pooling", TEXT_POOLINGS),
        (config.FusionConfig, "kind", FUSIONS),
    ],
)
def test_choices_are_those_of_the_code(section, field, choices):
    hint = get_type_hints(section)[field]
    literal = hint if get_origin(hint) is Literal else get_args(hint)[-1]
    assert set(get_args(literal)) == set(choices)


@pytest.mark.parametrize(
    ("kind", "words", "allowed", "not_allowed"),
    [
        (config.PositiveInt, ">= 1", [1, 5], [0, -1]),
        (config.PositiveFraction, "> 0 and <= 1", [0.5, 1], [0, 1.5]),
        (config.FractionBelowOne, ">= 0 and < 1", [0, 0.5], [1, -0.5]),
        (config.MeshAxisSize, ">= 1, or -1", [-1, 1], [0, -2]),
        (config.Seed, ">= 0 and < 2**32", [0, 2**32 - 1], [-1, 2**32]),
    ],
)
def test_limits(kind, words, allowed, not_allowed):
    limit = get_args(kind)[1]
    assert limit.words == words
    assert all(map(limit.allows, allowed))
    assert not any(map(limit.allows, not_allowed))


def test_regular_expressions_must_compile():
    assert config.is_regex("^model/(vision|text)/")
    assert not any(map(config.is_regex, ["(", "a{99999999999}", "(" * 5000]))
