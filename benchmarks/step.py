"""The training step beside a PyTorch of the same model and batch: `python -m benchmarks.step --preset=tiny|base`.

Ours is the step that training jits, on a batch that lies on the device already; the other is `benchmarks.torch_cope`,
eager and by torch.compile, of which the faster counts. `tiny` is float32 at a size that two CPU cores can do, each
program in a process of its own and all taking turns; `base` is the authors' size in bfloat16 for a GPU, one process
after another, each with the batch of --batch_sizes by which it is fastest of those that fit its memory.

The last line is JSON: products a second of each, `ratio_to_torch` (the median of the rounds' ratios, with its spread);
`mfu`, the counted operations of a step over what the device does in products of matrices, as measured here by the
faster of both; `peak_bytes` of the device, on a CPU as XLA plans it, and torch's (of its process, on a CPU);
`process_bytes`, the most that the process of each held, compilers included; `compile_seconds`; and what a step costs
the host: `dispatch_ms`, the call of a program of the same arguments and results that computes nothing, and `bring_ms`,
the bringing of a batch to the device (medians, and the least of each).
"""

import json
import os
import resource
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

from benchmarks.ratios import ratio
from configs import default
from cope_jax.domains import DOMAINS
from cope_jax.parallel.mesh import make_mesh, to_devices
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_validation import resolve_config
from cope_jax.runs.inputs import training_batch_shapes
from cope_jax.training.plan import plan, step_operations
from cope_jax.training.supervision.allocator import mimalloc_environment

VOCABULARY = 8000
WAYS = ("ours", "torch", "torch_compiled")
TINY = {
    "model.scan_layers": False,  # as in configs/scratch.py
    "data.image_size": 112,
    "data.frames.video": 4,
    "data.frames.live": 4,
    "eval.frames.video": 4,  # the positions that the model has
    "eval.frames.live": 4,
    "model.vision.width": 192,
    "model.vision.depth": 4,
    "model.vision.heads": 3,
    "model.vision.output_width": 192,
    "model.vision.integration_heads": 3,
    "model.text.width": 192,
    "model.text.heads": 3,
}
PRESETS = {"tiny": (TINY, (8,)), "base": ({"model.dtype": "bfloat16"}, (32, 64, 128, 256))}
FLAGS = flags.FLAGS


def make_config(preset: str, batch_size: int) -> RunConfig:
    """The config of a preset."""
    return resolve_config(default.get_config(), PRESETS[preset][0] | {"train.batch_size": batch_size})


def make_batch(config: RunConfig) -> dict[str, Any]:
    """Random items with texts of all lengths, each of a product of its own."""
    rng = np.random.default_rng(0)
    batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), training_batch_shapes(config))
    B, L = config.train.batch_size, config.data.text_length
    batch["product_id"][:] = np.arange(B)
    for domain in DOMAINS:
        leaf = batch[domain]
        leaf["frames"][:] = rng.integers(0, 256, leaf["frames"].shape, np.uint8)
        leaf["frame_mask"][:] = leaf["present"][:] = True
        words = np.arange(L) < rng.integers(2, L, (B, 1), endpoint=True)
        leaf["text"][:] = rng.integers(1, VOCABULARY, (B, L)) * words
        leaf["products"][:] = -1
        leaf["products"][:, 0] = np.arange(B)
    return batch


class Ours:
    """The project's step, compiled."""

    def __init__(self, config: RunConfig):
        self.config = config
        mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
        run = plan(config, mesh, vocab_size=VOCABULARY)
        self.bring = partial(to_devices, make_batch(config), mesh)
        self.batch = self.bring()
        started = time.perf_counter()
        self.step_function = run.step
        self.step = run.step.lower(run.state, self.batch).compile()
        self.compile_seconds = time.perf_counter() - started
        self.state = jax.block_until_ready(jax.jit(run.initial_state)())

    def run(self, steps: int) -> float:
        """Seconds of some steps."""
        started = time.perf_counter()
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - started

    def facts(self) -> dict[str, Any]:
        """What is known once it has run."""
        memory = self.step.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        on_device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.state.params)),
            "compile_seconds": self.compile_seconds,
            "peak_bytes": on_device or held + memory.temp_size_in_bytes,
            "process_bytes": process_bytes(),
            "operations": step_operations(self.config, VOCABULARY),
            "dispatch_ms": self.dispatch_ms(),
            "bring_ms": [1e3 * timed(self.bring) for _ in range(100)],
            "matrix_rate": self.matrix_rate(),
        }

    def dispatch_ms(self) -> list[float]:
        """Until a program with a step's arguments and results has been called, again and again."""
        _, metrics = jax.eval_shape(self.step_function, self.state, self.batch)

        def nothing(state: Any, batch: Any) -> Any:
            # Not the state itself, which would be handed back without a call of the device.
            return jax.tree.map(lambda leaf: leaf * 1, state), jax.tree.map(jnp.zeros_like, metrics)

        step = jax.jit(nothing, donate_argnums=0, keep_unused=True)
        times = []
        for _ in range(100):
            jax.block_until_ready(self.state)
            started = time.perf_counter()
            self.state, _ = step(self.state, self.batch)
            times.append(1e3 * (time.perf_counter() - started))
        return times

    def matrix_rate(self) -> float:
        """Operations a second in products of large matrices."""
        side = matrix_side(jax.default_backend() != "cpu")
        matrix = jnp.ones((side, side), self.config.model.dtype)
        multiply = jax.jit(lambda a: a @ a)
        return best_rate(lambda: jax.block_until_ready(multiply(matrix)), side)


class Torch:
    """PyTorch's step, eager or compiled."""

    def __init__(self, config: RunConfig, *, compiled: bool):
        import torch

        from benchmarks.torch_cope import make_torch_step

        torch.set_num_threads(len(os.sched_getaffinity(0)))  # not half of them where two share a core
        self.torch, self.config = torch, config
        self.model, self.step = make_torch_step(config, vocab_size=VOCABULARY, compiled=compiled)
        self.device = next(self.model.parameters()).device
        self.batch = jax.tree.map(lambda leaf: torch.from_numpy(leaf).to(self.device), make_batch(config))
        for domain in DOMAINS:
            self.batch[domain]["text"] = self.batch[domain]["text"].long()
        started = time.perf_counter()
        self.run(1)
        self.compile_seconds = time.perf_counter() - started

    def run(self, steps: int) -> float:
        """Seconds of some steps."""
        started = time.perf_counter()
        for _ in range(steps):
            loss = self.step(self.batch)
        loss.item()
        return time.perf_counter() - started

    def facts(self) -> dict[str, Any]:
        """What is known once it has run."""
        from benchmarks.torch_cope import used_parameters

        cuda = self.torch.cuda
        return {
            "parameters": used_parameters(self.model),
            "compile_seconds": self.compile_seconds,
            "peak_bytes": cuda.max_memory_allocated() if cuda.is_available() else process_bytes(),
            "process_bytes": process_bytes(),
            "matrix_rate": self.matrix_rate(),
        }

    def matrix_rate(self) -> float:
        """Operations a second in products of large matrices."""
        side = matrix_side(self.device.type != "cpu")
        matrix = self.torch.ones((side, side), dtype=getattr(self.torch, self.config.model.dtype), device=self.device)
        return best_rate(lambda: (matrix @ matrix)[0, 0].item(), side)


def process_bytes() -> int:
    """The most that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def matrix_side(accelerator: bool) -> int:
    """Rows of the matrices that a device's rate is measured by."""
    return 8192 if accelerator else 2048


def best_rate(multiply: Callable[[], Any], side: int) -> float:
    """Operations a second of the best of ten products of square matrices."""
    return 2 * side**3 / min(timed(multiply) for _ in range(10))


MAKERS: dict[str, Callable[[RunConfig], Any]] = {
    "ours": Ours,
    "torch": partial(Torch, compiled=False),
    "torch_compiled": partial(Torch, compiled=True),
}


def fastest(way: str, preset: str, batch_sizes: Sequence[int]) -> Ours | Torch:
    """A program with the batch by which it is fastest, of those that fit into memory."""
    rates = {}
    for size in batch_sizes:
        try:
            program = MAKERS[way](make_config(preset, size))
            if len(batch_sizes) == 1:
                return program
            program.run(2)
            rates[size] = 5 * size / program.run(5)
        except RuntimeError as error:  # JAX's and PyTorch's alike
            if not is_out_of_memory(error) or not rates:
                raise
            break
        finally:
            program = None  # before the next one needs the memory
        print(f"{way}, batches of {size}: {rates[size]:.1f} products a second", file=sys.stderr, flush=True)
    return MAKERS[way](make_config(preset, max(rates, key=rates.__getitem__)))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device's memory was too small."""
    return any(words in str(error) for words in ("out of memory", "Out of memory", "RESOURCE_EXHAUSTED"))


def serve(way: str) -> None:
    """Makes a program, and for each line read runs its steps and prints products a second; at the end, its facts."""
    program = fastest(way, FLAGS.preset, [int(size) for size in FLAGS.batch_sizes])
    steps, size = FLAGS.steps, program.config.train.batch_size
    program.run(steps)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(steps * size / program.run(steps), flush=True)
    print(json.dumps(program.facts() | {"batch_size": size}))


class Served:
    """A program in a process of its own."""

    def __init__(self, way: str):
        command = [sys.executable, "-m", "benchmarks.step", f"--way={way}", f"--preset={FLAGS.preset}"]
        command += [f"--steps={FLAGS.steps}", f"--batch_sizes={','.join(FLAGS.batch_sizes)}"]
        # Compiled anew each time, or a second run would tell of no time for it.
        fresh = {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        environment = os.environ | mimalloc_environment() | fresh | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.started = self.process.stdout.readline().strip() == "ready"

    def rate(self) -> float:
        """Products a second of some steps."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def facts(self) -> dict[str, Any]:
        """Ends it."""
        output, _ = self.process.communicate()
        return json.loads(output.splitlines()[-1])


def take_turns(ways: Sequence[str]) -> tuple[dict[str, list[float]], dict[str, dict[str, Any]]]:
    """Rates in rounds, and facts, of programs that are there at the same time; torch.compile may fail to start."""
    programs = {way: Served(way) for way in ways}
    programs = {way: program for way, program in programs.items() if program.started or way != "torch_compiled"}
    rates: dict[str, list[float]] = {way: [] for way in programs}
    for _ in range(FLAGS.rounds):
        for way, program in programs.items():
            rates[way].append(program.rate())
        print(", ".join(f"{way} {found[-1]:.2f}" for way, found in rates.items()), "products a second", flush=True)
    return rates, {way: program.facts() for way, program in programs.items()}


def compare() -> dict[str, Any]:
    """Measures all and returns what is printed."""
    rates, facts = {}, {}
    for ways in [WAYS] if FLAGS.preset == "tiny" else [[way] for way in WAYS]:
        for found, those in zip((rates, facts), take_turns(ways), strict=True):
            found.update(those)
    ours, torch = facts["ours"], max((way for way in rates if way != "ours"), key=lambda way: median(rates[way]))
    assert abs(ours["parameters"] / facts[torch]["parameters"] - 1) < 0.001, f"not the same model: {facts}"
    matrix_rate = max(those["matrix_rate"] for those in facts.values())
    rate = ours["operations"] * median(rates["ours"]) / ours["batch_size"]
    return {
        "preset": FLAGS.preset,
        **{f"{way}_products_per_s": round(median(found), 2) for way, found in rates.items()},
        **ratio("ratio_to_torch", rates["ours"], rates[torch]),
        "faster_torch": torch,
        "mfu": round(rate / matrix_rate, 3),
        "matrix_tflops": {way: round(those["matrix_rate"] / 1e12, 3) for way, those in facts.items()},
        "operations_per_product": ours["operations"] / ours["batch_size"],
        "batch_size": {way: those["batch_size"] for way, those in facts.items()},
        "peak_bytes": ours["peak_bytes"],
        "torch_peak_bytes": facts[torch]["peak_bytes"],
        "process_bytes": {way: those["process_bytes"] for way, those in facts.items()},
        "compile_seconds": {way: round(those["compile_seconds"], 1) for way, those in facts.items()},
        **{name: round(median(ours[name]), 3) for name in ("dispatch_ms", "bring_ms")},
        **{f"{name}_least": round(min(ours[name]), 3) for name in ("dispatch_ms", "bring_ms")},
        "parameters": ours["parameters"],
    }


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_enum("preset", "tiny", list(PRESETS), "Size of the model and where it runs.")
    flags.DEFINE_bool("quick", False, "Few rounds and steps.")
    flags.DEFINE_integer("rounds", None, "Times that each program is timed; default: 5, quick: 3.", lower_bound=1)
    flags.DEFINE_integer("steps", None, "Of a time; default: 10, quick: 2.", lower_bound=1)
    flags.DEFINE_list("batch_sizes", None, "Products a batch, of which each takes its fastest; default: the preset's.")
    flags.DEFINE_enum("way", None, WAYS, "One program, in this process.")


def main(_: list[str]) -> None:
    """Measures and prints."""
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
