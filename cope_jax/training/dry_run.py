"""Parameters, arithmetic and memory of a run, computed without data and without its devices.

Nothing is allocated: shapes are traced, and the step is compiled for a target, such as eight H100s. Without a target,
it is compiled for as many fake CPU devices as the mesh has, whose memory plan stands in for that of the accelerator.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jinja2
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from cope_jax.data.tokenizer import load_tokenizer
from cope_jax.parallel.mesh import make_mesh
from cope_jax.parallel.path_rules import apply_rules, leaf_paths
from cope_jax.parallel.program import Program, analyze
from cope_jax.parallel.targets import GIB, Target, without_cudnn_checks
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import check_batch_sizes, describe_text_tokens, training_batch_shapes
from cope_jax.training.optimizer import matches, rate_factors
from cope_jax.training.plan import Plan, make_plan, step_flops
from data_prep.common.text_table import text_table

TEMPLATE = Path(__file__).with_name("dry_run.txt.jinja")
OUT_OF_MEMORY = (r"Used (\S+) of (\S+) hbm", r"temporaries \((\S+)\) exceeds available HBM \((\S+)\)")  # XLA's messages
REMATS = ("none", "dots", "narrow", "block")  # from most to least memory


class Parameter(NamedTuple):
    """A row of the parameter table."""

    path: str
    shape: tuple[int, ...]
    size: int
    group: int  # index in RunConfig.groups
    decays: bool  # whether weight decay applies
    spec: PartitionSpec


class DryRun(NamedTuple):
    """Result of a dry run."""

    report: str
    summary: dict[str, Any]  # the same for programs: target, fits, bytes_per_device, launches, collectives, …


def use_fake_devices(number: int) -> None:
    """Gives this process a number of CPU devices. Call it before anything uses devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", number)


def mesh_sizes(config: RunConfig, devices: int | None = None) -> dict[str, int]:
    """Returns the sizes of the mesh axes. −1 takes the remaining devices; it becomes 1 if their number is unknown."""
    sizes = asdict(config.mesh)
    remaining = (devices or 1) // prod(size for size in sizes.values() if size > 0)
    return {axis: max(remaining, 1) if size == -1 else size for axis, size in sizes.items()}


def dry_run(config: RunConfig, target: Target | None = None) -> DryRun:
    """Compiles the step of a config for a target and reports its costs.

    Args:
        config: Config of the run.
        target: Devices to compile for. By default, and if the package of their compiler is missing, CPUs: this process
            needs as many of them as the mesh has devices, see `use_fake_devices`.

    Raises:
        ValueError: The mesh does not fit the devices, the batch or the parameters.
    """
    if config.losses.classifier.weight and not config.losses.classifier.classes:
        raise ValueError(
            "config.losses.classifier.classes is 0; expected the number of training products, which a dry run does not "
            "count"
        )
    missing = target and target.missing_package
    compiled_for = Target("cpu", (prod(mesh_sizes(config, target and target.size).values()),))
    if target is not None and not missing:
        compiled_for = target
    if compiled_for.kind != "h100":
        config = replace_fields(config, {"model.attention": "xla"})
    mesh = make_mesh(**mesh_sizes(config, compiled_for.size), devices=compiled_for.devices())
    check_batch_sizes(config, mesh)
    vocab_size, source = vocabulary(config)
    plan = make_plan(config, mesh, vocab_size=vocab_size)
    rows = list(list_parameters(plan.state.params, config))
    flops = step_flops(config, vocab_size)
    compiled = compile_step(config, plan, compiled_for)
    memory = memory_per_device(plan, compiled)
    program = analyze(compiled.as_text() or "")
    total = sum(memory.values())
    summary = {
        "target": str(compiled_for),
        "fits": compiled_for.fits(total),
        "bytes_per_device": total,
        "launches": program.launches,
        "bytes_moved": program.bytes_moved,
        "collectives": {kind: found._asdict() for kind, found in program.collectives.items()},
        "permuted_types": sorted(program.permuted_types),
        "custom_calls": program.custom_calls,
        "trained": trained_share(rows, config),
        "flops_per_example": flops / config.train.batch_size,
    }
    memory_rows = [[name, f"{size / GIB:.2f}"] for name, size in {**memory, "total": total}.items()]
    report = render(
        config,
        compiled_for,
        program,
        parameters=_parameter_table(rows),
        groups=_group_table(rows, config),
        vocab_size=vocab_size,
        vocab_source=source,
        texts=_describe_texts(config),
        memory=text_table([["memory per device", "GiB"], *memory_rows]),
        total=total,
        flops=flops,
        wanted=target,
        missing=missing,
    )
    return DryRun(report, summary)


def render(config: RunConfig, target: Target, program: Program, **values: Any) -> str:
    """Returns the report of a program that was compiled for a target; `values` are those of the template."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    mesh = mesh_sizes(config, target.size)
    return (
        environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(
            values,
            config=config,
            target=target,
            program=program,
            mesh=mesh,
            devices=prod(mesh.values()),
            open_axis=mesh == mesh_sizes(config) and -1 in asdict(config.mesh).values(),
            shares=mesh["data"] * mesh["fsdp"],
            frames=" + ".join(str(config.data.frames[domain]) for domain in config.batch_entries.values()),
            remedies=_remedies(config),
            gib=GIB,
        )
        .rstrip("\n")
    )


def compile_step(config: RunConfig, plan: Plan, target: Target) -> jax.stages.Compiled:
    """Compiles the step for the devices of its mesh.

    Raises:
        ValueError: XLA refuses the program, because it needs more memory than a TPU has.
    """
    with without_cudnn_checks() if target.kind == "h100" else contextlib.nullcontext():
        lowered = plan.step.trace(plan.state, training_batch_shapes(config)).lower()
    # Tiles of Triton's products are tuned on a GPU; without one, XLA finds none for some shapes.
    options: dict[str, str | bool] | None = {"xla_gpu_enable_triton_gemm": False} if target.kind == "h100" else None
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if match := re.search(OUT_OF_MEMORY[0], str(error)) or re.search(OUT_OF_MEMORY[1], str(error)):
            raise ValueError(
                f"the step does not fit: it needs {match[1]} of the {match[2]} of a {target.kind}; {_remedies(config)}"
            ) from error
        raise


def memory_per_device(plan: Plan, compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns the bytes that a compiled step needs on one device, by purpose."""
    memory = compiled.memory_analysis()
    assert memory is not None
    return {
        "parameters": device_bytes((plan.state.params, plan.state.average)),
        "optimizer state": device_bytes(plan.state.opt_state),
        "batch": memory.argument_size_in_bytes - device_bytes(plan.state),
        "activations, gradients, buffers": memory.temp_size_in_bytes,
    }


def vocabulary(config: RunConfig) -> tuple[int, str]:
    """Returns the size of the vocabulary and its source: the tokenizer if this machine has it, else the config."""
    name, key = config.data.tokenizer, "config.data.vocab_size"
    if not name:
        return config.data.vocab_size, key
    try:
        return len(load_tokenizer(name, download=False)), name
    except FileNotFoundError:
        return config.data.vocab_size, f"{key}, since {name} is not on this machine"


def _describe_texts(config: RunConfig) -> str:
    """Describes how the tokenizer suits the training texts, if this machine has both; "" otherwise."""
    if config.data.tokenizer:
        with contextlib.suppress(FileNotFoundError):
            return describe_text_tokens(config, load_tokenizer(config.data.tokenizer, download=False))
    return ""


def list_parameters(params: PyTree, config: RunConfig) -> Iterator[Parameter]:
    """Yields the parameters in a tree of shapes with shardings."""
    groups, decayed = config.groups, matches(config.optimizer.decayed, params)
    numbered = [(pattern, number) for number, (pattern, _) in enumerate(groups)]
    group_numbers = apply_rules(numbered, params, name="config.optimizer.groups")
    columns = (leaf_paths(params), params, group_numbers, rate_factors(groups, params), decayed)
    for path, leaf, group, factor, decay in zip(*map(jax.tree.leaves, columns), strict=True):
        yield Parameter(path, leaf.shape, leaf.size, group, bool(factor and decay), leaf.sharding.spec)


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
    for number, (pattern, factor) in enumerate(config.groups):
        sizes = [row.size for row in rows if row.group == number]
        rate = f"{config.optimizer.rate * factor:g}" if factor else "frozen"
        cells.append([f"{number}: {pattern or 'all others'}", str(len(sizes)), f"{sum(sizes):,}", rate])
    cells.append(
        ["total", str(len(rows)), f"{sum(row.size for row in rows):,}", f"{trained_share(rows, config):.1%} trained"]
    )
    return text_table(cells)


def trained_share(rows: list[Parameter], config: RunConfig) -> float:
    """Returns the share of values that are trained."""
    return sum(row.size for row in rows if config.groups[row.group][1]) / sum(row.size for row in rows)


def _remedies(config: RunConfig) -> str:
    """Names the settings that reduce the memory of a step."""
    remats = " or ".join(map(repr, REMATS[REMATS.index(config.model.remat) + 1 :]))
    microbatch = config.train.microbatch or config.train.batch_size
    return (
        f"use {f'config.model.remat={remats}, ' if remats else ''}config.train.microbatch={microbatch // 2} or less, "
        "or config.mesh.fsdp, which shards parameters"
    )
