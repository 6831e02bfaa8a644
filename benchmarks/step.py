"""Measures the training step, next to PyTorch with the same model and batch.

    python -m benchmarks.step --preset=tiny|base

Ours is the step that training jits, on a batch that is on the device already. The other is `benchmarks.torch_cope`,
eager and with torch.compile, of which the faster one counts. `tiny` is float32 at a size for two CPU cores: each
program has a process of its own, and they take turns. `base` is the authors' size in bfloat16 for a GPU: the processes
run one after another, each with its fastest batch size of --batch_sizes that fits into memory.

The last line is JSON: products per second of each; `ratio_to_torch`; `mfu`, the counted operations of a step relative
to the rate of matrix products measured on the device (by the faster framework); `peak_bytes` of the device (planned by
XLA on a CPU) and `torch_peak_bytes` (of the process on a CPU); `process_bytes`, the peak memory of each process,
including compilers; `compile_seconds`; and the cost of a step on the host: `dispatch_ms`, the call of a program with
the same arguments and results that computes nothing, and `bring_ms`, the transfer of a batch to the device (medians and
minima).
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.measuring import peak_memory, planned_bytes, summarize_ratio, time_call
from configs import default
from cope_jax.parallel.mesh import make_mesh, to_devices
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_validation import resolve_config
from cope_jax.runs.inputs import training_batch_shapes
from cope_jax.training.allocator import mimalloc_environment
from cope_jax.training.plan import make_plan, step_flops
from data_prep.common.domains import DOMAINS

VOCABULARY = 8000
PROGRAMS = ("ours", "torch", "torch_compiled")
TINY = {
    "model.scan_layers": False,  # as in configs/scratch.py
    "data.image_size": 112,
    "data.frames.video": 4,
    "data.frames.live": 4,
    "eval.frames.video": 4,  # determines the number of positions of the model
    "eval.frames.live": 4,
    "model.vision.width": 192,
    "model.vision.depth": 4,
    "model.vision.heads": 3,
    "model.vision.output_width": 192,
    "model.vision.integration_heads": 3,
    "model.text.width": 192,
    "model.text.heads": 3,
}
# Unrolled and without rematerialization: the fastest on a GPU, as far as memory allows.
BASE = {"model.dtype": "bfloat16", "model.scan_layers": False}
PRESETS = {"tiny": (TINY, (8,)), "base": (BASE, (16, 32, 48, 64))}
FLAGS = flags.FLAGS


def make_config(preset: str, batch_size: int) -> RunConfig:
    """Returns the config of a preset."""
    return resolve_config(default.get_config(), PRESETS[preset][0] | {"train.batch_size": batch_size})


def make_batch(config: RunConfig) -> dict[str, Any]:
    """Returns a batch of random items of different products, with texts of all lengths."""
    rng = np.random.default_rng(0)
    batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), training_batch_shapes(config))
    B, L = config.train.batch_size, config.data.text_length
    batch["product_id"][:] = np.arange(B)
    classes = rng.integers(0, max(config.losses.classifier.classes, 1), B)
    if "product_class" in batch:
        batch["product_class"][:] = classes
    for domain in DOMAINS:
        leaf = batch[domain]
        leaf["frames"][:] = rng.integers(0, 256, leaf["frames"].shape, np.uint8)
        leaf["frame_mask"][:] = leaf["present"][:] = True
        words = np.arange(L) < rng.integers(2, L, (B, 1), endpoint=True)
        leaf["text"][:] = rng.integers(1, VOCABULARY, (B, L)) * words
        leaf["products"][:] = -1
        leaf["products"][:, 0] = np.arange(B)
        if "classes" in leaf:
            leaf["classes"][:] = -1
            leaf["classes"][:, 0] = classes
    return batch


class Ours:
    """Our training step, compiled."""

    def __init__(self, config: RunConfig):
        self.config = config
        mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
        run = make_plan(config, mesh, vocab_size=VOCABULARY)
        self.bring = partial(to_devices, make_batch(config), mesh)
        self.batch = self.bring()
        started = time.perf_counter()
        self.step_function = run.step
        self.step = run.step.lower(run.state, self.batch).compile()
        self.compile_seconds = time.perf_counter() - started
        self.state = jax.block_until_ready(jax.jit(run.initial_state)())

    def run(self, steps: int) -> float:
        """Runs some steps and returns their seconds."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, _metrics = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        return time.perf_counter() - start

    def peak_bytes(self) -> int:
        """Returns the most memory that was in use on the device or, on a CPU, that XLA plans."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use") or planned_bytes(self.step)

    def facts(self) -> dict[str, Any]:
        """Returns what is measured after the rounds."""
        return {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.state.params)),
            "compile_seconds": self.compile_seconds,
            "peak_bytes": self.peak_bytes(),
            "process_bytes": peak_memory(),
            "operations": step_flops(self.config, VOCABULARY),
            "dispatch_ms": self.dispatch_ms(),
            "bring_ms": [1e3 * time_call(self.bring) for _ in range(100)],
            "matrix_rate": self.matrix_rate(),
        }

    def dispatch_ms(self) -> list[float]:
        """Returns the times of calls of a program with the arguments and results of the step that computes nothing."""
        _, metrics = jax.eval_shape(self.step_function, self.state, self.batch)

        def nothing(state: Any, batch: Any) -> Any:
            # Not the state itself: it would be returned without running a program on the device.
            return jax.tree.map(lambda leaf: leaf * 1, state), jax.tree.map(jnp.zeros_like, metrics)

        step = jax.jit(nothing, donate_argnums=0, keep_unused=True)
        times = []
        for _ in range(100):
            jax.block_until_ready(self.state)
            start = time.perf_counter()
            self.state, _ = step(self.state, self.batch)
            times.append(1e3 * (time.perf_counter() - start))
        return times

    def matrix_rate(self) -> float:
        """Returns the operations per second in products of large matrices."""
        side = matrix_side(jax.default_backend() != "cpu")
        matrix = jnp.ones((side, side), self.config.model.dtype)
        multiply = jax.jit(lambda a: a @ a)
        return best_rate(lambda: jax.block_until_ready(multiply(matrix)), side)


class Torch:
    """The training step of PyTorch, eager or compiled."""

    def __init__(self, config: RunConfig, *, compiled: bool):
        import torch

        from benchmarks.torch_cope import make_torch_step

        torch.set_num_threads(len(os.sched_getaffinity(0)))  # by default half of them if two share a core
        self.torch, self.config = torch, config
        self.model, self.step = make_torch_step(config, vocab_size=VOCABULARY, compiled=compiled)
        self.device = next(self.model.parameters()).device
        self.batch = jax.tree.map(lambda leaf: torch.from_numpy(leaf).to(self.device), make_batch(config))
        for domain in DOMAINS:
            self.batch[domain]["text"] = self.batch[domain]["text"].long()
        self.compile_seconds = self.run(1)

    def run(self, steps: int) -> float:
        """Runs some steps and returns their seconds."""
        start = time.perf_counter()
        losses = [self.step(self.batch) for _ in range(steps)]
        losses[-1].item()
        return time.perf_counter() - start

    def peak_bytes(self) -> int:
        """Returns the most memory that was allocated on the device or, on a CPU, that the process has held."""
        cuda = self.torch.cuda
        return cuda.max_memory_allocated() if cuda.is_available() else peak_memory()

    def facts(self) -> dict[str, Any]:
        """Returns what is measured after the rounds."""
        from benchmarks.torch_cope import used_parameters

        return {
            "parameters": used_parameters(self.model),
            "compile_seconds": self.compile_seconds,
            "peak_bytes": self.peak_bytes(),
            "process_bytes": peak_memory(),
            "matrix_rate": self.matrix_rate(),
        }

    def matrix_rate(self) -> float:
        """Returns the operations per second in products of large matrices."""
        side = matrix_side(self.device.type != "cpu")
        matrix = self.torch.ones((side, side), dtype=getattr(self.torch, self.config.model.dtype), device=self.device)
        return best_rate(lambda: (matrix @ matrix)[0, 0].item(), side)


def matrix_side(accelerator: bool) -> int:
    """Returns the number of rows of the matrices that measure the rate of a device."""
    return 8192 if accelerator else 2048


def best_rate(multiply: Callable[[], Any], side: int) -> float:
    """Returns the operations per second of the fastest of ten products of square matrices."""
    return 2 * side**3 / min(time_call(multiply) for _ in range(10))


MAKERS: dict[str, Callable[[RunConfig], Any]] = {
    "ours": Ours,
    "torch": partial(Torch, compiled=False),
    "torch_compiled": partial(Torch, compiled=True),
}


def make_fastest(name: str, preset: str, batch_sizes: Sequence[int]) -> Ours | Torch:
    """Returns a program with its fastest batch size of those that fit into memory."""
    rates = {}
    for size in batch_sizes:
        try:
            program = MAKERS[name](make_config(preset, size))
            if len(batch_sizes) == 1:
                return program
            program.run(2)
            rates[size] = 5 * size / program.run(5)
        except RuntimeError as error:  # of JAX or PyTorch
            if not is_out_of_memory(error) or not rates:
                raise
            break
        finally:
            program = None  # frees its memory for the next one
        print(f"{name}, batches of {size}: {rates[size]:.1f} products per second", file=sys.stderr, flush=True)
    return MAKERS[name](make_config(preset, max(rates, key=rates.__getitem__)))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether an error reports that the memory of a device is too small."""
    return any(message in str(error) for message in ("out of memory", "Out of memory", "RESOURCE_EXHAUSTED"))


def serve(name: str) -> None:
    """Runs the steps of a program for each line of input and prints products per second; at the end, its facts."""
    program = make_fastest(name, FLAGS.preset, [int(size) for size in FLAGS.batch_sizes])
    steps, size = FLAGS.steps, program.config.train.batch_size
    program.run(steps)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(steps * size / program.run(steps), flush=True)
    print(json.dumps(program.facts() | {"batch_size": size}))


class ServedProgram:
    """A program in a process of its own."""

    def __init__(self, name: str):
        command = [sys.executable, "-m", "benchmarks.step", f"--way={name}", f"--preset={FLAGS.preset}"]
        command += [f"--steps={FLAGS.steps}", f"--batch_sizes={','.join(FLAGS.batch_sizes)}"]
        # Without caches: otherwise a second run would measure no time for compilation.
        fresh = {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        environment = os.environ | mimalloc_environment() | fresh | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self.started = self.output.readline().strip() == "ready"

    def rate(self) -> float:
        """Runs some steps and returns products per second."""
        self.input.write("\n")
        self.input.flush()
        return float(self.output.readline())

    def facts(self) -> dict[str, Any]:
        """Ends the program and returns its facts."""
        output, _ = self.process.communicate()
        return json.loads(output.splitlines()[-1])


def take_turns(names: Sequence[str]) -> tuple[dict[str, list[float]], dict[str, dict[str, Any]]]:
    """Measures programs in turn and returns their rates and facts; torch.compile may fail to start."""
    programs = {name: ServedProgram(name) for name in names}
    programs = {name: program for name, program in programs.items() if program.started or name != "torch_compiled"}
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(FLAGS.rounds):
        for name, program in programs.items():
            rates[name].append(program.rate())
        print(", ".join(f"{name} {own[-1]:.2f}" for name, own in rates.items()), "products per second", flush=True)
    return rates, {name: program.facts() for name, program in programs.items()}


def compare() -> dict[str, Any]:
    """Measures all programs and returns the result."""
    rates, facts = {}, {}
    for names in [PROGRAMS] if FLAGS.preset == "tiny" else [[name] for name in PROGRAMS]:
        some_rates, some_facts = take_turns(names)
        rates |= some_rates
        facts |= some_facts
    ours, torch = facts["ours"], max((name for name in rates if name != "ours"), key=lambda name: median(rates[name]))
    assert abs(ours["parameters"] / facts[torch]["parameters"] - 1) < 0.001, f"not the same model: {facts}"
    matrix_rate = max(own["matrix_rate"] for own in facts.values())
    rate = ours["operations"] * median(rates["ours"]) / ours["batch_size"]
    return {
        "preset": FLAGS.preset,
        **{f"{name}_products_per_s": round(median(own), 2) for name, own in rates.items()},
        **summarize_ratio("ratio_to_torch", rates["ours"], rates[torch]),
        "faster_torch": torch,
        "mfu": round(rate / matrix_rate, 3),
        "matrix_tflops": {name: round(own["matrix_rate"] / 1e12, 3) for name, own in facts.items()},
        "operations_per_product": ours["operations"] / ours["batch_size"],
        "batch_size": {name: own["batch_size"] for name, own in facts.items()},
        "peak_bytes": ours["peak_bytes"],
        "torch_peak_bytes": facts[torch]["peak_bytes"],
        "process_bytes": {name: own["process_bytes"] for name, own in facts.items()},
        "compile_seconds": {name: round(own["compile_seconds"], 1) for name, own in facts.items()},
        **{name: round(median(ours[name]), 3) for name in ("dispatch_ms", "bring_ms")},
        **{f"{name}_least": round(min(ours[name]), 3) for name in ("dispatch_ms", "bring_ms")},
        "parameters": ours["parameters"],
    }


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_enum("preset", "tiny", list(PRESETS), "Size of the model.")
    flags.DEFINE_bool("quick", False, "Use few rounds and steps.")
    flags.DEFINE_integer("rounds", None, "Number of measurements; default: 5, quick: 3.", lower_bound=1)
    flags.DEFINE_integer("steps", None, "Steps per measurement; default: 10, quick: 2.", lower_bound=1)
    flags.DEFINE_list("batch_sizes", None, "Batch sizes to choose from; default: the preset's.")
    flags.DEFINE_enum("way", None, PROGRAMS, "Serve only this program, in this process.")


def main(_: list[str]) -> None:
    """Measures and prints the result."""
    FLAGS.rounds = FLAGS.rounds or (3 if FLAGS.quick else 5)
    FLAGS.steps = FLAGS.steps or (2 if FLAGS.quick else 10)
    FLAGS.batch_sizes = FLAGS.batch_sizes or [str(size) for size in PRESETS[FLAGS.preset][1]]
    if FLAGS.way:
        serve(FLAGS.way)
    else:
        print(json.dumps(compare()))


if __name__ == "__main__":
    define_flags()
    app.run(main)
