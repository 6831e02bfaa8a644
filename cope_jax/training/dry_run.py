"""What a run would take, told before hardware is rented: parameters, arithmetic and memory of each device.

Nothing is allocated: shapes are traced, and the step is compiled for as many pretended CPU devices as the mesh has.
What XLA plans for one of them stands in for the accelerator that is not there.
"""

from collections.abc import Iterator
from dataclasses import asdict
from math import prod
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from cope_jax.data.tokenizer import load_tokenizer
from cope_jax.domains import DOMAINS
from cope_jax.parallel.mesh import make_mesh
from cope_jax.parallel.path_rules import apply_rules, leaf_paths
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import check_batch_sizes, training_batch_shapes
from cope_jax.training.optimizer import decays, rate_factors
from cope_jax.training.plan import Plan, plan, step_operations
from data_prep.common.text_table import text_table

GIB = 2**30


class Parameter(NamedTuple):
    """A row of the parameter table.

    Attributes:
        group: number of its group among config.optimizer.groups.
        decays: whether weight decay applies.
    """

    path: str
    shape: tuple[int, ...]
    size: int
    group: int
    decays: bool
    spec: PartitionSpec


class Costs(NamedTuple):
    """What a training step takes.

    Attributes:
        operations: floating-point operations over all devices, forward and backward, each layer once: what
            rematerialisation repeats is left out.
        parameters, optimizer, batch: bytes that a device holds between steps; a moving average counts to the first.
        temporary: bytes that a device needs beside those within a step: activations, gradients, buffers.
    """

    operations: float
    parameters: int
    optimizer: int
    batch: int
    temporary: int


def pretend_devices(config: RunConfig) -> None:
    """Gives this process as many CPU devices as the config's mesh has; before anything has asked for devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", prod(mesh_sizes(config).values()))


def mesh_sizes(config: RunConfig) -> dict[str, int]:
    """The config's mesh, where an open axis (−1) stands for one device: there is nothing to take the rest of."""
    return {axis: 1 if size == -1 else size for axis, size in asdict(config.mesh).items()}


def dry_run(config: RunConfig) -> str:
    """The report on a config, which needs as many devices as its mesh has, of any kind.

    Raises:
        ValueError: a fault in the config, or a mesh that does not fit the batch or the parameters.
    """
    config = replace_fields(config, {"model.attention": "xla"})  # pretended devices have no cuDNN
    if config.losses.classifier.weight and not config.losses.classifier.classes:
        raise ValueError("config.losses.classifier.classes is 0: a dry run counts no products; tell how many there are")
    mesh = make_mesh(**mesh_sizes(config), devices=jax.devices()[: prod(mesh_sizes(config).values())])
    check_batch_sizes(config, mesh)
    vocab_size, origin = vocabulary(config)
    run = plan(config, mesh, vocab_size=vocab_size)
    rows = list(parameters(run.state.params, config))
    costs = step_costs(config, run, step_operations(config, vocab_size))
    return "\n\n".join(
        [
            parameter_table(rows),
            group_table(rows, config),
            setting(config, vocab_size, origin),
            cost_table(costs, config),
        ]
    )


def vocabulary(config: RunConfig) -> tuple[int, str]:
    """The number of words and where it is from: the tokenizer where this machine has it, else the config."""
    name, key = config.data.tokenizer, "config.data.vocab_size"
    if not name:
        return config.data.vocab_size, key
    try:
        return len(load_tokenizer(name, download=False)), name
    except FileNotFoundError:
        return config.data.vocab_size, f"{key}: {name} is not on this machine"


def parameters(params: Any, config: RunConfig) -> Iterator[Parameter]:
    """The rows of a tree of shapes with shardings."""
    groups = config.optimizer.groups
    numbered = apply_rules(
        [(pattern, i) for i, (pattern, _) in enumerate(groups)], params, name="config.optimizer.groups"
    )
    columns = (leaf_paths(params), params, numbered, rate_factors(groups, params), decays(params))
    for path, leaf, group, factor, decay in zip(*map(jax.tree.leaves, columns), strict=True):
        yield Parameter(path, leaf.shape, leaf.size, group, bool(factor and decay), leaf.sharding.spec)


def step_costs(config: RunConfig, run: Plan, operations: float) -> Costs:
    """Compiles the step and reads what a device holds and needs."""
    memory = run.step.lower(run.state, training_batch_shapes(config)).compile().memory_analysis()
    return Costs(
        operations,
        parameters=device_bytes((run.state.params, run.state.average)),
        optimizer=device_bytes(run.state.opt_state),
        batch=memory.argument_size_in_bytes - device_bytes(run.state),
        temporary=memory.temp_size_in_bytes,
    )


def device_bytes(shapes: Any) -> int:
    """Bytes of one device's part of a tree of shapes with shardings."""
    return sum(prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def parameter_table(rows: list[Parameter]) -> str:
    """One line a parameter. Axes that the mesh cuts are named with their place: "1: fsdp" for the second one."""
    cells = [["parameter", "shape", "values", "group", "decay", "cut by"]]
    for row in rows:
        cuts = [(i, [axes] if isinstance(axes, str) else axes) for i, axes in enumerate(row.spec) if axes]
        cut = ", ".join(f"{i}: {' × '.join(axes)}" for i, axes in cuts)
        shape = "×".join(map(str, row.shape)) or "1"
        cells.append([row.path, shape, f"{row.size:,}", str(row.group), "yes" if row.decays else "no", cut or "–"])
    return text_table(cells)


def group_table(rows: list[Parameter], config: RunConfig) -> str:
    """One line a group of the optimiser, and their total."""
    cells = [["group", "parameters", "values", "peak rate"]]
    for number, (pattern, factor) in enumerate(config.optimizer.groups):
        sizes = [row.size for row in rows if row.group == number]
        rate = f"{config.optimizer.rate * factor:g}" if factor else "frozen"
        cells.append([f"{number}: {pattern or 'all others'}", str(len(sizes)), f"{sum(sizes):,}", rate])
    return text_table([*cells, ["total", str(len(rows)), f"{sum(row.size for row in rows):,}", ""]])


def setting(config: RunConfig, vocab_size: int, origin: str) -> str:
    """What the numbers are of."""
    sizes, data, B = mesh_sizes(config), config.data, config.train.batch_size
    axes = " × ".join(f"{axis} {size}" for axis, size in sizes.items())
    frames = " + ".join(str(data.frames[domain]) for domain in DOMAINS)
    lines = [
        f"mesh        {axes} = {prod(sizes.values())} devices in all",
        f"batch       {B} products, {B // (sizes['data'] * sizes['fsdp'])} a share; of each {frames} frames of "
        f"{data.image_size}×{data.image_size}, texts of {data.text_length} tokens",
        f"losses      {', '.join(f'{name} × {weight:g}' for name, weight in config.losses.active.items())}",
        f"vocabulary  {vocab_size:,} (from {origin})",
        f"computing   in {config.model.dtype}, layers {'scanned' if config.model.scan_layers else 'unrolled'}, "
        f"remat {config.model.remat!r}",
    ]
    if config.train.microbatch:
        lines[1] += f"; {config.train.microbatch} products embedded at a time"
    if -1 in asdict(config.mesh).values():
        lines[0] += " (an open axis counts as one here)"
    return "\n".join(lines)


def cost_table(costs: Costs, config: RunConfig) -> str:
    """Arithmetic and memory."""
    kept = costs.parameters + costs.optimizer + costs.batch
    memory = {
        "parameters": costs.parameters,
        "optimizer state": costs.optimizer,
        "batch": costs.batch,
        "activations, gradients, buffers": costs.temporary,
        "total": kept + costs.temporary,
    }
    rows = [["memory of a device", "GiB"], *([name, f"{size / GIB:.2f}"] for name, size in memory.items())]
    return "\n".join(
        [
            text_table(rows),
            "Activations are as XLA plans them for a CPU, which keeps bfloat16 products in float32 and has no flash",
            "attention: an accelerator needs less.",
            "",
            f"operations  {costs.operations / config.train.batch_size / 1e9:,.1f} GFLOP an example, "
            f"{costs.operations / 1e12:,.2f} TFLOP a step, {costs.operations * config.train.steps / 1e18:,.3f} EFLOP "
            f"in {config.train.steps:,} steps",
            "            forward and backward; what rematerialisation computes again is not counted",
        ]
    )
