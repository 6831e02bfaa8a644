"""Orbax checkpoints of a run: asynchronous, the newest few kept, restored onto any mesh."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cope_jax.training.mesh import parameter_shardings, replicated, with_shardings
from cope_jax.training.model import ModelState, split_model
from cope_jax.training.step import TrainState
from cope_jax.training.weights import load_weights, prepare_weights

# The step of the initial parameters, which need no checkpoint: the seed makes them anew, and the published weights that
# the run started from, where there are any.
UNTRAINED = 0


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

    def newest(self) -> int:
        """The newest complete step.

        Raises:
            FileNotFoundError: there is none.
        """
        step = self.latest()
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.folder}: train first, or ask for --step=0")
        return step

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


def load_model(
    config: ConfigDict, checkpoints: Checkpoints, step: int, mesh: Mesh, *, vocab_size: int
) -> tuple[nnx.GraphDef, ModelState]:
    """The graph of a run's model and its state at a step, laid out on a mesh.

    Raises:
        FileNotFoundError: no such step, or for step 0 no published weights where the config names some.
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
    return graphdef, checkpoints.restore_model(step, with_shardings(shapes, shardings))


def as_tree(state: TrainState) -> dict[str, Any]:
    """The state as the plain dictionary that is stored."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
