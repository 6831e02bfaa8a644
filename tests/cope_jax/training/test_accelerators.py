"""The full-size recipes with few layers, compiled for accelerators."""

import jax
import pytest

from configs import cope_rope, cope_rope_sigmoid
from cope_jax.parallel.mesh import make_mesh
from cope_jax.parallel.program import analyze
from cope_jax.parallel.targets import Target
from cope_jax.runs.config_validation import resolve_config
from cope_jax.training.dry_run import compile_step, memory_per_device
from cope_jax.training.plan import make_plan

REDUCED = {
    "data.vocab_size": 1000,
    "losses.classifier.classes": 3072,
    "model.vision.depth": 2,
    "model.vision.integration_depth": 1,
    "model.text.depth": 1,
}


@pytest.mark.slow  # 15 to 40 s each: XLA's compilers for real devices
@pytest.mark.parametrize(
    ("recipe", "target", "attention"),
    [(cope_rope, "h100:8", "auto"), (cope_rope, "v5e:2x4", "xla"), (cope_rope_sigmoid, "h100:1", "auto")],
    ids=["authors-h100:8", "authors-v5e:2x4", "sigmoid-h100:1"],
)
def test_a_recipe_fits_and_communicates_only_gradients(recipe, target, attention):
    target = Target.parse(target)
    assert target.missing_package is None, "install requirements-accelerators.txt"
    config = resolve_config(recipe.get_config(), REDUCED | {"model.attention": attention})
    mesh = make_mesh(data=-1, fsdp=1, tensor=1, devices=target.devices())
    plan = make_plan(config, mesh, vocab_size=config.data.vocab_size)
    compiled = compile_step(config, plan, target)
    program = analyze(compiled.as_text())
    assert target.fits(sum(memory_per_device(plan, compiled).values()))
    assert ("__cudnn$fmhaSoftmax" in program.custom_calls) == (target.kind == "h100")
    if target.size > 1:
        # Each gradient is summed over devices once, in float32. Heads for texts that are not used have none.
        parameters = sum(leaf.size for leaf in jax.tree.leaves(plan.state.params["model"]))
        assert 0.98 < program.collectives["all-reduce"].bytes / (4 * parameters) < 1.02
    assert "u8" not in program.permuted_types  # frames stay where they are
    assert sum(found.bytes for kind, found in program.collectives.items() if kind != "all-reduce") < 2e6
