"""The computation of a run, known before anything is allocated."""

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.sharding import Mesh

from cope_jax.parallel.mesh import batch_sharding, make_mesh, replicated, with_shardings
from cope_jax.parallel.sharding_rules import parameter_shardings, shard_over_data
from cope_jax.runs.checkpoints import Checkpoints, ModelState, TrainState, Window
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.initial_weights import prepare_weights
from cope_jax.runs.inputs import training_batch_shapes
from cope_jax.runs.model import encoder_settings, split_model
from cope_jax.training.objective import init_losses
from cope_jax.training.optimizer import make_optimizer
from cope_jax.training.step import make_train_step

COPIES = ("average", "teacher")  # parts of the state that begin as the initial model
FIRST_PART = "opt_state/0/inner_state/0/"  # of the optimizer: clipping, which has no state


class Plan(NamedTuple):
    """The computation of a run on a mesh."""

    graphdef: nnx.GraphDef  # static structure of the model
    initial_state: Callable[[], TrainState]  # computes the initial state; to be jitted
    state: TrainState  # shapes of the state, with shardings
    step: jax.stages.Wrapped  # the jitted training step, which donates its state


def make_plan(config: RunConfig, mesh: Mesh, *, vocab_size: int) -> Plan:
    """Returns the computation of a config on a mesh."""
    graphdef, initialize = split_model(config, vocab_size=vocab_size, mesh=mesh)
    shapes = {"model": jax.eval_shape(initialize).params, "loss": jax.eval_shape(partial(init_losses, config))}
    options = {"groups": config.groups, "steps": config.train.steps, "layer_decay": config.finetune.layer_decay}
    optimizer = make_optimizer(shapes, config.optimizer, **options)

    def initial_state() -> TrainState:
        model = initialize()
        params = {"model": model.params, "loss": init_losses(config)}
        step = jnp.zeros((), jnp.int32)
        average = model if config.train.average_decay else None
        teacher = model if config.finetune.distill else None
        return TrainState(step, params, model.statistics, optimizer.init(params), average, teacher)

    state = jax.eval_shape(initial_state)
    shardings = _state_shardings(state, optimizer, mesh, shard_optimizer=config.train.shard_optimizer)
    step = jax.jit(
        make_train_step(config, graphdef, optimizer, mesh),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return Plan(graphdef, initial_state, with_shardings(state, shardings), step)


def _state_shardings(
    state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh, *, shard_optimizer: bool
) -> TrainState:
    """Returns the shardings of a state (shapes): counters replicated, moments like their parameters.

    With `shard_optimizer`, moments are also sharded over `data`: each device then updates its part of the parameters
    and receives the others (ZeRO stage 1, arXiv 1910.02054).
    """
    params = parameter_shardings(state.params, mesh)
    moments = jax.tree.map(shard_over_data, state.params, params) if shard_optimizer else params
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        # A frozen parameter has no moments but a node in their place.
        lambda moment, sharding: moment if isinstance(moment, optax.MaskedNode) else sharding,
        state.opt_state,
        moments,
        transform_non_params=lambda _: replicated(mesh),
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    statistics = jax.tree.map(lambda _: replicated(mesh), state.statistics)
    model = ModelState(params["model"], statistics)
    copies = {name: model for name in COPIES if getattr(state, name) is not None}
    return state.replace(step=replicated(mesh), params=params, statistics=statistics, opt_state=opt_state, **copies)


def restore_or_initialize(
    config: RunConfig, plan: Plan, checkpoints: Checkpoints, *, vocab_size: int
) -> tuple[TrainState, Window]:
    """Returns the state and the open report window of the newest checkpoint, or an initial state."""
    newest = checkpoints.latest()
    if newest is not None:
        print(f"resuming from step {newest}")
        return _restore(plan, checkpoints, newest)
    load = prepare_weights(config, plan.state.model, encoder_settings(config, vocab_size=vocab_size))
    shardings = jax.tree.map(lambda shape: shape.sharding, plan.state)
    state = jax.jit(plan.initial_state, out_shardings=shardings)()
    model = load(state.model)
    state = state.replace(params=state.params | {"model": model.params}, statistics=model.statistics)
    # Copies, since the step donates all.
    copies = {name: jax.tree.map(jnp.copy, model) for name in COPIES if getattr(state, name) is not None}
    return state.replace(**copies), {}


def _restore(plan: Plan, checkpoints: Checkpoints, step: int) -> tuple[TrainState, Window]:
    """Returns the state and the open report window of a step, which an earlier version may have saved."""
    clipping: tuple = (optax.EmptyState(),)
    if any(path.startswith(FIRST_PART) for path in checkpoints.shapes(step)):
        clipping = ()  # as runs without clipping were once saved
    elif f"{FIRST_PART}inner_state" in checkpoints.empty_parts(step):
        clipping = (optax.MaskedState(optax.EmptyState()),)  # as runs that clip some parameters were once saved
    state, window = checkpoints.restore(step, change_parts(plan.state, lambda parts: (*clipping, *parts[1:])))
    return change_parts(state, lambda parts: (optax.EmptyState(), *parts[len(clipping) :])), window


def change_parts(state: TrainState, change: Callable[[tuple], tuple]) -> TrainState:
    """Returns a state (arrays or shapes) with a change of the parts of the optimizer's state."""
    masked, scaling = state.opt_state
    return state.replace(opt_state=(masked._replace(inner_state=change(masked.inner_state)), scaling))


def step_flops(config: RunConfig, vocab_size: int) -> float:
    """Returns the floating-point operations of a step without rematerialization, the same on all devices."""
    config = replace_fields(config, {"model.attention": "xla", "model.remat": "none", "train.microbatch": 0})
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    plan = make_plan(config, mesh, vocab_size=vocab_size)
    return count_operations(plan.step.trace(plan.state, training_batch_shapes(config)).jaxpr.jaxpr)


def count_operations(jaxpr: Jaxpr) -> float:
    """Returns the operations of all matrix products and convolutions of a program, on all devices.

    Other operations are left out, as is usual for MFU. Bodies of scans count as often as they run, those of other loops
    once, and of several branches the largest counts.
    """
    return float(sum(map(_equation_operations, jaxpr.eqns)))


def _equation_operations(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = _shape(equation.invars[0])
        return 2 * prod(_shape(equation.outvars[0])) * prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        products = prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
        # Zeros between the pixels of a dilated input are not multiplied.
        return 2 * prod(_shape(equation.outvars[0])) * products / prod(params["lhs_dilation"])
    counts = [count_operations(inner) for inner in _inner_programs(params)]
    if name == "cond":
        return max(counts)
    times = params["mesh"].size if name == "shard_map" else params["length"] if name == "scan" else 1
    return times * sum(counts)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner_programs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yields the programs among the parameters of an operation."""
    for value in params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if isinstance(inner, ClosedJaxpr):
                yield inner.jaxpr
            elif isinstance(inner, Jaxpr):
                yield inner
