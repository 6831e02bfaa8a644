"""Parameters, arithmetic and memory of a run, computed without data and without its devices.

Nothing is allocated: shapes are traced, and the step is compiled for as many fake CPU devices as the mesh has. XLA's
memory plan for one of them stands in for that of the accelerator.
"""

from collections.abc import Iterator
from dataclasses import asdict
from math import prod
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from cope_jax.data.tokenizer import load_tokenizer
from cope_jax.parallel.mesh import make_mesh
from cope_jax.parallel.path_rules import apply_rules, leaf_paths
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import check_batch_sizes, describe_text_tokens, training_batch_shapes
from cope_jax.training.optimizer import decays, rate_factors
from cope_jax.training.plan import Plan, make_plan, step_flops
from data_prep.common.domains import DOMAINS
from data_prep.common.text_table import text_table

GIB = 2**30


class Parameter(NamedTuple):
    """A row of the parameter table."""

    path: str
    shape: tuple[int, ...]
    size: int
    group: int  # index in config.optimizer.groups
    decays: bool  # whether weight decay applies
    spec: PartitionSpec


def use_fake_devices(config: RunConfig) -> None:
    """Gives this process as many CPU devices as the config's mesh has. Call it before anything uses devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", prod(mesh_sizes(config).values()))


def mesh_sizes(config: RunConfig) -> dict[str, int]:
    """Returns the sizes of the mesh axes; −1 becomes 1, since the number of devices is unknown."""
    return {axis: 1 if size == -1 else size for axis, size in asdict(config.mesh).items()}


def dry_run(config: RunConfig) -> str:
    """Returns the report on a config. Needs as many devices as its mesh has, of any kind.

    Raises:
        ValueError: The mesh does not fit the batch or the parameters.
    """
    config = replace_fields(config, {"model.attention": "xla"})  # fake devices have no cuDNN
    if config.losses.classifier.weight and not config.losses.classifier.classes:
        raise ValueError(
            "config.losses.classifier.classes is 0; expected the number of training products, which a dry run does not "
            "count"
        )
    sizes = mesh_sizes(config)
    mesh = make_mesh(**sizes, devices=jax.devices()[: prod(sizes.values())])
    check_batch_sizes(config, mesh)
    vocab_size, source = vocabulary(config)
    plan = make_plan(config, mesh, vocab_size=vocab_size)
    rows = list(list_parameters(plan.state.params, config))
    memory, flops = memory_per_device(config, plan), step_flops(config, vocab_size)
    tables = _parameter_table(rows), _group_table(rows, config), _summary(config, vocab_size, source)
    return "\n\n".join([*tables, *_describe_texts(config), _cost_table(memory, flops, config)])


def vocabulary(config: RunConfig) -> tuple[int, str]:
    """Returns the size of the vocabulary and its source: the tokenizer if this machine has it, else the config."""
    name, key = config.data.tokenizer, "config.data.vocab_size"
    if not name:
        return config.data.vocab_size, key
    try:
        return len(load_tokenizer(name, download=False)), name
    except FileNotFoundError:
        return config.data.vocab_size, f"{key}, since {name} is not on this machine"


def _describe_texts(config: RunConfig) -> list[str]:
    """Describes how the tokenizer suits the training texts, if this machine has both."""
    if not config.data.tokenizer:
        return []
    try:
        report = describe_text_tokens(config, load_tokenizer(config.data.tokenizer, download=False))
    except FileNotFoundError:
        return []
    return [report] if report else []


def list_parameters(params: PyTree, config: RunConfig) -> Iterator[Parameter]:
    """Yields the parameters in a tree of shapes with shardings."""
    groups = config.optimizer.groups
    numbered = [(pattern, number) for number, (pattern, _) in enumerate(groups)]
    group_numbers = apply_rules(numbered, params, name="config.optimizer.groups")
    columns = (leaf_paths(params), params, group_numbers, rate_factors(groups, params), decays(params))
    for path, leaf, group, factor, decay in zip(*map(jax.tree.leaves, columns), strict=True):
        yield Parameter(path, leaf.shape, leaf.size, group, bool(factor and decay), leaf.sharding.spec)


def memory_per_device(config: RunConfig, plan: Plan) -> dict[str, int]:
    """Compiles the step and returns the bytes it needs on one device, by purpose."""
    memory = plan.step.lower(plan.state, training_batch_shapes(config)).compile().memory_analysis()
    assert memory is not None
    return {
        "parameters": device_bytes((plan.state.params, plan.state.average)),
        "optimizer state": device_bytes(plan.state.opt_state),
        "batch": memory.argument_size_in_bytes - device_bytes(plan.state),
        "activations, gradients, buffers": memory.temp_size_in_bytes,
    }


def device_bytes(shapes: PyTree) -> int:
    """Returns the bytes that one device holds of a tree of shapes with shardings."""
    return sum(prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _parameter_table(rows: list[Parameter]) -> str:
    """Lists all parameters. Sharded axes are numbered: "1: fsdp" for the second one."""
    cells = [["parameter", "shape", "values", "group", "decay", "sharded"]]
    for row in rows:
        cuts = [(i, [axes] if isinstance(axes, str) else axes) for i, axes in enumerate(row.spec) if axes]
        sharded = ", ".join(f"{i}: {' × '.join(axes)}" for i, axes in cuts)
        shape = "×".join(map(str, row.shape)) or "1"
        cells.append([row.path, shape, f"{row.size:,}", str(row.group), "yes" if row.decays else "no", sharded or "–"])
    return text_table(cells)


def _group_table(rows: list[Parameter], config: RunConfig) -> str:
    """Lists the parameter groups of the optimizer and their total."""
    cells = [["group", "parameters", "values", "peak rate"]]
    for number, (pattern, factor) in enumerate(config.optimizer.groups):
        sizes = [row.size for row in rows if row.group == number]
        rate = f"{config.optimizer.rate * factor:g}" if factor else "frozen"
        cells.append([f"{number}: {pattern or 'all others'}", str(len(sizes)), f"{sum(sizes):,}", rate])
    return text_table([*cells, ["total", str(len(rows)), f"{sum(row.size for row in rows):,}", ""]])


def _summary(config: RunConfig, vocab_size: int, source: str) -> str:
    """Lists the settings that the costs depend on."""
    sizes, data, model, B = mesh_sizes(config), config.data, config.model, config.train.batch_size
    axes = " × ".join(f"{axis} {size}" for axis, size in sizes.items())
    open_axis = " (the open axis counts as 1)" if -1 in asdict(config.mesh).values() else ""
    frames = " + ".join(str(data.frames[domain]) for domain in DOMAINS)
    part = f"; {config.train.microbatch} products embedded at a time" if config.train.microbatch else ""
    return "\n".join(
        [
            f"mesh        {axes} = {prod(sizes.values())} devices{open_axis}",
            f"batch       {B} products, {B // (sizes['data'] * sizes['fsdp'])} per device; each with {frames} frames "
            f"of {data.image_size}×{data.image_size} and texts of {data.text_length} tokens{part}",
            f"losses      {', '.join(f'{name} × {weight:g}' for name, weight in config.losses.active.items())}",
            f"vocabulary  {vocab_size:,} (from {source})",
            f"computed    in {model.dtype}, layers {'scanned' if model.scan_layers else 'unrolled'}, "
            f"remat {model.remat!r}",
        ]
    )


def _cost_table(memory: dict[str, int], flops: float, config: RunConfig) -> str:
    """Lists memory per device, and operations of a step on all devices without rematerialization."""
    memory = memory | {"total": sum(memory.values())}
    rows = [["memory per device", "GiB"], *([name, f"{size / GIB:.2f}"] for name, size in memory.items())]
    train = config.train
    return "\n".join(
        [
            text_table(rows),
            "Activations are planned for a CPU, which keeps bfloat16 products in float32 and has no flash attention:",
            "an accelerator needs less.",
            "",
            f"operations  {flops / train.batch_size / 1e9:,.1f} GFLOP per example, {flops / 1e12:,.2f} TFLOP per step, "
            f"{flops * train.steps / 1e18:,.3f} EFLOP in {train.steps:,} steps",
            "            forward and backward, without rematerialization",
        ]
    )
