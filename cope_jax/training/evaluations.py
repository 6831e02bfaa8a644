"""The evaluations of a run while it trains: when they are due, what they found, and which step was the best."""

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from cope_jax.evaluation.probe import Probe
from cope_jax.runs.config import AVERAGE_PREFIX, RunConfig
from cope_jax.runs.log_files import EVALUATIONS, read_json_lines, round_values
from cope_jax.runs.model import ModelState
from cope_jax.runs.state import TrainState


class Evaluations:
    """Keeps what was found at each step, of this start and of those before.

    A killed run that goes on from a step whose evaluation is due but not in `evaluations.jsonl` makes it first. So the
    file does not tell how often a run was killed.
    """

    def __init__(self, config: RunConfig, workdir: Path, *, step: int):
        """Takes up what is known of the steps until `step`."""
        train = config.train
        self.every, self.last, self.best_by = train.evaluate_every, train.steps, train.best_by
        lines = read_json_lines(workdir / EVALUATIONS)
        self.found = {line["step"]: line for line in lines if line["step"] <= step}

    def due(self, step: int) -> bool:
        """Whether the model of a step is to be evaluated, and was not yet."""
        scheduled = bool(self.every and step) and (step % self.every == 0 or step == self.last)
        return scheduled and step not in self.found

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Takes note of what was found at a step, with as many digits as the file has."""
        self.found[step] = round_values(metrics)

    def best(self, among: Collection[int]) -> int | None:
        """The step with the highest config.train.best_by, the newest of equals; None where none of these has one."""
        steps = [step for step in among if self.best_by in self.found.get(step, ())]
        return max(steps, key=lambda step: (self.found[step][self.best_by], step), default=None)


def look_at(
    state: TrainState, probe: Probe, between: Callable[[], None]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics of a state's model, and with "average_" in front those of its moving average; samples of the model.

    Args:
        between: called behind each batch.
    """
    result = probe(ModelState(state.params["model"], state.statistics), between)
    if state.average is None:
        return result.metrics, result.samples
    average = probe(state.average, between).metrics
    return result.metrics | {AVERAGE_PREFIX + name: value for name, value in average.items()}, result.samples
