"""A training run: from a config and a work directory to its last checkpoint."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from cope_jax.data.bad_items import Faults
from cope_jax.evaluation.evaluate_run import evaluate
from cope_jax.evaluation.probe import Probe
from cope_jax.parallel.mesh import batch_share, make_mesh, to_devices
from cope_jax.runs.checkpoints import Checkpoints, Window, set_aside_damaged
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_file import save_config
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import check_batch_sizes, run_tokenizer, training_batches, training_classes
from cope_jax.runs.lock import held
from cope_jax.runs.model import ModelState
from cope_jax.runs.provenance import circumstances, record_start
from cope_jax.runs.state import TrainState
from cope_jax.runs.weights import load_weights, prepare_weights
from cope_jax.training.evaluations import Evaluations, look_at
from cope_jax.training.plan import Plan, plan, step_operations
from cope_jax.training.progress import TrainingProgress, peak_flops
from cope_jax.training.reporting import MetricsLog, Reporter
from cope_jax.training.supervision.signals import Stopped, StopSignal
from cope_jax.training.supervision.tracing import Profiler
from cope_jax.training.supervision.watchdog import Watchdog


class Attendants(NamedTuple):
    """What attends the steps of a run.

    Attributes:
        probe: None where nothing is evaluated while training.
    """

    checkpoints: Checkpoints
    reporter: Reporter
    evaluations: Evaluations
    probe: Probe | None
    stop: StopSignal
    watchdog: Watchdog
    profiler: Profiler


def train(
    config: RunConfig,
    workdir: Path,
    *,
    accept_other_data: bool = False,
    profile_steps: tuple[int, int] | None = None,
) -> None:
    """Trains until config.train.steps, going on from the newest sound checkpoint of the work directory.

    Where config.train.evaluate_every asks for evaluations, the last and the best step are evaluated in full at the end.

    Args:
        config: of the run.
        workdir: made if missing.
        accept_other_data: whether a run may go on with other training data than it began with.
        profile_steps: the first and the last of the steps whose trace goes to `profile/`.

    Raises:
        ValueError: a fault in the config, a work directory that holds another run or that another process trains in,
            weights of another model, other data, no sound checkpoint left, too many numbers that are not finite.
        FileNotFoundError: array records, tokenizer or weights are missing.
        OSError: the last checkpoint could not be saved.
        Stopped: a signal came; the state is saved.
    """
    mesh = make_mesh(**asdict(config.mesh))
    check_batch_sizes(config, mesh)
    share = batch_share(mesh)
    if mesh.size < jax.device_count():
        print(f"config.mesh takes {mesh.size} of {jax.device_count()} devices")
    with Watchdog(config.train.stall_seconds) as watchdog, held(workdir), StopSignal() as stop:
        class_ids = training_classes(config)
        if class_ids is not None:
            config = replace_fields(config, {"losses.classifier.classes": len(class_ids)})
        if jax.process_index() == 0:
            save_config(config, workdir)
            set_aside_damaged(workdir, Evaluations(config, workdir, step=config.train.steps).best)
        tokenizer = run_tokenizer(config, workdir)
        with Checkpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints:
            newest = checkpoints.latest_of_all() or 0
            evaluations = Evaluations(config, workdir, step=newest)
            checkpoints.best.step = evaluations.best(checkpoints.steps())
            if newest >= config.train.steps and not evaluations.due(newest):
                print(f"{workdir} has its {newest} steps already")
            else:
                if jax.process_index() == 0:
                    now = circumstances(config)
                    for change in record_start(workdir, newest, now, accept_other_data=accept_other_data):
                        print(f"since the last start: {change}")
                state, window, run = start(config, mesh, checkpoints, vocab_size=len(tokenizer))
                probe = make_probe(config, tokenizer, mesh, run) if config.train.evaluate_every else None
                faults = Faults()
                batches = training_batches(
                    config, tokenizer, start_step=newest, share=share, class_ids=class_ids, faults=faults
                )
                log = MetricsLog(workdir, step=newest) if jax.process_index() == 0 else None
                with closing(batches), closing(Profiler(workdir / "profile", profile_steps)) as profiler:
                    reporter = make_reporter(config, log, faults, window, vocab_size=len(tokenizer))
                    attend = Attendants(checkpoints, reporter, evaluations, probe, stop, watchdog, profiler)
                    with closing(reporter.progress.bar):
                        run_steps(config, mesh, state, run, batches, attend)
        if config.train.evaluate_every:
            evaluate_in_full(config, workdir, stop, watchdog)


def start(
    config: RunConfig, mesh: Mesh, checkpoints: Checkpoints, *, vocab_size: int
) -> tuple[TrainState, Window, Plan]:
    """The state and report window to begin with, of the newest checkpoint or fresh, and the plan that they are of."""
    run = plan(config, mesh, vocab_size=vocab_size)
    newest = checkpoints.latest()
    if newest is not None:
        print(f"going on from step {newest}")
        return *checkpoints.restore(newest, run.state), run
    weights = prepare_weights(config, run.state.params["model"], vocab_size=vocab_size)
    shardings = jax.tree.map(lambda shape: shape.sharding, run.state)
    state = jax.jit(run.initial_state, out_shardings=shardings)()
    model = load_weights(weights, state.params["model"])
    state = state.replace(params=state.params | {"model": model})
    if state.average is not None:
        # A copy: the step overwrites both where they lie.
        state = state.replace(average=jax.tree.map(jnp.copy, ModelState(model, state.statistics)))
    return state, {}, run


def make_probe(config: RunConfig, tokenizer: PreTrainedTokenizerFast, mesh: Mesh, run: Plan) -> Probe:
    """What looks at the model while it trains."""
    return Probe(config, tokenizer, mesh, run.graphdef, ModelState(run.state.params["model"], run.state.statistics))


def make_reporter(
    config: RunConfig, log: MetricsLog | None, faults: Faults, window: Window, *, vocab_size: int
) -> Reporter:
    """What tells of a run, or of the rest of one, that begins with an open report window."""
    peak = peak_flops()
    # Counting operations takes seconds to a minute.
    peak_seconds = step_operations(config, vocab_size) / peak if peak else 0.0
    progress = TrainingProgress(steps=config.train.steps, batch_size=config.train.batch_size, peak_seconds=peak_seconds)
    return Reporter(config, log, progress, faults, window)


def run_steps(
    config: RunConfig, mesh: Mesh, state: TrainState, run: Plan, batches: Iterator[Any], attend: Attendants
) -> None:
    """Takes the steps that are left; saves and evaluates on schedule and at the end, saves when asked to stop.

    Raises:
        Stopped: a signal came; the state is saved.
    """
    checkpoints, reporter, evaluations, _, stop, watchdog, profiler = attend
    first, steps = int(state.step), config.train.steps
    if evaluations.due(first) and not evaluate_step(first, state, attend):
        raise Stopped(what_is_left(first, steps))
    for step in range(first + 1, steps + 1):
        watchdog.saved = reporter.progress.saved = checkpoints.saved
        watchdog.reset(f"the batch of step {step}")
        with reporter.progress.waiting_for_data():
            batch = next(batches)
        if step == 1:
            reporter.add_examples(step, batch)
        profiler.before_step(step)
        watchdog.reset(f"the compiling of step {step}" if step == first + 1 else f"step {step - 1}")
        state, metrics = run.step(state, to_devices(batch, mesh))
        reporter.add(step, metrics, batch["product_id"])
        profiler.after_step(step, state)
        watchdog.finished = step - 1
        watchdog.reset(f"the other processes at step {step}")
        stopped, due = stop.agreed(step), evaluations.due(step)
        if step == steps or step % config.train.checkpoint_every == 0 or stopped or due:
            reporter.flush()
            watchdog.reset(f"the saving of step {step}")
            checkpoints.save(step, state, reporter.open_window(), reporter.sync)
        if due and not stopped:
            stopped = not evaluate_step(step, state, attend)
        if stopped or step == steps:
            save_at_last(checkpoints)
        if stopped and (step < steps or due):
            raise Stopped(what_is_left(step, steps))


def what_is_left(step: int, steps: int) -> str:
    """What is said of a run that was stopped."""
    return f"stopped at step {step} of {steps}, which is saved; the same command goes on from there"


def evaluate_step(step: int, state: TrainState, attend: Attendants) -> bool:
    """Evaluates the model of a step; False where the run was asked to stop before the end of that."""

    def between() -> None:
        attend.watchdog.reset(f"the evaluation of step {step}")
        if attend.stop.interrupts():
            raise Stopped

    attend.watchdog.reset(f"the evaluation of step {step}")
    attend.reporter.begin_evaluation(step)
    try:
        with attend.reporter.progress.paused():
            metrics, samples = look_at(state, attend.probe, between)
    except Stopped:
        return False
    attend.reporter.add_evaluation(step, metrics, samples)
    attend.evaluations.add(step, metrics)
    attend.checkpoints.best.step = attend.evaluations.best({*attend.checkpoints.steps(), step})
    return True


def evaluate_in_full(config: RunConfig, workdir: Path, stop: StopSignal, watchdog: Watchdog) -> None:
    """Evaluates the last and the best step, and their moving averages where there are some, on the whole split.

    Raises:
        Stopped: a signal came; what is evaluated already is kept.
    """
    last = watchdog.finished = config.train.steps
    with Checkpoints(workdir) as checkpoints:
        evaluations = Evaluations(config, workdir, step=last)
        steps = {last, evaluations.best(checkpoints.steps())} - {None}
    behind = count(last + 1)  # batches count on where steps end: all processes stop behind the same one

    def between() -> None:
        watchdog.reset(f"the evaluation of all of {what}")
        if stop.agreed(next(behind)):
            raise Stopped(what_is_left(last, last))

    for step in sorted(steps):
        for average in (False, True) if config.train.average_decay else (False,):
            what = f"the moving average of step {step}" if average else f"step {step}"
            watchdog.reset(f"the evaluation of all of {what}")
            metrics = evaluate(workdir, step=step, average=average, reuse=True, on_batch=between).metrics
            if jax.process_index() == 0:
                print(f"{what}, all of it evaluated: mean R@1 {metrics['retrieval_mean']['mean_r1']:.3f}")


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
