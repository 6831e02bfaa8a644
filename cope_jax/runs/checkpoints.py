"""Orbax checkpoints of a run: asynchronous, the newest few and the best kept, checked, restored onto any mesh."""

import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.tree_util import keystr
from orbax.checkpoint import checkpoint_managers
from tqdm import tqdm

from cope_jax.parallel.mesh import replicated, with_shardings
from cope_jax.parallel.processes import processes_failing
from cope_jax.parallel.sharding_rules import parameter_shardings
from cope_jax.runs.config import RunConfig
from cope_jax.runs.manifest import find_damage, write_manifest
from cope_jax.runs.model import ModelState, split_model
from cope_jax.runs.state import TrainState
from cope_jax.runs.weights import load_weights, prepare_weights

# The step of the initial parameters, which need no checkpoint: the seed makes them anew, and the published weights that
# the run started from, where there are any.
UNTRAINED = 0
# The parts of a checkpoint: the training state, and the sums of the report window that was open (JSON).
STATE, WINDOW = "state", "window"
UNFINISHED = ".orbax-checkpoint-tmp*"  # behind the step
SAVE_SECONDS = 600  # that a save may take; processes whose part is written wait as long for one whose part failed
# Of a disk, which tensorstore tells as ValueErrors, and of waiting in vain for another process whose part failed.
FAILURES = (OSError, ValueError, jax.errors.JaxRuntimeError)

Window = Mapping[str, tuple[float, float]]  # metric → (total, count)


class Best:
    """Orbax's policy that the checkpoint of one step stays, whichever that is by now; None is no step."""

    step: int | None = None

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> list[bool]:
        """Whether each of some checkpoints stays."""
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class SavedStep(NamedTuple):
    """A step whose checkpoint is complete, and when the step was finished (monotonic seconds)."""

    step: int
    time: float

    def __str__(self) -> str:
        return f"{self.step}, {tqdm.format_interval(time.monotonic() - self.time)} ago"


class Checkpoints:
    """The folder `checkpoints/` of a work directory.

    A context manager: leaving it waits for the save under way. A save is written beside, gets its manifest and is
    renamed, so a killed process leaves no half checkpoint that passes for one.

    Attributes:
        saving: the save under way, or the one that ended last and was not asked for yet.
        complete: the last one known to be complete, or the one gone on from.
        failed: whether the one begun last was not completed.
        best: its step stays beside the newest ones.
    """

    def __init__(self, workdir: Path, *, keep: int | None = None):
        """Opens the folder; `keep` newest checkpoints stay, None is for readers, which change nothing."""
        self.folder = workdir.absolute() / "checkpoints"
        self.saving: SavedStep | None = None
        self.complete: SavedStep | None = None
        self.failed = False
        self.best = Best()
        if keep is not None and jax.process_index() == 0:
            self.remove_unfinished()
        kept = [checkpoint_managers.LatestN(keep), self.best]
        self.manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={STATE: ocp.StandardCheckpointHandler(), WINDOW: ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self.seal, timeout_secs=SAVE_SECONDS),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.settle()
        with suppress(*FAILURES):  # further ones of a failed save, which was told
            self.manager.close()

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self.manager.latest_step()

    def latest_of_all(self) -> int | None:
        """The newest complete step as process 0 sees it, or None; all processes must ask, and see the same then.

        Raises:
            ValueError: some do not.
        """
        if jax.process_count() > 1:
            newest = int(multihost_utils.broadcast_one_to_all(np.int32(self.latest() or UNTRAINED)))

            def look() -> bool:
                self.manager.reload()
                return (self.latest() or UNTRAINED) == newest

            if blind := processes_failing(look):
                raise ValueError(
                    f"process {blind} of {jax.process_count()} does not see that {newest} is the newest step in "
                    f"{self.folder}: --workdir must be on storage that soon shows all hosts what one of them changes"
                )
        return self.latest()

    def steps(self) -> list[int]:
        """All complete steps, oldest first."""
        return sorted(self.manager.all_steps())

    @property
    def saved(self) -> SavedStep | None:
        """What a kill would leave now, as far as this start knows."""
        if self.saving and os.path.exists(self.folder / str(self.saving.step)):
            self.complete = self.saving
        return self.complete

    def newest(self) -> int:
        """The newest complete step.

        Raises:
            FileNotFoundError: there is none.
        """
        step = self.latest()
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.folder}: train first, or ask for --step=0")
        return step

    def save(self, step: int, state: TrainState, window: Window, sync_log: Callable[[], None] = lambda: None) -> None:
        """Saves in the background; returns when the arrays are copied to the host.

        A save that fails, say for want of disk space, is reported at the next one or when the folder is closed: the
        run goes on and the checkpoints before stay.

        Args:
            step: of the state.
            state: of all parts of the run that is saved.
            window: of the report that is open.
            sync_log: waits until the disk has all lines up to the step, which no other start will write, and raises
                an OSError where it cannot take them; the save fails then.
        """
        self.settle()
        with suppress(*FAILURES):  # a failed save may leave several, each of which would fail a later one
            self.manager.check_for_errors()
        self.saving, self.failed, self.sync_log = SavedStep(step, time.monotonic()), False, sync_log
        items = {STATE: ocp.args.StandardSave(as_tree(state)), WINDOW: ocp.args.JsonSave(dict(window))}
        try:
            self.manager.save(step, args=ocp.args.Composite(**items))
        except FAILURES as error:
            self.report_failure(error)

    def settle(self) -> bool:
        """Waits for the save under way; whether the last one succeeded, or there was none."""
        try:
            self.manager.wait_until_finished()
        except FAILURES as error:
            self.report_failure(error)
        else:
            self.complete, self.saving = self.saving or self.complete, None
        return not self.failed

    def report_failure(self, error: Exception) -> None:
        """Tells of a failed save and frees the space that it took."""
        print(f"\nsaving step {self.saving.step} in {self.folder} failed: {error}", file=sys.stderr, flush=True)
        self.saving, self.failed = None, True
        with suppress(*FAILURES):  # of the same disk
            self.manager.reload()  # it has forgotten the checkpoint that was to go for the failed one
            if jax.process_index() == 0:
                self.remove_unfinished()

    def remove_unfinished(self) -> None:
        """Removes what killed or failed saves left, as far as the disk lets it; a later save of the step may, too."""
        for left in self.folder.glob(f"*{UNFINISHED}"):
            shutil.rmtree(left, ignore_errors=True)

    def seal(self) -> None:
        """Writes the manifest of the save under way, which Orbax then commits."""
        if jax.process_index() == 0:
            self.sync_log()
            (unfinished,) = self.folder.glob(f"{self.saving.step}{UNFINISHED}")
            write_manifest(unfinished)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, Window]:
        """The state of a step, laid out as `like` (arrays or shapes with shardings), and the open report window.

        Raises:
            ValueError: the checkpoint holds other parameters; lists them.
        """
        wanted = as_tree(like)
        stored = self.manager.item_metadata(step)[STATE].tree
        if differences := differing_shapes(stored, wanted):
            raise ValueError(
                f"the checkpoint of step {step} in {self.folder} is of another model or optimizer than the config:\n"
                + "\n".join(f"  {difference}" for difference in differences)
            )
        items = {STATE: ocp.args.StandardRestore(wanted), WINDOW: ocp.args.JsonRestore()}
        restored = self.manager.restore(step, args=ocp.args.Composite(**items))
        age = time.time() - (self.folder / str(step)).stat().st_mtime
        self.complete = SavedStep(step, time.monotonic() - age)
        return TrainState(**restored[STATE]), {name: tuple(pair) for name, pair in restored[WINDOW].items()}

    def restore_model(self, step: int, like: ModelState, *, average: bool = False) -> ModelState:
        """The model alone, laid out as `like`: what evaluation needs.

        Args:
            average: whether the moving average over the steps is wanted.

        Raises:
            FileNotFoundError: no such step; lists those there are.
            ValueError: its files are not as they were written; lists them. Or it has no moving average.
        """
        if step not in self.steps():
            raise FileNotFoundError(f"no checkpoint of step {step} in {self.folder}; there are {self.steps()}")
        if damage := find_damage(self.folder / str(step)):
            raise ValueError(f"{self.folder / str(step)} is damaged, choose another --step: {'; '.join(damage)}")
        if average and "average" not in self.manager.item_metadata(step)[STATE].tree:
            raise ValueError(
                f"{self.folder / str(step)} has no moving average: the run has config.train.average_decay=0"
            )
        tree = {"average": like} if average else {"params": {"model": like.params}, "statistics": like.statistics}
        args = ocp.args.PyTreeRestore(
            item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
        )
        with ocp.CheckpointManager(self.folder, item_handlers={STATE: ocp.PyTreeCheckpointHandler()}) as reader:
            tree = reader.restore(step, args=ocp.args.Composite(**{STATE: args}))[STATE]
        return tree["average"] if average else ModelState(tree["params"]["model"], tree["statistics"])


def set_aside_damaged(workdir: Path, best: Callable[[Collection[int]], int | None] = lambda steps: None) -> None:
    """Moves checkpoints that are not as they were written to `damaged/`, until the newest and the best one are sound.

    Args:
        workdir: of a run.
        best: which of some steps is the best one, if any.

    Raises:
        ValueError: none is sound, or an earlier start found that and nothing has been done about it. Or a newer version
            of the code wrote one.
    """
    folder, aside = workdir / "checkpoints", workdir / "damaged"
    steps, sound = {int(path.name) for path in folder.glob("*") if path.name.isdigit()}, set()
    while unknown := {max(steps, default=None), best(steps)} - {None} - sound:
        step = unknown.pop()
        if not (damage := find_damage(folder / str(step))):
            sound.add(step)
            continue
        steps.remove(step)
        aside.mkdir(exist_ok=True)
        place = aside / f"{step}-{len(list(aside.iterdir()))}"
        os.rename(folder / str(step), place)
        print(f"the checkpoint of step {step} is damaged, moved to {place}: {'; '.join(damage)}", flush=True)
    if not steps and aside.exists() and any(aside.iterdir()):
        raise ValueError(
            f"no sound checkpoint is left in {folder}, damaged ones are in {aside}: copy a good one back, or remove "
            f"{aside} to train again from step 0"
        )


def differing_shapes(stored: Any, wanted: Any) -> list[str]:
    """Which leaves two trees of arrays or shapes do not have in common, a sentence each."""
    there, here = shapes_by_path(stored), shapes_by_path(wanted)
    return [
        f"{path}: {there.get(path, 'nothing')} in the checkpoint, {here.get(path, 'nothing')} by the config"
        for path in sorted(there.keys() | here.keys())
        if there.get(path) != here.get(path)
    ]


def shapes_by_path(tree: Any) -> dict[str, str]:
    """params/model/… → "float32[3, 4]" for every leaf that has a shape."""
    leaves = jax.tree.leaves_with_path(tree)
    return {keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def load_model(
    config: RunConfig, checkpoints: Checkpoints, step: int, mesh: Mesh, *, vocab_size: int, average: bool = False
) -> tuple[nnx.GraphDef, ModelState]:
    """The graph of a run's model and its state at a step, or their moving average, laid out on a mesh.

    Raises:
        FileNotFoundError: no such step, or for step 0 no published weights where the config names some.
        ValueError: the checkpoint is damaged, or it has no moving average.
    """
    graphdef, initialise = split_model(config, vocab_size=vocab_size)
    shapes = jax.eval_shape(initialise)
    shardings = ModelState(
        parameter_shardings(shapes.params, mesh), jax.tree.map(lambda _: replicated(mesh), shapes.statistics)
    )
    if step == UNTRAINED:
        weights = prepare_weights(config, shapes.params, vocab_size=vocab_size)
        model = jax.jit(initialise, out_shardings=shardings)()
        return graphdef, model._replace(params=load_weights(weights, model.params))
    return graphdef, checkpoints.restore_model(step, with_shardings(shapes, shardings), average=average)


def as_tree(state: TrainState) -> dict[str, Any]:
    """The state as the plain dictionary that is stored, without a part that the run does not have."""
    parts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: part for name, part in parts.items() if part is not None}
