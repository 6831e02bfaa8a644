"""Dry runs: costs against formulas and against real arrays."""

import json
import re
from dataclasses import asdict
from unittest.mock import Mock

import jax
import pytest

from configs import default
from cope_jax.data.tokenizer import load_tokenizer
from cope_jax.parallel import targets
from cope_jax.parallel.mesh import make_mesh, to_devices
from cope_jax.parallel.targets import Target
from cope_jax.runs.config import flatten
from cope_jax.runs.config_validation import replace_fields, resolve_config
from cope_jax.runs.inputs import run_tokenizer, training_batch_shapes, training_batches
from cope_jax.training.dry_run import (
    compile_step,
    device_bytes,
    dry_run,
    list_parameters,
    memory_per_device,
    mesh_sizes,
    vocabulary,
)
from cope_jax.training.plan import make_plan, step_flops


@pytest.fixture
def frozen_config(tiny_config):
    """A tiny config with a frozen text encoder and a mesh that shards along all axes."""
    groups = (("^model/text/", 0.0), ("/vision/", 0.5), ("", 1.0))
    return replace_fields(tiny_config, {"optimizer.groups": groups, "mesh.fsdp": 2, "mesh.tensor": 2})


@pytest.mark.slow
def test_the_operations_of_two_more_layers_are_those_of_their_matrices():
    """2 operations per product and sum forward, 4 backward; norms and activations are the remaining few percent."""
    configs = [
        resolve_config(default.get_config(), {"model.text.depth": 1, "model.vision.depth": depth}) for depth in (1, 3)
    ]
    counts = [step_flops(config, 100) for config in configs]
    D, tokens = 768, 198  # 196 patches, the class token and the message
    layer = tokens * 2 * 12 * D**2 + 2 * 2 * tokens**2 * D + 2 * 5 * D**2
    assert counts[1] - counts[0] == pytest.approx(2 * 3 * 17 * 128 * layer, rel=0.03)
    rematerialized = replace_fields(configs[1], {"model.remat": "block", "model.scan_layers": True})
    assert step_flops(rematerialized, 100) == counts[1]


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 23.10G of 15.75G hbm.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (23.10G) exceeds "
        "available HBM (15.75G).",
    ],
)
def test_a_step_that_needs_too_much_memory_is_reported_with_remedies(tiny_config, message):
    plan = Mock()
    plan.step.trace().lower().compile.side_effect = jax.errors.JaxRuntimeError(message)
    with pytest.raises(ValueError, match=r"does not fit: it needs 23\.10G of the 15\.75G of a v5e; use .*microbatch"):
        compile_step(tiny_config, plan, Target("v5e", (2, 4)))


@pytest.mark.slow
def test_bytes_equal_those_of_real_arrays(frozen_config, tmp_path):
    tokenizer = run_tokenizer(frozen_config, tmp_path)
    mesh = make_mesh(**asdict(frozen_config.mesh))
    run = make_plan(frozen_config, mesh, vocab_size=len(tokenizer))
    memory = memory_per_device(run, compile_step(frozen_config, run, Target("cpu", (8,))))

    def held(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    state = jax.jit(run.initial_state, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, run.state))()
    batches = training_batches(frozen_config, tokenizer, start_step=0)
    batch = to_devices(next(batches), mesh)
    batches.close()
    assert memory["parameters"] == held(state.params)
    assert memory["optimizer state"] == held(state.opt_state)
    # XLA drops what the step does not read: the ids of the products.
    assert memory["batch"] == held({part: batch[part] for part in ("page", "video", "live", "bad_items")})
    assert memory["activations, gradients, buffers"] > memory["parameters"]
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), training_batch_shapes(frozen_config))
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch)


def test_frozen_parameters_have_no_optimizer_state_and_no_decay(frozen_config):
    run = make_plan(frozen_config, make_mesh(**asdict(frozen_config.mesh)), vocab_size=50)
    trained = {name: leaf for name, leaf in run.state.params["model"].items() if name != "text"}
    moments = device_bytes({"model": trained, "loss": run.state.params["loss"]})
    assert device_bytes(run.state.opt_state) == 2 * moments + 2 * 4  # and two counters
    rows = {row.path: row for row in list_parameters(run.state.params, frozen_config)}
    text, vision = rows["model/text/words/embedding"], rows["model/vision/project/kernel"]
    assert (text.group, text.decays) == (0, False)
    assert (vision.group, vision.decays) == (1, True)
    assert rows["loss/sigmoid/bias"].group == 2
    assert not rows["model/vision/position"].decays


@pytest.mark.parametrize("fsdp", [1, 2])
def test_the_batch_of_blocks_is_constrained_if_parameters_are_sharded_like_it(tiny_config, fsdp):
    config = replace_fields(tiny_config, {"mesh.fsdp": fsdp})
    plan = make_plan(config, make_mesh(**asdict(config.mesh)), vocab_size=50)
    program = plan.step.trace(plan.state, training_batch_shapes(config)).jaxpr
    assert ("sharding_constraint" in str(program)) == (fsdp == 2)


@pytest.mark.slow
def test_the_report_has_every_part(frozen_config, tmp_path, monkeypatch):
    """Also for cuDNN attention, which fake devices do not have, and for a target without its compiler."""
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    tokenizer = run_tokenizer(frozen_config, tmp_path)
    changes = {"model.dtype": "bfloat16", "model.attention": "cudnn", "data.tokenizer": str(tmp_path / "tokenizer")}
    report, summary = dry_run(replace_fields(frozen_config, changes), Target.parse("v5e:2x4"))
    assert summary["target"] == "cpu:8"
    for part in (
        "mesh        data 2 × fsdp 2 × tensor 2 = 8 devices\n",
        "batch       8 products, 2 per device; each with 1 + 2 + 2 frames of 16×16 and texts of 12 tokens",
        "losses      sigmoid × 1\n",
        f"vocabulary  {len(tokenizer)} (from {tmp_path / 'tokenizer'})",
        "% of the tokens are unknown, ",
        "0: ^model/text/",
        "frozen",
        "activations, gradients, buffers",
        "GFLOP per example",
        "target      8 × cpu: the step compiled for these devices",
        f"kernels     {summary['launches']:,} launches per step",
        "all-reduce: ",
        "\ncompiled for CPUs instead of v5e:2x4, since the package libtpu is not installed; "
        "./run.sh setup accelerators installs it",
    ):
        assert part in report
    (row,) = [line for line in report.splitlines() if line.startswith("model/text/words/embedding")]
    size = len(tokenizer)
    assert row.split() == ["model/text/words/embedding", f"{size}×16", f"{size * 16:,}", "0", "no", "1:", "fsdp"]


@pytest.mark.slow
def test_ten_million_classes_are_sharded_over_all_devices(make_quick_config):
    """Each device has an eighth of the table and its moments, and the step computes a fraction of all logits."""
    classifier = {"weight": 1.0, "classes": 10_000_000, "rate": 0.1}
    config = make_quick_config(
        **{"mesh.fsdp": 2, "mesh.tensor": 2}, **{f"losses.classifier.{name}": x for name, x in classifier.items()}
    )
    run = make_plan(config, make_mesh(**asdict(config.mesh)), vocab_size=50)
    table = 10_002_432 * config.model.embedding * 4 // 8
    assert device_bytes(run.state.params["loss"]["classifier"]) == table
    assert 2 * table < device_bytes(run.state.opt_state) < 2.01 * table
    memory = memory_per_device(run, compile_step(config, run, Target("cpu", (8,))))
    assert memory["activations, gradients, buffers"] < 6 * table


def test_the_number_of_classes_must_be_given(tiny_config):
    config = replace_fields(tiny_config, {"losses.classifier.weight": 1.0, "mesh.data": 8})
    with pytest.raises(ValueError, match=r"config.losses.classifier.classes is 0; expected the number of"):
        dry_run(config)


@pytest.mark.slow
def test_training_needs_a_work_directory(run_sh):
    done = run_sh("train", "--config=configs/demo.py")
    assert done.returncode != 0
    assert "train: --workdir is missing; expected the folder of the run" in done.stderr


def test_an_open_axis_is_one_device(tiny_config):
    config = replace_fields(tiny_config, {"mesh.data": -1, "mesh.fsdp": 3})
    assert mesh_sizes(config) == {"data": 1, "fsdp": 3, "tensor": 1}


@pytest.mark.slow
def test_the_size_of_the_vocabulary_is_that_of_an_available_tokenizer(make_quick_config, tmp_path):
    quick_config = make_quick_config()
    run_tokenizer(quick_config, tmp_path)
    config = replace_fields(quick_config, {"data.tokenizer": str(tmp_path / "tokenizer"), "data.vocab_size": 77})
    words = len(load_tokenizer(tmp_path / "tokenizer"))
    assert vocabulary(config) == (words, str(tmp_path / "tokenizer"))
    assert words != 77


def usual_config():
    return resolve_config(default.get_config())


@pytest.mark.slow
def test_the_report_as_json(run_sh, make_tiny_config, tmp_path):
    """For four CPUs, whose parameters and moments are replicated."""
    out = tmp_path / "plan.json"
    config, usual = (flatten(config) for config in (make_tiny_config({"mesh.data": -1}), usual_config()))
    flags = [f"--config.{key}={value}" for key, value in config.items() if value != usual[key]]
    done = run_sh("train", "--config=configs/default.py", "--dry_run", "--target=cpu:4", f"--json={out}", *flags)
    assert done.returncode == 0, done.stderr
    plan = json.loads(out.read_text())
    assert plan.keys() == {
        *("target", "fits", "bytes_per_device", "launches", "bytes_moved", "trained", "flops_per_example"),
        *("collectives", "permuted_types", "custom_calls"),
    }
    assert (plan["target"], plan["fits"]) == ("cpu:4", None)
    assert re.search(rf"^total +{plan['bytes_per_device'] / 2**30:.2f}$", done.stdout, re.MULTILINE)
    assert "data 4 × fsdp 1 × tensor 1 = 4 devices" in done.stdout
    assert plan["collectives"]["all-reduce"]["bytes"] > 0
    assert plan["flops_per_example"] > 1e6
    assert plan["trained"] == 1
