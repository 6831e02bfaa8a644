"""The full-size recipes with few layers, compiled for accelerators."""

import json
import os
import subprocess
import sys

import jax
import pytest

from configs import cope_rope, cope_rope_sigmoid
from cope_jax.runs.config_validation import resolve_config
from cope_jax.runs.model import split_model

REDUCED = {
    "data.tokenizer": "nobody/nothing",
    "data.vocab_size": 1000,
    "model.vision.depth": 2,
    "model.vision.integration_depth": 1,
    "model.text.depth": 1,
}
CONFIGS = {
    "configs.cope_rope": resolve_config(cope_rope.get_config(), REDUCED | {"losses.classifier.classes": 3072}),
    "configs.cope_rope_sigmoid": resolve_config(cope_rope_sigmoid.get_config(), REDUCED),
}
# One process for both recipes; their operations, which are not tested here, are not counted.
COMPILE = """
import importlib, json, sys
from unittest import mock
from cope_jax.parallel.targets import Target
from cope_jax.runs.config_validation import resolve_config
from cope_jax.training import dry_run

target = Target.parse(sys.argv[1])
dry_run.use_fake_devices(target.size)
with mock.patch.object(dry_run, "step_flops", return_value=0.0):
    for module, changes in json.loads(sys.argv[2]).items():
        config = resolve_config(importlib.import_module(module).get_config(), changes)
        print(json.dumps(dry_run.dry_run(config, target).summary))
"""


def compile_for(target):
    """Returns the results of the dry runs of CONFIGS without the flags of the tests, with which XLA optimizes less."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    if target.startswith("v"):  # less effort for a fast program of a TPU, with the same collectives, in half the time
        environment["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1.0"
    changes = {name: REDUCED | {"losses.classifier.classes": 3072} for name in CONFIGS}
    command = [sys.executable, "-c", COMPILE, target, json.dumps(changes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(CONFIGS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.slow  # 40 to 110 s of a core each: XLA's compilers for real devices
@pytest.mark.parametrize("target", ["h100:1", "h100:8", "v5e:2x4"])
def test_the_recipes_fit_and_communicate_only_gradients(target):
    for name, plan in compile_for(target).items():
        assert plan["target"] == target, "run ./run.sh setup accelerators"
        assert plan["fits"], name
        assert ("__cudnn$fmhaSoftmax" in plan["custom_calls"]) == target.startswith("h100"), name
        collectives = {kind: found["bytes"] for kind, found in plan["collectives"].items()}
        if target == "h100:1":
            assert collectives == {}, name
            continue
        # Each gradient is summed over devices once, in float32. Heads for texts that are not used have none.
        _, initialize = split_model(CONFIGS[name], vocab_size=1000)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(initialize).params))
        assert 0.98 < collectives.pop("all-reduce") / (4 * parameters) < 1.02, name
        assert sum(collectives.values()) < 2e6, name
        assert "u8" not in plan["permuted_types"], name  # frames stay where they are
