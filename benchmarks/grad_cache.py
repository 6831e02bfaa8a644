"""Measures memory and time of gradient caching: `python -m benchmarks.grad_cache`.

Compares a training step on 1, 4 and 16 micro-batches of 8 products with the plain step on one micro-batch (memory) and
on the whole batch (time). Peak memory is what XLA plans for one device: state, batch and temporaries. The last line is
JSON: for each ratio of batch to micro-batch the bytes, the median seconds of steps taken in turn, the bytes relative to
the step on one micro-batch, and the time relative to the plain step on the same batch.
"""

import json
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from benchmarks.measuring import planned_bytes, summarize_ratio, time_call
from configs import default
from cope_jax.parallel.mesh import make_mesh, to_devices
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_validation import resolve_config
from cope_jax.runs.inputs import training_batch_shapes
from cope_jax.training.plan import Plan, make_plan

MICROBATCH, VOCABULARY = 8, 1000

FLAGS = flags.FLAGS


def make_config(batch_size: int, microbatch: int) -> RunConfig:
    """Returns the config of a small X-CLIP and BERT with four frames per clip."""
    return resolve_config(
        default.get_config(),
        {
            "data.image_size": 64,
            "data.frames.video": 4,
            "data.frames.live": 4,
            "model.vision.width": 256,
            "model.vision.depth": 4,
            "model.vision.heads": 4,
            "model.vision.output_width": 256,
            "model.text.width": 256,
            "model.text.heads": 4,
            "train.batch_size": batch_size,
            "train.microbatch": microbatch,
        },
    )


class Step(NamedTuple):
    """A compiled training step with its arguments."""

    program: Any
    run: Plan
    batch: Any

    def seconds(self) -> float:
        """Returns the time of one step from the initial state."""
        state = jax.block_until_ready(jax.jit(self.run.initial_state)())
        return time_call(lambda: jax.block_until_ready(self.program(state, self.batch)))


def make_step(batch_size: int, microbatch: int) -> Step:
    """Compiles the step for a batch size; with microbatch 0, the plain step."""
    config = make_config(batch_size, microbatch)
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    run, shapes = make_plan(config, mesh, vocab_size=VOCABULARY), training_batch_shapes(config)
    program = run.step.lower(run.state, shapes).compile()
    rng = np.random.default_rng(0)
    batch = jax.tree.map(lambda leaf: rng.integers(0, 2, leaf.shape).astype(leaf.dtype), shapes)
    return Step(program, run, to_devices(batch, mesh))


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_integer("rounds", 5, "Number of measurements of each step.", lower_bound=1)
    flags.DEFINE_list("ratios", ["1", "4", "16"], "Batch sizes to measure, in micro-batches.")


def main(_: list[str]) -> None:
    """Measures and prints the result."""
    single = make_step(MICROBATCH, 0)
    steps = {
        times: (make_step(MICROBATCH * times, MICROBATCH), make_step(MICROBATCH * times, 0))
        for times in map(int, FLAGS.ratios)
    }
    rows = []
    for times, (cached, plain) in steps.items():
        pairs = [(cached.seconds(), plain.seconds()) for _ in range(FLAGS.rounds + 1)][1:]  # the first is a warm-up
        rows.append(
            {
                "ratio": times,
                "cached_bytes": planned_bytes(cached.program),
                "plain_bytes": planned_bytes(plain.program),
                "cached_over_microbatch_bytes": round(planned_bytes(cached.program) / planned_bytes(single.program), 3),
                "cached_seconds": round(median(seconds for seconds, _ in pairs), 3),
                "plain_seconds": round(median(seconds for _, seconds in pairs), 3),
                **summarize_ratio("cached_over_plain_time", *zip(*pairs, strict=True)),
            }
        )
        print(rows[-1], flush=True)
    print(json.dumps({"microbatch_bytes": planned_bytes(single.program), "table": rows}))


if __name__ == "__main__":
    define_flags()
    app.run(main)
