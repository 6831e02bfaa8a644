"""Evaluations during and at the end of training."""

from collections.abc import Callable, Collection
from itertools import count
from pathlib import Path

import jax

from cope_jax.evaluation.evaluate_run import evaluate
from cope_jax.evaluation.probe import Probe, ProbeResult
from cope_jax.runs.checkpoints import Checkpoints, TrainState
from cope_jax.runs.config import AVERAGE_PREFIX, RunConfig
from cope_jax.runs.log_files import EVALUATIONS, read_json_lines, round_values
from cope_jax.training.signals import Stopped, StopSignal
from cope_jax.training.watchdog import Watchdog


class Evaluations:
    """Results of the evaluations during training up to a step, also of earlier starts of the run.

    A run that resumes from a step whose evaluation is due but not in `evaluations.jsonl` evaluates it first, so the
    file does not depend on interruptions.
    """

    def __init__(self, config: RunConfig, workdir: Path, *, step: int):
        train = config.train
        self.every, self.last, self.best_by = train.evaluate_every, train.steps, train.best_by
        lines = read_json_lines(workdir / EVALUATIONS)
        self.results = {line["step"]: line for line in lines if line["step"] <= step}

    def due(self, step: int) -> bool:
        """Returns whether the model of a step must be evaluated and has not been."""
        scheduled = bool(self.every and step) and (step % self.every == 0 or step == self.last)
        return scheduled and step not in self.results

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the metrics of a step, with as many digits as the file has."""
        self.results[step] = round_values(metrics)

    def best(self, among: Collection[int]) -> int | None:
        """Returns the step with the highest config.train.best_by, the newest of equals; None if none has a value."""
        steps = [step for step in among if self.best_by in self.results.get(step, ())]
        return max(steps, key=lambda step: (self.results[step][self.best_by], step), default=None)


def evaluate_state(state: TrainState, probe: Probe, on_batch: Callable[[], None]) -> ProbeResult:
    """Evaluates a state's model; the metrics of its moving average, if any, have a prefix."""
    found = probe(state.model, on_batch)
    if state.average is None:
        return found
    average = {AVERAGE_PREFIX + name: value for name, value in probe(state.average, on_batch).metrics.items()}
    return found._replace(metrics=found.metrics | average)


def evaluate_in_full(config: RunConfig, workdir: Path, stop: StopSignal, watchdog: Watchdog) -> None:
    """Evaluates the last and the best step, and their moving averages, on the whole evaluation split.

    Raises Stopped after a signal. Finished evaluations are kept.
    """
    with Checkpoints(workdir) as checkpoints:
        # A finished run may be started again with fewer steps.
        last = watchdog.finished = max(config.train.steps, checkpoints.newest())
        best = Evaluations(config, workdir, step=last).best(checkpoints.steps())
    # Batches continue the count of steps, so that all processes stop after the same one.
    batches = count(last + 1)

    def on_batch() -> None:
        watchdog.reset(f"the evaluation of all of {name}")
        if stop.agreed(next(batches)):
            raise Stopped(last, last, saved=last)

    for step in sorted({last} if best is None else {last, best}):
        for average in (False, True) if config.train.average_decay else (False,):
            name = f"the moving average of step {step}" if average else f"step {step}"
            watchdog.reset(f"the evaluation of all of {name}")
            metrics = evaluate(workdir, step=step, average=average, reuse=True, on_batch=on_batch).metrics
            if jax.process_index() == 0:
                means, empty = metrics["retrieval_mean"], metrics["empty"]["retrieval"]
                result = f"mean R@1 {means['mean_r1']:.3f}" if means else f"no results: {'; '.join(empty.values())}"
                print(f"{name}, all items: {result}")
