"""Orbax checkpoints of a run: asynchronous, the newest few kept, restored onto any mesh."""

import dataclasses
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from cope_jax.training.model import ModelState
from cope_jax.training.step import TrainState


class Checkpoints:
    """The folder `checkpoints/` of a work directory.

    A context manager: leaving it waits for the saves under way. A save is written beside and renamed when whole, so a
    killed process leaves no half checkpoint that passes for one.
    """

    def __init__(self, workdir: Path, *, keep: int | None = None):
        """Opens the folder; `keep` newest checkpoints stay, None keeps all (to read)."""
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self.folder = workdir.absolute() / "checkpoints"
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.manager.close()

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self.manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Saves in the background; returns when the arrays are copied to the host."""
        self.manager.save(step, args=ocp.args.StandardSave(as_tree(state)))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, laid out as `like` (arrays or shapes with shardings)."""
        tree = self.manager.restore(step, args=ocp.args.StandardRestore(as_tree(like)))
        return TrainState(**tree)

    def restore_model(self, step: int, like: ModelState) -> ModelState:
        """The model alone, laid out as `like`: what evaluation needs.

        Raises:
            FileNotFoundError: no such step; lists those there are.
        """
        if step not in self.manager.all_steps():
            raise FileNotFoundError(
                f"no checkpoint of step {step} in {self.folder}; there are {self.manager.all_steps()}"
            )
        tree = {"params": {"model": like.params}, "statistics": like.statistics}
        args = ocp.args.PyTreeRestore(
            item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
        )
        with ocp.CheckpointManager(self.folder, item_handlers=ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.restore(step, args=args)
        return ModelState(tree["params"]["model"], tree["statistics"])


def as_tree(state: TrainState) -> dict[str, Any]:
    """The state as the plain dictionary that is stored."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
