"""A training run: from a config and a work directory to its last checkpoint."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cope_jax.data.faults import Faults
from cope_jax.training.checkpoints import Checkpoints, Window, set_aside_damaged
from cope_jax.training.config import save_config, validate
from cope_jax.training.inputs import run_tokenizer, training_batches, training_classes
from cope_jax.training.lock import locked
from cope_jax.training.losses import init_losses, make_loss
from cope_jax.training.mesh import (
    batch_sharding,
    batch_share,
    make_mesh,
    parameter_shardings,
    replicated,
    to_devices,
    with_shardings,
)
from cope_jax.training.metrics import MetricsLog, Reporter
from cope_jax.training.model import split_model
from cope_jax.training.optimizer import make_optimizer
from cope_jax.training.progress import Progress
from cope_jax.training.starts import circumstances, record_start
from cope_jax.training.step import StepFunction, TrainState, make_train_step
from cope_jax.training.watchdog import Watchdog
from cope_jax.training.weights import load_weights, prepare_weights

SHARED_SECONDS = 30.0  # shared file systems may show a new file that late


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


class StopSignal:
    """Turns the first SIGTERM or SIGINT into a flag that the loop looks at between steps; the second one kills.

    Of several processes each may get the signal, at another step or not at all, so they must agree. JAX has them do so
    and catches SIGTERM itself for it.
    """

    def __enter__(self) -> "StopSignal":
        self.asked, self.alone = False, jax.process_count() == 1
        numbers = (signal.SIGTERM, signal.SIGINT) if self.alone else (signal.SIGINT,)
        self.previous = {number: signal.signal(number, self.note) for number in numbers}
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
        if not self.alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def behind(self, step: int) -> bool:
        """Whether to stop behind this step, the same in all processes; each must ask at every step."""
        return self.asked if self.alone else multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def train(config: ConfigDict, workdir: Path, *, accept_other_data: bool = False) -> None:
    """Trains until config.train.steps, going on from the newest sound checkpoint of the work directory.

    Args:
        config: of the run.
        workdir: made if missing.
        accept_other_data: whether a run may go on with other training data than it began with.

    Raises:
        ValueError: a fault in the config, a work directory that holds another run or that another process trains in,
            weights of another model, other data, no sound checkpoint left, too many numbers that are not finite.
        FileNotFoundError: array records, tokenizer or weights are missing.
        OSError: the last checkpoint could not be saved.
        Stopped: a signal came; the state is saved.
    """
    validate(config)
    mesh = make_mesh(**config.mesh)
    check_batch_sizes(config, mesh)
    share = batch_share(mesh)
    class_ids = training_classes(config)
    if class_ids is not None:
        config.losses.classifier.classes = len(class_ids)
    with held(workdir), Watchdog(config.train.stall_seconds) as watchdog, StopSignal() as stop:
        if jax.process_index() == 0:
            save_config(config, workdir)
            set_aside_damaged(workdir)
        tokenizer = run_tokenizer(config, workdir)
        with Checkpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints:
            newest = checkpoints.latest() or 0
            if newest >= config.train.steps:
                print(f"{workdir} has its {newest} steps already")
                return
            if jax.process_index() == 0:
                for change in record_start(workdir, newest, circumstances(config), accept_other_data=accept_other_data):
                    print(f"since the last start: {change}")
            state, window, step_function = start(config, mesh, checkpoints, vocab_size=len(tokenizer))
            faults = Faults()
            batches = training_batches(
                config, tokenizer, start_step=newest, share=share, class_ids=class_ids, faults=faults
            )
            log = MetricsLog(workdir, step=newest) if jax.process_index() == 0 else nullcontext()
            with log as log, closing(batches):
                run_steps(config, mesh, state, window, step_function, batches, faults, checkpoints, log, stop, watchdog)


@contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Makes the work directory and holds it for this run alone.

    Raises:
        ValueError: another process trains in it, or other hosts of this run do not see it.
    """
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir) if jax.process_index() == 0 else nullcontext():
        check_shared(workdir)
        yield


def check_shared(workdir: Path) -> None:
    """Finds out in seconds whether all processes see the same work directory.

    Raises:
        ValueError: some do not; names them.
    """
    if jax.process_count() == 1:
        return
    path = workdir / ".shared"
    token = str(multihost_utils.broadcast_one_to_all(np.uint32(time.time_ns() & 0xFFFFFFFF)))
    if jax.process_index() == 0:
        path.write_text(token, encoding="utf-8")
    deadline = time.monotonic() + SHARED_SECONDS
    while not (seen := path.exists() and path.read_text(encoding="utf-8") == token) and time.monotonic() < deadline:
        time.sleep(0.2)
    seen = multihost_utils.process_allgather(np.array(seen))
    if not seen.all():
        blind = ", ".join(map(str, np.flatnonzero(~seen)))
        raise ValueError(
            f"process {blind} of {len(seen)} does not see what process 0 writes in {workdir.absolute()}: --workdir "
            "must be on storage that all hosts share, under the same path"
        )


def check_batch_sizes(config: ConfigDict, mesh: Mesh) -> None:
    """Raises a ValueError where a batch does not divide over the devices that share it."""
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    sizes = {
        "train.batch_size": config.train.batch_size,
        "train.microbatch": config.train.microbatch,
        "eval.batch_size": config.eval.batch_size,
    }
    for key, size in sizes.items():
        if size % shares:
            raise ValueError(
                f"config.{key} {size} is no multiple of the {shares} devices that share it (mesh.data × mesh.fsdp); "
                f"make it {-(-size // shares) * shares}, say, or change config.mesh"
            )


class Plan(NamedTuple):
    """All that a run computes with, before anything is allocated.

    Attributes:
        initial_state: the fresh state, a function to jit.
        state: its shapes, with shardings.
        step: the jitted training step, which donates its state.
    """

    initial_state: Callable[[], TrainState]
    state: TrainState
    step: StepFunction


def plan(config: ConfigDict, mesh: Mesh, *, vocab_size: int) -> Plan:
    """What the run of a config computes on a mesh."""
    graphdef, initialise = split_model(config, vocab_size=vocab_size)

    shapes = {"model": jax.eval_shape(initialise).params, "loss": jax.eval_shape(partial(init_losses, config))}
    optimizer = make_optimizer(shapes, steps=config.train.steps, **config.optimizer)

    def initial_state() -> TrainState:
        model = initialise()
        params = {"model": model.params, "loss": init_losses(config)}
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, model.statistics, optimizer.init(params))

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
            mesh=mesh,
        ),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return Plan(initial_state, with_shardings(state, shardings), step)


def start(
    config: ConfigDict, mesh: Mesh, checkpoints: Checkpoints, *, vocab_size: int
) -> tuple[TrainState, Window, StepFunction]:
    """The state and report window to begin with, of the newest checkpoint or fresh, and the step to jit for it."""
    run = plan(config, mesh, vocab_size=vocab_size)
    newest = checkpoints.latest()
    if newest is None:
        weights = prepare_weights(config, run.state.params["model"], vocab_size=vocab_size)
        shardings = jax.tree.map(lambda shape: shape.sharding, run.state)
        state = jax.jit(run.initial_state, out_shardings=shardings)()
        params = state.params | {"model": load_weights(weights, state.params["model"])}
        return state.replace(params=params), {}, run.step
    print(f"going on from step {newest}")
    return *checkpoints.restore(newest, run.state), run.step


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
    return TrainState(step=replicated(mesh), params=params, statistics=statistics, opt_state=opt_state)


def run_steps(
    config: ConfigDict,
    mesh: Mesh,
    state: TrainState,
    window: Window,
    step_function: StepFunction,
    batches: Iterator[Any],
    faults: Faults,
    checkpoints: Checkpoints,
    log: MetricsLog | None,
    stop: StopSignal,
    watchdog: Watchdog,
) -> None:
    """Takes the steps that are left; saves on schedule, at the end and when asked to stop."""
    settings = config.train
    first, steps = int(state.step), settings.steps
    progress = Progress(start=first, steps=steps, batch_size=settings.batch_size)
    reporter = Reporter(
        log,
        progress,
        every=settings.log_every,
        last=steps,
        max_skipped=settings.max_skipped,
        max_bad_fraction=config.data.max_bad_fraction,
        faults=faults,
        window=window,
    )
    for step in range(first + 1, steps + 1):
        watchdog.begin(f"the batch of step {step}")
        batch = next(batches)
        watchdog.begin(f"the compiling of step {step}" if step == first + 1 else f"step {step - 1}")
        state, metrics = step_function(state, to_devices(batch, mesh))
        reporter.add(step, metrics, batch["product_id"])
        watchdog.finished = step - 1
        watchdog.begin(f"the other processes at step {step}")
        stopped = stop.behind(step)
        if step == steps or step % settings.checkpoint_every == 0 or stopped:
            reporter.flush()
            watchdog.begin(f"the saving of step {step}")
            checkpoints.save(step, state, reporter.open_window())
            watchdog.saved = checkpoints.latest()
        if stopped or step == steps:
            save_at_last(checkpoints)
        if stopped and step < steps:
            raise Stopped(f"stopped at step {step} of {steps}, which is saved; the same command goes on from there")


def save_at_last(checkpoints: Checkpoints) -> None:
    """Waits for the save behind which the process ends.

    Raises:
        OSError: it failed.
    """
    if not checkpoints.settle():
        raise OSError(
            f"the last checkpoint could not be written to {checkpoints.folder}, for the reason above; mend that and "
            f"start again: the run goes on from step {checkpoints.latest() or 0}"
        )
