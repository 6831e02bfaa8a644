"""Each family in the table describes encoders that the models can build."""

import importlib
import pkgutil
import re

import jax.numpy as jnp
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from transformers import AutoConfig

from cope_jax.models import backbones
from cope_jax.models.backbones.families import FAMILIES, model_types
from cope_jax.models.layers import ComputeOptions
from cope_jax.models.text import TextEncoder
from cope_jax.models.vision import VisionEncoder

ENCODERS = {"vision": VisionEncoder, "text": TextEncoder}
CASES = [(encoder, model_type) for encoder in ENCODERS for model_type in model_types(encoder)]


def test_the_table_lists_each_family_file_once():
    names = [module.name for module in pkgutil.iter_modules(backbones.__path__)]
    modules = {name: importlib.import_module(f"{backbones.__name__}.{name}") for name in names}
    assert {name: module.FAMILY for name, module in modules.items() if hasattr(module, "FAMILY")} == FAMILIES
    assert len(CASES) == sum(len(family.vision) + len(family.text) for family in FAMILIES.values())


@pytest.mark.parametrize(("encoder", "model_type"), CASES)
def test_sources_are_parameters_and_other_parameters_are_optional(encoder_settings, encoder, model_type):
    """For an encoder with the settings that the checkpoint requires, at the default sizes of transformers."""
    spec = model_types(encoder)[model_type](AutoConfig.for_model(model_type), ())
    assert spec.unsupported == ()
    settings = encoder_settings[encoder] | {key: value for key, (_, value) in spec.requirements.items()}
    compute = ComputeOptions(dtype=jnp.dtype("float32"))
    model = nnx.eval_shape(lambda: ENCODERS[encoder](**settings, compute=compute, rngs=nnx.Rngs(params=0)))
    paths = set(flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.Param)), sep="/"))
    assert set(spec.sources) <= paths
    for path in paths - set(spec.sources):
        assert any(re.search(pattern, path) for pattern in spec.optional), path
    for path, source in spec.sources.items():
        assert source.stacked == ("blocks" in path), path
