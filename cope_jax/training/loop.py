"""Training of a run, from a config and a work directory to its last checkpoint."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree
from tqdm import tqdm

from cope_jax.data.records import InvalidItems
from cope_jax.evaluation.embed_items import LoadedRun, embed_function
from cope_jax.evaluation.probe import Probe
from cope_jax.evaluation.results import remove_results_after
from cope_jax.parallel.mesh import batch_share, make_mesh, to_devices
from cope_jax.parallel.processes import check_shared_storage
from cope_jax.runs.checkpoints import Checkpoints, TrainState, Window, set_aside_invalid
from cope_jax.runs.config import RunConfig, flatten
from cope_jax.runs.config_file import save_config
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import (
    batch_bytes,
    check_batch_sizes,
    check_domains,
    run_tokenizer,
    training_batches,
    training_classes,
)
from cope_jax.runs.provenance import provenance, record_start
from cope_jax.training.evaluations import Evaluations, evaluate_in_full, evaluate_state
from cope_jax.training.feature_cache import cached_features
from cope_jax.training.hard_batches import HardBatches
from cope_jax.training.plan import Plan, make_plan, restore_or_initialize, step_flops
from cope_jax.training.progress import TrainingProgress, peak_flops
from cope_jax.training.reporting import MetricsLog, Reporter, WandbRun
from cope_jax.training.signals import Stopped, StopSignal
from cope_jax.training.watchdog import Watchdog
from data_prep.common.files import lock_file


class Profiler:
    """Writes a trace of some steps to a folder.

    Args:
        folder: Where to write.
        steps: First and last step to trace; None traces nothing.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self.folder = folder
        self.first, self.last = steps or (0, 0)
        self.running = False

    def before_step(self, step: int) -> None:
        """Starts the trace before the first of its steps that this process runs."""
        if not self.running and self.first <= step <= self.last:
            jax.profiler.start_trace(self.folder)
            self.running = True

    def after_step(self, step: int, result: PyTree) -> None:
        """Stops the trace after its last step, once the result is computed."""
        if self.running and step >= self.last:
            jax.block_until_ready(result)
            self.close()
            print(f"\ntrace of steps {self.first} to {self.last} in {self.folder}: tensorboard --logdir={self.folder}")

    def close(self) -> None:
        """Stops a running trace."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()


class LoopServices(NamedTuple):
    """Services used by the training loop."""

    checkpoints: Checkpoints
    reporter: Reporter
    evaluations: Evaluations
    probe: Probe | None  # evaluates models during training; None if config.train.evaluate_every is 0
    stop: StopSignal
    watchdog: Watchdog
    profiler: Profiler


def train(
    config: RunConfig, workdir: Path, *, accept_other_data: bool = False, profile_steps: tuple[int, int] | None = None
) -> None:
    """Trains until config.train.steps, starting or resuming from the newest valid checkpoint.

    If config.train.evaluate_every is set, the last and the best step are evaluated on all items at the end.

    Args:
        accept_other_data: Continue even if the training data changed since the run began.
        profile_steps: First and last step of a profiler trace in `profile/`.

    Raises:
        ValueError: The config does not fit devices, data, weights or the run in the work directory; another process
            trains there; no valid checkpoint is left; or too many steps in a row are not finite.
        FileNotFoundError: Array records, tokenizer or weights are missing.
        OSError: The last checkpoint could not be saved.
        Stopped: A signal came. The state is saved.
    """
    mesh = make_mesh(**asdict(config.mesh))
    check_batch_sizes(config, mesh)
    share = batch_share(mesh)
    _print_devices(mesh)
    with Watchdog(config.train.stall_seconds) as watchdog, locked_workdir(workdir), StopSignal() as stop:
        check_domains(config)
        class_ids = training_classes(config)
        if class_ids is not None:
            config = replace_fields(config, {"losses.classifier.classes": len(class_ids)})
        if jax.process_index() == 0:
            save_config(config, workdir)
            set_aside_invalid(workdir, Evaluations(config, workdir, step=config.train.steps).best)
        tokenizer = run_tokenizer(config, workdir)
        with Checkpoints(workdir, keep=max(config.train.keep_checkpoints, 2)) as checkpoints:
            newest = checkpoints.agreed_latest() or 0
            evaluations = Evaluations(config, workdir, step=newest)
            checkpoints.preserve(evaluations.best(checkpoints.steps()))
            if newest >= config.train.steps and not evaluations.due(newest):
                print(f"{workdir} already has all {newest} steps")
            else:
                _print_changes(config, workdir, newest, accept_other_data=accept_other_data)
                plan = make_plan(config, mesh, vocab_size=len(tokenizer))
                state, window = restore_or_initialize(config, plan, checkpoints, vocab_size=len(tokenizer))
                shapes = plan.state.model
                run = LoadedRun(config, tokenizer, mesh, embed_function(plan.graphdef, shapes, mesh), shapes)
                probe = Probe(run) if config.train.evaluate_every else None
                seen = replace_fields(config, {"data.eval_split": config.data.train_split})
                on_training_split = replace(run, config=seen)
                invalid_items = InvalidItems()
                features = None
                if config.finetune.method == "frozen":
                    features = cached_features(on_training_split, plan.graphdef, state.model, workdir)
                make_batches = partial(
                    training_batches,
                    config,
                    tokenizer,
                    share=share,
                    class_ids=class_ids,
                    features=features,
                    invalid_items=invalid_items,
                )
                if config.data.hard_batches:
                    batches = HardBatches(make_batches, on_training_split, checkpoints.read_order(newest), newest)
                else:
                    batches = make_batches(start_step=newest)
                if jax.process_index() == 0:
                    size = tqdm.format_sizeof(batch_bytes(config) / share[1], "B")
                    print(f"reading ahead up to {batches.read_ahead} batches of {size}")
                with (
                    closing(batches),
                    closing(Profiler(workdir / "profile", profile_steps)) as profiler,
                    _open_log(config, workdir, newest) as log,
                ):
                    reporter = _make_reporter(config, log, invalid_items, window, vocab_size=len(tokenizer))
                    services = LoopServices(checkpoints, reporter, evaluations, probe, stop, watchdog, profiler)
                    with closing(reporter.progress.bar):
                        run_steps(config, mesh, state, plan, batches, services)
                stop.unsaved = False
        if config.train.evaluate_every:
            evaluate_in_full(config, workdir, stop, watchdog)


@contextmanager
def locked_workdir(workdir: Path) -> Iterator[None]:
    """Creates a work directory and locks it; raises ValueError if it is in use, or if other hosts do not see it."""
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
    lock = lock_file(workdir / ".lock", f"is training in {workdir}") if jax.process_index() == 0 else nullcontext()
    with lock:
        check_shared_storage(workdir)
        yield


def _print_changes(config: RunConfig, workdir: Path, step: int, *, accept_other_data: bool) -> None:
    """Records the start of the run, and prints what changed since the last one."""
    if jax.process_index() == 0:
        for change in record_start(workdir, step, provenance(config), accept_other_data=accept_other_data):
            print(f"changed since the last start: {change}")


def _print_devices(mesh: Mesh) -> None:
    """Prints which devices train, and whether some do not."""
    if jax.process_index() == 0:
        kinds = Counter(device.device_kind for device in mesh.devices.flat)
        print("training on " + ", ".join(f"{count} × {kind}" for kind, count in kinds.items()))
    if mesh.size < jax.device_count():
        print(f"config.mesh uses {mesh.size} of {jax.device_count()} devices")


@contextmanager
def _open_log(config: RunConfig, workdir: Path, step: int) -> Iterator[MetricsLog | None]:
    """Opens the logs of a run that starts or resumes after a step, in the first process; the others get None.

    Stored results of later steps are removed, as their lines in the logs are.
    """
    if jax.process_index() > 0:
        yield None
        return
    remove_results_after(workdir, step)
    project = config.train.wandb
    wandb = WandbRun(project, workdir, flatten(config)) if project else None
    with closing(MetricsLog(workdir, step=step, wandb=wandb)) as log:
        yield log


def _make_reporter(
    config: RunConfig, log: MetricsLog | None, invalid_items: InvalidItems, window: Window, *, vocab_size: int
) -> Reporter:
    """Returns the reporter of a run that begins or resumes with an open report window."""
    peak = peak_flops()
    # Counting operations takes seconds to a minute.
    peak_seconds = step_flops(config, vocab_size) / peak if peak else 0.0
    progress = TrainingProgress(steps=config.train.steps, batch_size=config.train.batch_size, peak_seconds=peak_seconds)
    return Reporter(config, log, progress, invalid_items, window)


def run_steps(
    config: RunConfig, mesh: Mesh, state: TrainState, plan: Plan, batches: Iterator[Any], services: LoopServices
) -> None:
    """Runs the remaining steps; saves and evaluates on schedule, at the end, and when asked to stop.

    A skipped step is neither saved nor evaluated, since the parameters may be the cause of its failure.

    Raises:
        Stopped: A signal came. The state is saved.
        ValueError: The last step or too many steps in a row were skipped, parameters overflowed, or too many items were
            unreadable.
    """
    checkpoints, reporter, evaluations, _, stop, watchdog, profiler = services
    first, steps = int(state.step), config.train.steps
    if evaluations.due(first) and not _evaluate_step(first, state, services):
        raise Stopped(first, steps, saved=first)
    for step in range(first + 1, steps + 1):
        watchdog.saved = reporter.progress.saved = checkpoints.saved
        watchdog.reset(f"the batch of step {step}")
        with reporter.progress.waiting_for_data():
            batch = next(batches)
        if step == 1:
            reporter.add_examples(step, batch)
        profiler.before_step(step)
        watchdog.reset(f"the compiling of step {step}" if step == first + 1 else f"step {step - 1}")
        state, metrics = plan.step(state, to_devices(batch, mesh))
        stop.unsaved = True
        reporter.add(step, metrics, batch["product_id"])
        profiler.after_step(step, state)
        watchdog.finished = step - 1
        watchdog.reset(f"the other processes at step {step}")
        stopped, due = stop.agreed(step), evaluations.due(step)
        order = None
        if isinstance(batches, HardBatches):  # before the step is saved, so that its checkpoint has the new groups
            batches.regroup(step, state.model, partial(watchdog.reset, f"the groups of hard batches of step {step}"))
            order = batches.order
        if step == steps or step % config.train.checkpoint_every == 0 or stopped or due:
            reporter.flush()
            watchdog.reset(f"the saving of step {step}")
            if not reporter.skipped:
                _check_parameters(step, state)
                checkpoints.save(step, state, reporter.open_window(), reporter.sync, order)
        if due and not stopped and not reporter.skipped:
            stopped = not _evaluate_step(step, state, services)
        if (stopped or step == steps) and not checkpoints.wait():
            raise OSError(
                f"the last checkpoint could not be written to {checkpoints.folder}, for the reason above; fix that and "
                f"run the same command again: it resumes from step {checkpoints.latest() or 0}"
            )
        if stopped and (step < steps or due):
            raise Stopped(step, steps, saved=checkpoints.latest() or 0)


def _check_parameters(step: int, state: TrainState) -> None:
    """Raises ValueError if the sum of the squared parameters exceeds float32: no later step could repair them."""
    if not np.isfinite(jax.jit(optax.tree.norm)(state.params)):
        raise ValueError(
            f"the parameters of step {step} overflow, although its loss and gradients are finite; nothing is saved. "
            "Lower config.optimizer.rate or config.optimizer.weight_decay and run again: it resumes from the last "
            "checkpoint before this step"
        )


def _evaluate_step(step: int, state: TrainState, services: LoopServices) -> bool:
    """Evaluates the model of a step. Returns False if the run was asked to stop before the end."""
    assert services.probe is not None  # or no evaluation would be due

    def on_batch() -> None:
        services.watchdog.reset(f"the evaluation of step {step}")
        if services.stop.interrupts():
            raise Stopped(step, services.evaluations.last, saved=step)

    services.watchdog.reset(f"the evaluation of step {step}")
    services.reporter.begin_evaluation(step)
    try:
        with services.reporter.progress.paused():
            metrics, samples = evaluate_state(state, services.probe, on_batch)
    except Stopped:
        return False
    services.reporter.add_evaluation(step, metrics, samples)
    services.evaluations.add(step, metrics)
    services.checkpoints.preserve(services.evaluations.best({*services.checkpoints.steps(), step}))
    return True
