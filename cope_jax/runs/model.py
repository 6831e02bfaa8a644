"""From a config to the model: its graph, the shapes of its parameters, their initial values."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from cope_jax.models.compute import Compute
from cope_jax.models.cope import CopeModel
from cope_jax.runs.config import RunConfig


class ModelState(NamedTuple):
    """What a model knows.

    Attributes:
        params: tree of float32 arrays, changed by the optimiser.
        statistics: tree of float32 arrays, changed by training batches; empty where no layer keeps any.
    """

    params: Any
    statistics: Any


def make_model(config: RunConfig, *, vocab_size: int, rngs: nnx.Rngs) -> CopeModel:
    """The model that a config describes, with the vocabulary of the run's tokenizer."""
    return CopeModel(
        embedding=config.model.embedding,
        **encoder_settings(config, vocab_size=vocab_size),
        fusion=asdict(config.model.fusion),
        text_domains=config.model.text_domains,
        head_norm=config.model.head_norm,
        compute=Compute(
            dtype=jnp.dtype(config.model.dtype),
            attention=config.model.attention,
            scan_layers=config.model.scan_layers,
            remat=config.model.remat,
        ),
        rngs=rngs,
    )


def encoder_settings(config: RunConfig, *, vocab_size: int) -> dict[str, dict[str, Any]]:
    """The arguments of the encoders: {"vision": …, "text": …}, without compute and rngs."""
    vision, text = (
        {key: value for key, value in asdict(section).items() if not key.startswith("init_")}
        for section in (config.model.vision, config.model.text)
    )
    vision |= {
        "image_size": config.data.image_size,
        "max_frames": max(config.data.frames.longest, config.eval.frames.longest),
    }
    text |= {"vocab_size": vocab_size, "max_length": config.data.text_length}
    return {"vision": vision, "text": text}


def split_model(config: RunConfig, *, vocab_size: int) -> tuple[nnx.GraphDef, Callable[[], ModelState]]:
    """The model's graph, and a function that makes its initial state as a plain tree of float32 arrays.

    The function is pure: `jax.eval_shape` gives the shapes, `jax.jit` with out_shardings makes each device compute
    its own part, and the values depend on config.seed alone.
    """

    def make() -> CopeModel:
        return make_model(config, vocab_size=vocab_size, rngs=nnx.Rngs(params=config.seed))

    def initialise() -> ModelState:
        _, params, statistics = nnx.split(make(), nnx.Param, nnx.BatchStat)
        return ModelState(nnx.to_pure_dict(params), nnx.to_pure_dict(statistics))

    return nnx.graphdef(nnx.eval_shape(make)), initialise
