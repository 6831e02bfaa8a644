"""State of a run, and its Orbax checkpoints: saved in the background, validated, and restored onto any mesh."""

import dataclasses
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import struct
from jax.experimental import multihost_utils
from jax.tree_util import keystr
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers
from tqdm import tqdm

from cope_jax.parallel.processes import processes_failing
from cope_jax.runs.manifest import find_problems, write_manifest
from data_prep.common.differences import describe_differences
from data_prep.common.files import plain_links

UNTRAINED = 0  # step of the initial parameters, which have no checkpoint: seed and published weights determine them
# Parts of a checkpoint: the training state, the open report window, and the order of products of hard batches (JSON).
STATE, WINDOW, GROUPS = "state", "window", "groups"
UNFINISHED = ".orbax-checkpoint-tmp*"  # follows the step in names of unfinished checkpoints
SAVE_SECONDS = 600  # time limit of a save; processes also wait that long for one whose part failed
# Errors of a full or failing disk, which tensorstore reports as ValueError, and of another process whose part failed.
FAILURES = (OSError, ValueError, jax.errors.JaxRuntimeError)

Window = Mapping[str, tuple[float, float]]  # metric → (total, count)


class ModelState(NamedTuple):
    """Values of a model."""

    params: PyTree  # tree of float32 arrays that the optimizer changes
    statistics: PyTree  # tree of float32 arrays that training batches change; empty if no layer keeps any


class TrainState(struct.PyTreeNode):
    """All that changes during training, and all that a checkpoint contains."""

    step: jax.Array  # int32[], steps taken; together with the seed, it determines the next batch and random draws
    params: PyTree  # {"model": …, "loss": …}, trees of float32 arrays
    statistics: PyTree  # running statistics of the model
    opt_state: PyTree  # state of the optax optimizer
    average: ModelState | None = None  # moving average of the model over the steps, if the config asks for one
    teacher: ModelState | None = None  # initial model, for distillation; likewise

    @property
    def model(self) -> ModelState:
        """Values of the model."""
        return ModelState(self.params["model"], self.statistics)


class ProductOrder(NamedTuple):
    """Order of the products of hard batches, see `cope_jax.data.groups`."""

    order: np.ndarray  # int32[P]
    data: str  # fingerprint of their data; "" if an earlier version saved the order


class SavedStep(NamedTuple):
    """A step whose checkpoint is complete, and when the step was finished (monotonic seconds)."""

    step: int
    time: float

    def __str__(self) -> str:
        return f"{self.step}, {tqdm.format_interval(time.monotonic() - self.time)} ago"


class Checkpoints:
    """The folder `checkpoints/` of a work directory.

    Use it as a context manager; leaving it waits for the pending save. A save goes to a temporary folder, gets its
    manifest and is renamed, so a killed process leaves no incomplete checkpoint that looks complete.

    Attributes:
        pending: The save in progress, or the last one if its result is not known yet.
        complete: The last save known to be complete, or the checkpoint the run resumed from.
        failed: Whether the last save failed.
    """

    def __init__(self, workdir: Path, *, keep: int | None = None):
        """Opens the folder to keep that many of the newest checkpoints; with None, for reading only."""
        self.folder = workdir.absolute() / "checkpoints"
        self._links = ExitStack()
        self._plain_folder = self._links.enter_context(_plain_name(self.folder))
        self.pending: SavedStep | None = None
        self.complete: SavedStep | None = None
        self.failed = False
        if keep is not None and jax.process_index() == 0:
            self._remove_unfinished()
        self._policies = [checkpoint_managers.LatestN(keep), checkpoint_managers.CustomSteps(())]
        self.manager = ocp.CheckpointManager(
            self._plain_folder,
            item_handlers={
                STATE: ocp.StandardCheckpointHandler(),
                WINDOW: ocp.JsonCheckpointHandler(),
                GROUPS: ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(self._policies),
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal, timeout_secs=SAVE_SECONDS),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()
        with suppress(*FAILURES):  # further errors of a failed save, which is already reported
            self.manager.close()
        self._links.close()

    def preserve(self, step: int | None) -> None:
        """Keeps the checkpoint of a step, or of none, in addition to the newest ones from the next save on."""
        self._policies[1] = checkpoint_managers.CustomSteps(() if step is None else (step,))

    def latest(self) -> int | None:
        """Returns the newest complete step, or None."""
        return self.manager.latest_step()

    def agreed_latest(self) -> int | None:
        """Returns the newest complete step that process 0 sees, or None. All processes must call this.

        Raises:
            ValueError: Some processes do not see that step.
        """
        if jax.process_count() > 1:
            newest = int(multihost_utils.broadcast_one_to_all(np.int32(self.latest() or UNTRAINED)))

            def visible() -> bool:
                self.manager.reload()
                return (self.latest() or UNTRAINED) == newest

            if blind := processes_failing(visible):
                raise ValueError(
                    f"process {blind} of {jax.process_count()} does not see that {newest} is the newest step in "
                    f"{self.folder}: --workdir must be on storage that shows changes to all hosts within seconds"
                )
        return self.latest()

    def newest(self) -> int:
        """Returns the newest complete step; raises FileNotFoundError if there is none."""
        step = self.latest()
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.folder}: train first, or use --step=0")
        return step

    def steps(self) -> list[int]:
        """Returns all complete steps, oldest first."""
        return sorted(self.manager.all_steps())

    @property
    def saved(self) -> SavedStep | None:
        """The checkpoint that would remain if the process were killed now; None if this start has not seen any."""
        if self.pending and os.path.exists(self.folder / str(self.pending.step)):
            self.complete = self.pending
        return self.complete

    def save(
        self,
        step: int,
        state: TrainState,
        window: Window,
        sync_log: Callable[[], None] = lambda: None,
        order: ProductOrder | None = None,
    ) -> None:
        """Saves in the background; returns when the arrays are copied to the host.

        If a save fails, for example because the disk is full, the next save or the end of the context reports it; the
        run continues and earlier checkpoints remain.

        Args:
            sync_log: Waits until the log up to the step is on disk, since a resumed run does not write it again.
                Raises OSError if the disk does not accept it; then the save fails.
            order: Order of the products of hard batches.
        """
        self.wait()
        with suppress(*FAILURES):  # a failed save may leave several errors, each of which would fail a later save
            self.manager.check_for_errors()
        self.pending, self.failed, self.sync_log = SavedStep(step, time.monotonic()), False, sync_log
        items = {STATE: ocp.args.StandardSave(_as_dict(state)), WINDOW: ocp.args.JsonSave(dict(window))}
        if order is not None:
            items[GROUPS] = ocp.args.JsonSave({"order": order.order.tolist(), "data": order.data})
        try:
            self.manager.save(step, args=ocp.args.Composite(**items))
        except FAILURES as error:
            self._report_failure(step, error)

    def wait(self) -> bool:
        """Waits for the pending save. Returns False if the last save failed."""
        try:
            self.manager.wait_until_finished()
        except FAILURES as error:
            self._report_failure(self.pending.step if self.pending else UNTRAINED, error)
        else:
            self.complete, self.pending = self.pending or self.complete, None
        return not self.failed

    def _report_failure(self, step: int, error: Exception) -> None:
        """Prints the error of a failed save and frees the space it used."""
        print(f"\nsaving step {step} in {self.folder} failed: {error}", file=sys.stderr, flush=True)
        self.pending, self.failed = None, True
        with suppress(*FAILURES):  # of the same disk
            self.manager.reload()  # it no longer lists the checkpoint that the failed one was to replace
            if jax.process_index() == 0:
                self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        """Removes the remains of killed or failed saves, if the disk permits; a later save of the step may, too."""
        for unfinished in self.folder.glob(f"*{UNFINISHED}"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def _seal(self) -> None:
        """Writes the manifest of the pending save, which Orbax then commits.

        Raises OSError if the save has failed, for example for its metadata, before its arrays were written.
        """
        if jax.process_index() == 0:
            if self.pending is None:
                raise OSError("the save has failed already")
            self.sync_log()
            (unfinished,) = self.folder.glob(f"{self.pending.step}{UNFINISHED}")
            write_manifest(unfinished)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, Window]:
        """Returns the state of a step, with the layout of `like` (arrays or shapes with shardings), and the window.

        Raises:
            ValueError: The checkpoint contains other parameters. Lists them.
        """
        wanted = _as_dict(like)
        self._check_layout(step, wanted, "")
        items = {STATE: ocp.args.StandardRestore(wanted), WINDOW: ocp.args.JsonRestore()}
        restored = self.manager.restore(step, args=ocp.args.Composite(**items))
        age = time.time() - (self.folder / str(step)).stat().st_mtime
        self.complete = SavedStep(step, time.monotonic() - age)
        return TrainState(**restored[STATE]), {name: tuple(pair) for name, pair in restored[WINDOW].items()}

    def read_order(self, step: int) -> ProductOrder | None:
        """Returns the order of the products of hard batches that a step was saved with, or None."""
        if not (self.folder / str(step) / GROUPS).exists():
            return None
        restored = self.manager.restore(step, args=ocp.args.Composite(**{GROUPS: ocp.args.JsonRestore()}))
        return ProductOrder(np.array(restored[GROUPS]["order"], np.int32), restored[GROUPS].get("data", ""))

    def shapes(self, step: int) -> dict[str, str]:
        """Returns dtypes and shapes in a checkpoint: "float32[3, 4]" for each leaf "params/model/…"."""
        return shapes_by_path(self.manager.item_metadata(step)[STATE].tree)

    def empty_parts(self, step: int) -> list[str]:
        """Returns the paths of the parts of a checkpoint that contain nothing."""
        tree = self.manager.item_metadata(step)[STATE].tree
        leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda part: part is None)
        return [keystr(path, simple=True, separator="/") for path, leaf in leaves if leaf is None]

    def _check_layout(self, step: int, wanted: PyTree, *parts: str) -> None:
        """Raises ValueError listing the differences if parts of a checkpoint, by the start of a path, differ."""
        stored = {path: shape for path, shape in self.shapes(step).items() if path.startswith(parts)}
        labels = ("in the checkpoint", "by the config")
        if differences := describe_differences(stored, shapes_by_path(wanted), labels=labels, show=str):
            reason = "is of another model or optimizer than the config"
            if all(difference.startswith("opt_state/") for difference in differences):
                reason = (
                    "has moments of other parameters than the config; when a run resumes, config.optimizer.groups must "
                    "freeze the same parameters (factor 0) as before"
                )
            listed = "\n".join(f"  {difference}" for difference in differences)
            raise ValueError(f"the checkpoint of step {step} in {self.folder} {reason}:\n{listed}")

    def restore_model(self, step: int, like: ModelState, *, average: bool = False, partial: bool = False) -> ModelState:
        """Returns the model of a step, or its moving average, with the layout of `like`.

        With `partial`, the checkpoint may have more parts than `like`, such as other encoders.

        Raises:
            FileNotFoundError: There is no such step. Lists the steps there are.
            ValueError: The checkpoint is invalid, is of another model, or has no moving average.
        """
        folder = self.folder / str(step)
        if step not in self.steps():
            raise FileNotFoundError(f"no checkpoint of step {step} in {self.folder}; there are {self.steps()}")
        if problems := find_problems(folder):
            raise ValueError(f"{folder} is invalid, choose another --step: {'; '.join(problems)}")
        if average and "average" not in self.manager.item_metadata(step)[STATE].tree:
            raise ValueError(f"{folder} has no moving average: the run has config.train.average_decay=0")
        tree: Any = {"average": like} if average else {"params": {"model": like.params}, "statistics": like.statistics}
        tree = {name: part for name, part in tree.items() if jax.tree.leaves(part)}
        wanted = {f"params/model/{part}": own for part, own in like.params.items()}
        wanted |= {f"statistics/{part}": own for part, own in like.statistics.items()}
        parts = [f"{path}/" if isinstance(own, dict) else path for path, own in wanted.items()]
        if not partial:
            parts = ["average/"] if average else ["params/model/", "statistics/"]
        self._check_layout(step, tree, *parts)
        args = ocp.args.PyTreeRestore(
            item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
        )
        with ocp.CheckpointManager(self._plain_folder, item_handlers={STATE: ocp.PyTreeCheckpointHandler()}) as reader:
            tree = reader.restore(step, args=ocp.args.Composite(**{STATE: args}))[STATE]
        return tree["average"] if average else ModelState(tree["params"]["model"], tree.get("statistics", {}))


@contextmanager
def _plain_name(folder: Path) -> Iterator[Path]:
    """Gives a name of the folder in which Orbax, TensorStore and epath see no pattern, URL or other separator."""
    if os.fspath(epath.Path(folder)) == str(folder) and not re.search(r"[][*?\\:]", str(folder)):
        yield folder
        return
    if jax.process_count() > 1:  # which must use the same name
        raise ValueError(
            f"several processes cannot save to {folder}; choose a folder without any of []*?\\:, or a link"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with plain_links() as link:
        yield Path(link(folder))


def set_aside_invalid(workdir: Path, best: Callable[[Collection[int]], int | None] = lambda steps: None) -> None:
    """Moves invalid checkpoints to `damaged/` until the newest and the best one are valid.

    Args:
        best: Returns the best one of some steps, or None.

    Raises:
        ValueError: No valid checkpoint is left, now or since an earlier start, or a newer version wrote one.
    """
    folder, aside = workdir / "checkpoints", workdir / "damaged"
    steps, valid = {int(path.name) for path in folder.glob("*") if path.name.isdigit()}, set()
    while unknown := {step for step in (max(steps, default=None), best(steps)) if step is not None} - valid:
        step = unknown.pop()
        if not (problems := find_problems(folder / str(step))):
            valid.add(step)
            continue
        steps.remove(step)
        aside.mkdir(exist_ok=True)
        target = aside / f"{step}-{len(list(aside.iterdir()))}"
        os.rename(folder / str(step), target)
        print(f"the checkpoint of step {step} is invalid, moved to {target}: {'; '.join(problems)}", flush=True)
    if not steps and aside.exists() and any(aside.iterdir()):
        raise ValueError(
            f"no valid checkpoint is left in {folder}; invalid ones are in {aside}: copy a valid one back, or remove "
            f"{aside} to train again from step 0"
        )


def shapes_by_path(tree: PyTree) -> dict[str, str]:
    """Returns "float32[3, 4]" for each leaf "params/model/…"."""
    leaves = jax.tree.leaves_with_path(tree)
    return {keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _as_dict(state: TrainState) -> dict[str, PyTree]:
    """Returns the parts of a state that the run has, as they are stored."""
    parts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: part for name, part in parts.items() if part is not None}
