"""What a run computes with, worked out before anything is allocated."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from cope_jax.parallel.mesh import batch_sharding, make_mesh, replicated, with_shardings
from cope_jax.parallel.sharding_rules import parameter_shardings
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import training_batch_shapes
from cope_jax.runs.model import ModelState, split_model
from cope_jax.runs.state import TrainState
from cope_jax.training.objective import init_losses, make_loss
from cope_jax.training.optimizer import make_optimizer
from cope_jax.training.step import StepFunction, make_train_step


class Plan(NamedTuple):
    """All that a run computes with, before anything is allocated.

    Attributes:
        graphdef: the model's graph.
        initial_state: the fresh state, a function to jit.
        state: its shapes, with shardings.
        step: the jitted training step, which donates its state.
    """

    graphdef: nnx.GraphDef
    initial_state: Callable[[], TrainState]
    state: TrainState
    step: StepFunction


def plan(config: RunConfig, mesh: Mesh, *, vocab_size: int) -> Plan:
    """What the run of a config computes on a mesh."""
    graphdef, initialise = split_model(config, vocab_size=vocab_size)

    shapes = {"model": jax.eval_shape(initialise).params, "loss": jax.eval_shape(partial(init_losses, config))}
    optimizer = make_optimizer(shapes, steps=config.train.steps, **asdict(config.optimizer))

    def initial_state() -> TrainState:
        model = initialise()
        params = {"model": model.params, "loss": init_losses(config)}
        step = jnp.zeros((), jnp.int32)
        average = model if config.train.average_decay else None
        return TrainState(step, params, model.statistics, optimizer.init(params), average)

    state = jax.eval_shape(initial_state)
    shardings = state_shardings(state, optimizer, mesh)
    step = jax.jit(
        make_train_step(
            graphdef=graphdef,
            loss_of=make_loss(config, mesh),
            optimizer=optimizer,
            groups=config.optimizer.groups,
            seed=config.seed,
            parts=config.train.batch_size // (config.train.microbatch or config.train.batch_size),
            average_decay=config.train.average_decay,
            mesh=mesh,
        ),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return Plan(graphdef, initial_state, with_shardings(state, shardings), step)


def state_shardings(state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shardings of a whole state (shapes): the optimiser's moments lie as their parameters do, counters everywhere."""
    params = parameter_shardings(state.params, mesh)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        # A frozen parameter has no moments, but a place where they would be.
        lambda moment, sharding: moment if isinstance(moment, optax.MaskedNode) else sharding,
        state.opt_state,
        params,
        transform_non_params=lambda _: replicated(mesh),
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    statistics = jax.tree.map(lambda _: replicated(mesh), state.statistics)
    average = ModelState(params["model"], statistics) if state.average is not None else None
    return TrainState(replicated(mesh), params, statistics, opt_state, average)


def step_operations(config: RunConfig, vocab_size: int) -> float:
    """Floating-point operations of a step, as XLA counts them in the program before it optimises.

    Of the step with layers unrolled, as XLA counts the body of a loop once, and with nothing rematerialised.
    """
    plain = replace_fields(config, {"model.scan_layers": False, "model.remat": "none", "train.microbatch": 0})
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    run = plan(plain, mesh, vocab_size=vocab_size)
    return run.step.lower(run.state, training_batch_shapes(plain)).cost_analysis()["flops"]
