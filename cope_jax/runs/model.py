"""The model of a run: its structure, and its values at a step."""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cope_jax.models.cope import CopeModel
from cope_jax.models.layers import ComputeOptions
from cope_jax.models.lora import add_lora, merge_lora
from cope_jax.parallel.mesh import batch_sharding, replicated, with_shardings
from cope_jax.parallel.sharding_rules import parameter_shardings
from cope_jax.parallel.targets import cudnn_problem
from cope_jax.runs.checkpoints import UNTRAINED, Checkpoints, ModelState
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.initial_weights import prepare_weights


def encoder_settings(config: RunConfig, *, vocab_size: int) -> dict[str, dict[str, Any]]:
    """Returns the fields of `VisionSettings` and `TextSettings`: {"vision": …, "text": …}."""
    if config.model.init_from:
        raise ValueError("config.model.init_from stands for other fields: set them with `start_from_weights`")
    vision, text = (
        {key: value for key, value in asdict(section).items() if not key.startswith("init_")}
        for section in (config.model.vision, config.model.text)
    )
    vision |= {
        "image_size": config.data.image_size,
        "max_frames": max(*config.data.frames.values(), *config.eval.frames.values()),
    }
    text |= {"vocab_size": vocab_size, "max_length": config.data.text_length}
    return {"vision": vision, "text": text}


@cache
def _report_once(line: str) -> None:
    print(line)


def split_model(
    config: RunConfig, *, vocab_size: int, mesh: Mesh | None = None
) -> tuple[nnx.GraphDef, Callable[[], ModelState]]:
    """Returns the static structure of the model, and a function that computes its initial state.

    The function is pure and depends on config.seed alone: `jax.eval_shape` gives the shapes, and under `jax.jit` with
    out_shardings each device computes its own part. The devices of `mesh`, by default all, decide about attention.
    """
    make = model_maker(config, vocab_size=vocab_size, mesh=mesh)
    return nnx.graphdef(nnx.eval_shape(make)), partial(_initial_state, make)


def model_maker(
    config: RunConfig, *, vocab_size: int, mesh: Mesh | None = None, rotated: bool = False
) -> Callable[[], CopeModel]:
    """Returns a function that makes the initial model.

    With `rotated`, it has principal axes instead of the moments that training measures.
    """
    model = config.model
    attention, devices = model.attention, list(jax.devices() if mesh is None else mesh.devices.flat)
    if attention == "auto" and (problem := cudnn_problem(devices)):
        attention = "xla"
        if devices[0].platform not in ("cpu", "tpu"):
            _report_once(f"attention is computed without cuDNN, which may be slower: {problem}")

    def make() -> CopeModel:
        rngs = nnx.Rngs(params=config.seed)
        made = CopeModel(
            embedding=model.embedding,
            **encoder_settings(config, vocab_size=vocab_size),
            fusion=asdict(model.fusion),
            domains=tuple(config.data.domains),
            text_domains=model.text_domains,
            head_norm=model.head_norm,
            axes=("principal" if rotated else "measured") if model.principal_axes else "learned",
            compute=ComputeOptions(
                dtype=jnp.dtype(model.dtype),
                attention=attention,
                scan_layers=model.scan_layers,
                remat=model.remat,
                batch_sharding=batch_sharding(mesh) if mesh is not None and mesh.shape["fsdp"] > 1 else None,
            ),
            rngs=rngs,
        )
        if config.finetune.method == "lora":
            tuning = config.finetune
            add_lora(made, rank=tuning.rank, alpha=tuning.alpha, targets=tuning.targets, rngs=rngs)
        return made

    return make


def _initial_state(make: Callable[[], CopeModel]) -> ModelState:
    _, params, statistics = nnx.split(make(), nnx.Param, nnx.BatchStat)
    return ModelState(nnx.to_pure_dict(params), nnx.to_pure_dict(statistics))


def load_model(
    config: RunConfig, checkpoints: Checkpoints, step: int, mesh: Mesh, *, vocab_size: int, average: bool = False
) -> tuple[nnx.GraphDef, ModelState]:
    """Returns the static structure of a run's model and its state at a step, or its moving average, on a mesh.

    Low-rank matrices are merged into the kernels. With config.model.principal_axes, embeddings are rotated to them.

    Raises:
        FileNotFoundError: There is no such step or, for step 0, the weights it starts from are missing.
        ValueError: The checkpoint is invalid, or it has no moving average.
    """
    tuning = config.finetune
    plain = replace_fields(config, {"finetune.method": "full"})
    graphdef = nnx.graphdef(nnx.eval_shape(model_maker(plain, vocab_size=vocab_size, mesh=mesh, rotated=True)))
    trained = config if step != UNTRAINED else plain  # without low-rank matrices before the first step
    initialize = partial(_initial_state, model_maker(trained, vocab_size=vocab_size, mesh=mesh))
    shapes = jax.eval_shape(initialize)
    statistics = jax.tree.map(lambda _: replicated(mesh), shapes.statistics)
    shapes = with_shardings(shapes, ModelState(parameter_shardings(shapes.params, mesh), statistics))
    if step != UNTRAINED:
        model = checkpoints.restore_model(step, shapes, average=average)
    else:
        load = prepare_weights(config, shapes, encoder_settings(config, vocab_size=vocab_size))
        model = load(jax.jit(initialize, out_shardings=jax.tree.map(lambda shape: shape.sharding, shapes))())
    if tuning.method == "lora" and step != UNTRAINED:
        merged = jax.jit(partial(merge_lora, scale=tuning.alpha / tuning.rank))(model.params)
        model = ModelState(merged, model.statistics)
    return graphdef, with_principal_axes(model)


def with_principal_axes(model: ModelState) -> ModelState:
    """Replaces the second moments of embeddings, if any, with their eigenvectors, the largest eigenvalue first.

    The first n values of embeddings then keep as much of their inner products as n values can (Eckart and Young).
    """
    if "moments" not in model.statistics:
        return model
    statistics = dict(model.statistics)
    moments = statistics.pop("moments")
    # Equal eigenvalues, as of axes that no batch has reached, have arbitrary eigenvectors, which differ by machine.
    distinct = np.diag(np.linspace(1e-7, 0, len(moments)))
    axes = np.linalg.eigh(np.asarray(moments, np.float64) + distinct)[1][:, ::-1]
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))  # signs are arbitrary
    return ModelState(model.params, statistics | {"axes": jax.device_put(axes.astype(np.float32), moments.sharding)})
