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
    "data.vocab_size": 1000,
    "losses.classifier.classes": 3072,
    "model.vision.depth": 2,
    "model.vision.integration_depth": 1,
    "model.text.depth": 1,
}


def compile_for(target, recipe, tmp_path):
    """Returns the JSON of a dry run without the flags of the tests, with which XLA would optimize less."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    if target.startswith("v"):  # less effort for a fast program of a TPU, with the same collectives, in half the time
        environment["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1.0"
    flags = [f"--config.{key}={value}" for key, value in REDUCED.items()]
    command = [sys.executable, "-m", "cope_jax", "train", f"--config={recipe.__file__}", "--dry_run", *flags]
    command += [f"--target={target}", f"--json={tmp_path / 'plan.json'}", "--config.data.tokenizer=nobody/nothing"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))


@pytest.mark.slow  # 15 to 40 s each: XLA's compilers for real devices
@pytest.mark.parametrize(
    ("recipe", "target"),
    [(cope_rope, "h100:8"), (cope_rope, "v5e:2x4"), (cope_rope_sigmoid, "h100:1")],
    ids=["authors-h100:8", "authors-v5e:2x4", "sigmoid-h100:1"],
)
def test_a_recipe_fits_and_communicates_only_gradients(recipe, target, tmp_path):
    plan = compile_for(target, recipe, tmp_path)
    assert plan["target"] == target, "install requirements-accelerators.txt"
    assert plan["fits"]
    assert ("__cudnn$fmhaSoftmax" in plan["custom_calls"]) == target.startswith("h100")
    collectives = {kind: found["bytes"] for kind, found in plan["collectives"].items()}
    if target == "h100:1":
        assert collectives == {}
        return
    # Each gradient is summed over devices once, in float32. Heads for texts that are not used have none.
    _, initialize = split_model(resolve_config(recipe.get_config(), REDUCED), vocab_size=1000)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(initialize).params))
    assert 0.98 < collectives.pop("all-reduce") / (4 * parameters) < 1.02
    assert sum(collectives.values()) < 2e6
    assert "u8" not in plan["permuted_types"]  # frames stay where they are
