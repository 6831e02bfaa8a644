"""Reports what a run does: to its logs, to TensorBoard, to Weights & Biases and to the console."""

import operator
import socket
import struct
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cope_jax.data.records import InvalidItems
from cope_jax.runs.checkpoints import Window
from cope_jax.runs.config import RunConfig
from cope_jax.runs.learning_rate import make_schedule
from cope_jax.runs.log_files import EVALUATIONS, LogFile, drop_lines_after, json_line, round_values
from cope_jax.training.objective import Mean
from cope_jax.training.progress import TrainingProgress
from data_prep.common.domains import sort_domains
from data_prep.common.files import atomic_write

HISTOGRAM_BINS = 64  # in TensorBoard
SHOWN_EXAMPLES = 4  # in TensorBoard, of the first batch
# Groups of curves. Other metrics of training are those of losses, which have groups of their own for pairs of views.
GROUPS = {
    "loss": "losses",
    "gradient_norm": "optimization",
    "skipped": "optimization",
    "bad_items": "data",
}


def curve_name(name: str) -> str:
    """Returns the group and name of the curve of a metric: infonce/accuracy/PAIR is pair_accuracy/infonce/PAIR."""
    if name.count("/") == 2:
        term, metric, pair = name.split("/")
        return f"pair_{metric}/{term}/{pair}"
    return f"{GROUPS.get(name, 'losses')}/{name}"


class EventFile:
    """Writes events to TensorBoard. tensorboardX's own writer stops on a full disk and then blocks its callers.

    Methods import tensorboardX, since that imports torch if it is installed, which takes seconds. The step at which the
    run starts or resumes hides later steps of earlier files.
    """

    def __init__(self, folder: Path, *, step: int):
        folder.mkdir(exist_ok=True)
        self.file = LogFile(folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}")
        self.add(step + 1, file_version="brain.Event:2")
        self.add(step + 1, session_log={"status": "START"})

    def add(self, step: int, **fields: Any) -> None:
        """Adds an event, as a TFRecord: length, checksum of the length, content, checksum of the content."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.record_writer import masked_crc32c

        content = Event(step=step, wall_time=time.time(), **fields).SerializeToString()
        parts = (struct.pack("<Q", len(content)), content)
        self.file.append(b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in parts))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds finite numbers by name; of others tensorboardX prints a warning."""
        from tensorboardX.summary import scalar

        summaries = [scalar(name, value) for name, value in values.items()]
        self.add(step, summary={"value": [value for summary in summaries for value in summary.value]})

    def add_image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds a picture, u8[H, W, 3]."""
        from tensorboardX.summary import image

        self.add_named(step, name, image(name, pixels, dataformats="HWC"))

    def add_histogram(self, step: int, name: str, sample: np.ndarray) -> None:
        """Adds the histogram of finite numbers."""
        from tensorboardX.summary import histogram

        self.add_named(step, name, histogram(name, sample, HISTOGRAM_BINS))

    def add_named(self, step: int, name: str, summary: Any) -> None:
        """Adds a summary under its full name, in which tensorboardX has replaced spaces and punctuation."""
        summary.value[0].tag = name
        self.add(step, summary=summary)

    def close(self) -> None:
        """Does nothing: every event is in the file."""


class WandbRun:
    """Writes the same as `EventFile` to a run of Weights & Biases.

    Its id is kept in the work directory, so that a resumed run continues its curves. WANDB_MODE=offline writes to the
    work directory only.
    """

    def __init__(self, project: str, workdir: Path, fields: Mapping[str, Any]):
        """Starts or resumes the run.

        Args:
            project: Name of the project.
            workdir: Work directory of the run, which names it.
            fields: Fields of the config, to show.

        Raises:
            ValueError: The package is not installed, or W&B does not accept the run.
        """
        try:
            import wandb
            from wandb.errors import Error
        except ModuleNotFoundError as error:
            message = "config.train.wandb needs the package wandb: pip install 'cope-jax[wandb]', or ./run.sh train"
            raise ValueError(f"{message} --config.train.wandb=PROJECT") from error
        folder = workdir / "wandb"
        folder.mkdir(exist_ok=True)
        if not (id_file := folder / "id").exists():
            with atomic_write(id_file, "w") as file:
                file.write(uuid.uuid4().hex[:8])
        run_id = id_file.read_text(encoding="utf-8")
        try:
            self.run = wandb.init(
                project=project, dir=workdir, name=workdir.name, config=dict(fields), id=run_id, resume="allow"
            )
        except Error as error:
            raise ValueError(
                f"config.train.wandb={project}: {error}; run `wandb login` or set WANDB_MODE=offline"
            ) from error
        self.run.define_metric("*", step_metric="step")  # W&B's own step cannot go back when a run resumes
        self.wandb = wandb

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by name."""
        self.run.log({"step": step, **values})

    def add_image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds a picture, u8[H, W, 3]."""
        self.run.log({"step": step, name: self.wandb.Image(pixels)})

    def add_histogram(self, step: int, name: str, sample: np.ndarray) -> None:
        """Adds the histogram of finite numbers."""
        self.run.log({"step": step, name: self.wandb.Histogram(np_histogram=np.histogram(sample, HISTOGRAM_BINS))})

    def close(self) -> None:
        """Waits until everything is sent."""
        self.run.finish()


class MetricsLog:
    """The logs of a run: `metrics.jsonl`, `speed.jsonl`, `evaluations.jsonl`, TensorBoard's and, if wanted, W&B's.

    Lines after the step at which the run starts or resumes will be written again and are dropped.
    """

    def __init__(self, workdir: Path, *, step: int, wandb: WandbRun | None = None):
        paths = [workdir / name for name in ("metrics.jsonl", "speed.jsonl", EVALUATIONS)]
        for path in paths:
            drop_lines_after(path, step)
        self.metrics, self.speed, self.evaluations = map(LogFile, paths)
        self.writers = [EventFile(workdir / "tensorboard", step=step), *([wandb] if wandb else [])]

    def write_examples(self, step: int, batch: Mapping[str, Any]) -> None:
        """Adds pictures of the first examples of a batch, as the model sees them, to TensorBoard."""
        entries = sort_domains(name for name, own in batch.items() if isinstance(own, Mapping) and "frames" in own)
        if not entries:  # the encoders are frozen
            return
        for example in range(min(SHOWN_EXAMPLES, len(batch["product_id"]))):
            clips = [np.concatenate(list(batch[domain]["frames"][example]), axis=1) for domain in entries]
            name = f"batch/product {batch['product_id'][example]}: {', '.join(entries)}"
            for writer in self.writers:
                writer.add_image(step, name, np.concatenate(clips, axis=1))

    def write_metrics(
        self, step: int, values: Mapping[str, float], speed: Mapping[str, float], learning_rate: float
    ) -> None:
        """Adds the means of a report window; the speed, which differs between equal runs, has its own file."""
        self.metrics.append(json_line({"step": step, **round_values(values)}))
        if speed:
            self.speed.append(json_line({"step": step, **speed}))
        shown = {curve_name(name): value for name, value in values.items()}
        shown |= {f"speed/{name}": value for name, value in speed.items()}
        self._show(step, shown | {"optimization/learning_rate": learning_rate})

    def write_evaluation(self, step: int, values: Mapping[str, float], samples: Mapping[str, np.ndarray]) -> None:
        """Adds the metrics of an evaluation, and to TensorBoard histograms of samples."""
        self.evaluations.append(json_line({"step": step, **round_values(values)}))
        self._show(step, {f"retrieval/{name}": value for name, value in values.items()})
        for name, sample in samples.items():
            for writer in self.writers:
                writer.add_histogram(step, name, sample[np.isfinite(sample)])

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        """Adds points to curves."""
        finite = {name: value for name, value in values.items() if np.isfinite(value)}
        for writer in self.writers:
            writer.add_scalars(step, finite)

    def sync(self) -> None:
        """Waits until metrics and evaluations are on the disk; raises OSError, naming the file, if they are not."""
        for file in (self.metrics, self.evaluations):
            file.sync()

    def close(self) -> None:
        """Ends what shows the run."""
        for writer in self.writers:
            writer.close()


class Reporter:
    """Collects the metrics of steps and reports them, one step late so that the device never waits.

    `log` is None in all processes but the first, which reports for all. `window` is the open report window of a resumed
    run, from `open_window`.
    """

    def __init__(
        self,
        config: RunConfig,
        log: MetricsLog | None,
        progress: TrainingProgress,
        invalid_items: InvalidItems,
        window: Window,
    ):
        self.log, self.progress, self.invalid_items = log, progress, invalid_items
        self.every, self.last, self.max_skipped = config.train.log_every, config.train.steps, config.train.max_skipped
        self.max_bad_fraction = config.data.max_bad_fraction
        # Computed here: on a device, a step that is running would have to finish first.
        ends = np.minimum(np.arange(self.every, self.last + self.every, self.every), self.last)
        self.rates = np.asarray(make_schedule(config.optimizer, self.last)(ends - 1)) if log else np.zeros(len(ends))
        self.skipped = 0  # steps in a row, up to the last one flushed
        self.window = {name: Mean(np.float32(total), np.float32(count)) for name, (total, count) in window.items()}
        self.late: tuple[int, dict[str, Mean], np.ndarray] | None = None

    def add_examples(self, step: int, batch: Mapping[str, Any]) -> None:
        """Reports what the model is trained with."""
        if self.log is not None:
            self.log.write_examples(step, batch)

    def add(self, step: int, metrics: dict[str, Mean], product_ids: np.ndarray) -> None:
        """Adds the metrics of a step that may still be running, and the products in its batch."""
        self.flush()
        self.late = step, metrics, product_ids

    def flush(self) -> None:
        """Waits for the step added last and reports it.

        Raises ValueError if the last step or too many in a row were skipped, its update is not finite, or too many
        items of a window were unreadable.
        """
        if self.late is None:
            return
        (step, metrics, product_ids), self.late = self.late, None
        metrics = jax.device_get(metrics)
        self.check_skipped(step, metrics, product_ids)
        # The window may have been opened by another version, with other metrics.
        known = {name: mean for name, mean in self.window.items() if name in metrics}
        self.window = metrics | {name: jax.tree.map(operator.add, old, metrics[name]) for name, old in known.items()}
        if self.log is not None:
            self.progress.update(step, metrics["loss"].compute())
        if step % self.every == 0 or step == self.last:
            means = {name: mean.compute() for name, mean in self.window.items()}
            self.window = {}
            if self.log is not None:
                rate = float(self.rates[(step - 1) // self.every])
                self.log.write_metrics(step, means, self.progress.lap(step), rate)
            if means["bad_items"] > self.max_bad_fraction:
                raise ValueError(
                    f"{means['bad_items']:.2%} of the items in the {self.every} steps until {step} were unreadable; "
                    f"config.data.max_bad_fraction allows {self.max_bad_fraction:.2%}. Verify or rebuild the data; the "
                    f"last ones in this process: {'; '.join(self.invalid_items.last) or 'none'}"
                )

    def check_skipped(self, step: int, metrics: Mapping[str, Mean], product_ids: np.ndarray) -> None:
        """Reports a skipped step with its products; raises ValueError for too many in a row, or for the last one."""
        if not metrics["skipped"].compute():
            self.skipped = 0
            return
        self.skipped += 1
        products = ", ".join(map(str, product_ids))
        self.progress.bar.write(f"step {step} skipped: loss or gradients not finite; products in the batch: {products}")
        if self.skipped > self.max_skipped or step == self.last:
            limit = (
                "the last step of a run must not be"
                if step == self.last
                else f"at most {self.max_skipped} in a row may be"
            )
            first = step - self.skipped + 1
            steps = f"step {step} was" if first == step else f"steps {first} to {step} were"
            raise ValueError(
                f"{steps} skipped because loss or gradients were not finite; {limit} (config.train.max_skipped). "
                "Lower config.optimizer.rate or config.optimizer.clip_norm, or check the products printed above, and "
                "run again: it resumes from the last checkpoint before these steps. If it fails again at once, the "
                "parameters in that checkpoint are the cause: remove it, to resume from an earlier one"
            )

    def begin_evaluation(self, step: int) -> None:
        """Reports that an evaluation starts."""
        if self.log is not None:
            self.progress.bar.write(f"step {step}: evaluating")

    def add_evaluation(self, step: int, values: Mapping[str, float], samples: Mapping[str, np.ndarray]) -> None:
        """Reports the results of an evaluation."""
        if self.log is not None:
            self.log.write_evaluation(step, values, samples)
            means = ", ".join(f"{name} {value:.3f}" for name, value in values.items() if "mean" in name)
            self.progress.bar.write(f"step {step} evaluated: {means}")

    def sync(self) -> None:
        """Waits until all reports are on the disk; raises OSError, naming the file, if they are not."""
        if self.log is not None:
            self.log.sync()

    def open_window(self) -> dict[str, tuple[float, float]]:
        """Returns (total, count) of each metric in the report window that is not complete yet."""
        return {name: (float(mean.total), float(mean.count)) for name, mean in self.window.items()}
