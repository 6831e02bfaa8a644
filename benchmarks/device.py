"""Checks and measures the project on an accelerator, in at most ten minutes: `python -m benchmarks.device`.

Each part runs in a process of its own with a time limit; one that fails or is stopped leaves its error, or what it had
measured, in the result. The last line is JSON with the results of the parts:

- `device`: rates of large bfloat16 products, of copies in the memory of the device, and of transfers to it.
- `correct`: loss, gradients and embeddings of a small model in float32 and bfloat16, by XLA's and cuDNN's attention,
  relative to float32 on the CPU. `ok` says whether all differences are within their bounds.
- `base`, `torch`: products per second of the training step at the authors' size, next to torch.compile with the same
  model (`benchmarks.torch_cope`); `mfu` is relative to the published peak of the device.
- `recipe`: the same for configs/cope_rope.py with ROPE's number of classes.
- `embed`: frames per second through the function that evaluation embeds with.
- `decode`: frames per second that the host decodes, by pixels and threads.

`--quick` runs the same code at tiny sizes on the CPU; torch is then skipped.
"""

import functools
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from PIL import Image

from benchmarks.measuring import time_call
from benchmarks.step import VOCABULARY, Ours, Torch, is_out_of_memory, make_batch, make_config
from configs import cope_rope
from cope_jax.data.images import EvalTransform
from cope_jax.evaluation.embed_items import embed_function
from cope_jax.models.dropout import DropoutRngs
from cope_jax.parallel.mesh import make_mesh, replicated, to_devices
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_validation import replace_fields, resolve_config
from cope_jax.runs.model import split_model
from cope_jax.training.gradients import batch_gradients
from cope_jax.training.objective import init_losses, make_loss
from cope_jax.training.plan import step_flops
from cope_jax.training.progress import peak_flops

FLAGS = flags.FLAGS
# Seconds that each part may take, in the order of their worth.
LIMITS = {"device": 30, "correct": 110, "base": 110, "torch": 150, "recipe": 100, "embed": 50, "decode": 20}
TINY = {
    "data.image_size": 64,
    "data.frames.video": 4,
    "data.frames.live": 4,
    "eval.frames.video": 4,
    "eval.frames.live": 4,
    "model.vision.width": 128,
    "model.vision.depth": 2,
    "model.vision.heads": 2,
    "model.vision.output_width": 64,
    "model.vision.integration_heads": 1,
    "model.text.width": 128,
    "model.text.heads": 2,
    "model.text.depth": 2,
}
# Largest relative differences of loss and gradients and absolute ones of embeddings from float32 on the CPU.
BOUNDS = {"float32": (1e-4, 1e-3, 1e-4), "bfloat16": (2e-2, 1e-1, 5e-2)}


def base_config(batch_size: int) -> RunConfig:
    """Returns the config of the step that PyTorch runs too."""
    return replace_fields(make_config("base", batch_size), TINY if FLAGS.quick else {})


def recipe_config(batch_size: int, **changes: Any) -> RunConfig:
    """Returns the authors' recipe with the number of classes of ROPE."""
    classes = 3000 if FLAGS.quick else 187_431
    changes = {"losses.classifier.classes": classes, "train.batch_size": batch_size} | changes
    return resolve_config(cope_rope.get_config(), changes | (TINY if FLAGS.quick else {}))


def measure_device() -> dict[str, Any]:
    """Returns what the device and its link achieve."""
    side = 512 if FLAGS.quick else 8192
    matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    big = jax.random.normal(jax.random.key(1), ((1 << 20) if FLAGS.quick else (1 << 29),))
    host = np.zeros((2 if FLAGS.quick else 64, 17, 224, 224, 3), np.uint8)

    def fastest(call: Callable[[], Any], rounds: int) -> float:
        jax.block_until_ready(call())
        return min(time_call(lambda: jax.block_until_ready(call())) for _ in range(rounds))

    multiply, add_one = jax.jit(lambda a: a @ a), jax.jit(lambda a: a + 1)
    return {
        "name": jax.devices()[0].device_kind,
        "host_cores": os.cpu_count(),
        "versions": {"python": sys.version.split()[0], "jax": jax.__version__, "numpy": np.__version__},
        "matrix_tflops": round(2 * side**3 / fastest(lambda: multiply(matrix), 10) / 1e12, 1),
        "memory_tb_per_s": round(2 * big.nbytes / fastest(lambda: add_one(big), 5) / 1e12, 2),
        "transfer_gb_per_s": round(host.nbytes / fastest(lambda: jax.device_put(host), 3) / 1e9, 1),
    }


def check_results() -> dict[str, Any]:
    """Compares a small model with images and heads of the real size on the device and on the CPU."""
    host, device = jax.devices("cpu")[0], jax.devices()[0]
    with jax.default_matmul_precision("highest"):
        reference = compute_results(host, "float32", "xla")
        results = {"float32_xla": compute_results(device, "float32", "xla")}
    for attention in ("xla",) if device.platform == "cpu" else ("xla", "cudnn"):
        results[f"bfloat16_{attention}"] = compute_results(device, "bfloat16", attention)
    found: dict[str, Any] = {"ok": True}
    for name, (loss, gradient, fused) in results.items():
        differences = (
            abs(loss / reference[0] - 1),
            float(np.linalg.norm(gradient - reference[1]) / np.linalg.norm(reference[1])),
            float(np.abs(fused - reference[2]).max()),
        )
        found[name] = dict(zip(("loss", "gradient", "embedding"), differences, strict=True))
        found["ok"] &= all(np.less(differences, BOUNDS[name.split("_")[0]]).tolist())
    return found


def compute_results(device: Any, dtype: str, attention: str) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns loss, gradients float64[P] and embeddings float64[N, E] of a small model, the same on all devices."""
    config = recipe_config(
        8,
        **{
            "model.dtype": dtype,
            "model.attention": attention,
            "model.vision.depth": 2,
            "model.text.depth": 1,
            "model.text.dropout": 0.0,
            "losses.classifier.classes": 3000,
        },
    )
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=[device])
    graphdef, initialize = split_model(config, vocab_size=VOCABULARY, mesh=mesh)
    with jax.default_device(jax.devices("cpu")[0]):  # so that all start with the same weights
        model, losses = jax.jit(initialize)(), jax.jit(functools.partial(init_losses, config))()
    params, statistics, batch = jax.device_put(
        ({"model": model.params, "loss": losses}, model.statistics, make_batch(config)), replicated(mesh)
    )
    loss_of = make_loss(config, mesh)

    def embed(params: Any, statistics: Any, batch: Any, keys: jax.Array) -> Any:
        return nnx.merge(graphdef, params, statistics)(batch, rngs=DropoutRngs(keys)), statistics

    @jax.jit
    def gradients(params: Any, batch: Any) -> Any:
        key = jax.random.key(0)
        found = batch_gradients(embed, loss_of, params, statistics, batch, key, mesh=mesh)
        embeddings, _ = embed(params["model"], statistics, batch, jax.random.split(key, config.train.batch_size))
        return found.loss, found.params, [e.fused for e in embeddings.values()]

    loss, found, fused = jax.device_get(gradients(params, batch))
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(found)])
    return float(loss), flat, np.concatenate([np.asarray(vectors, np.float64) for vectors in fused])


def measure_steps(
    make_program: Callable[[int], Ours | Torch], sizes: Sequence[int], flops: float
) -> Iterator[dict[str, Any]]:
    """Yields the rates of a training step by batch size, after each size.

    Args:
        make_program: Makes the program of a batch size.
        sizes: Batch sizes, in ascending order.
        flops: Operations for one product.
    """
    rows: dict[int, Any] = {}
    for size in sizes:
        try:
            program = make_program(size)
            program.run(2)
            steps = 2 if FLAGS.quick else 6
            rate = steps * size / median(program.run(steps) for _ in range(3))
        except RuntimeError as error:  # of JAX or PyTorch
            if not is_out_of_memory(error):
                raise
            rows[size] = {"failed": "out of memory"}
        else:
            rows[size] = {
                "products_per_s": round(rate, 1),
                "mfu": round(flops * rate / peak_flops(), 3) if peak_flops() else None,
                "peak_gib": round(program.peak_bytes() / 2**30, 1),
                "compile_seconds": round(program.compile_seconds, 1),
            }
        program = None  # frees its memory for the next one
        yield {"flops_per_product": flops, "batches": rows}


def measure_ours(make_config: Callable[[int], RunConfig], sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yields the rates of our step."""
    return measure_steps(lambda size: Ours(make_config(size)), sizes, step_flops(make_config(1), VOCABULARY))


def measure_torch(sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yields the rates of torch.compile."""
    if FLAGS.quick:
        return iter([{"skipped": "takes minutes to compile on a CPU"}])
    flops = step_flops(base_config(1), VOCABULARY)
    return measure_steps(lambda size: Torch(base_config(size), compiled=True), sizes, flops)


def measure_embedding() -> Iterator[dict[str, Any]]:
    """Yields frames per second of the function that embeds, with inputs on the device and from the host."""
    config, rows = recipe_config(8), {}
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    graphdef, initialize = split_model(config, vocab_size=VOCABULARY, mesh=mesh)
    model = jax.jit(initialize, out_shardings=replicated(mesh))()
    embed = embed_function(graphdef, model, mesh)
    rng, side = np.random.default_rng(0), config.data.image_size
    for domain, B in (("video", 4), ("page", 8)) if FLAGS.quick else (("video", 64), ("video", 256), ("page", 1024)):
        T = config.eval.frames[domain]
        inputs = {
            "frames": rng.integers(0, 256, (B, T, side, side, 3), np.uint8),
            "frame_mask": np.ones((B, T), bool),
            "text": rng.integers(1, VOCABULARY, (B, config.data.text_length)).astype(np.int32),
        }
        held = to_devices({domain: inputs}, mesh)
        jax.block_until_ready(embed(model, held))
        on_device = min(time_call(lambda held=held: jax.block_until_ready(embed(model, held))) for _ in range(5))
        from_host = min(
            time_call(lambda batch={domain: inputs}: jax.block_until_ready(embed(model, to_devices(batch, mesh))))
            for _ in range(3)
        )
        rows[f"{domain}_{B}"] = {
            "frames_per_s": round(B * T / on_device),
            "with_transfer": round(B * T / from_host),
        }
        yield rows


def measure_decoding() -> dict[str, Any]:
    """Returns the frames per second that threads of the host decode."""
    rows, cores = {}, os.cpu_count() or 1
    transform = EvalTransform(224)
    for width, height in ((348, 348), (720, 1280)):
        rng = np.random.default_rng(0)
        coarse = np.kron(
            rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8), np.ones((16, 16, 1), np.uint8)
        )
        noisy = coarse[:height, :width] + rng.integers(-12, 13, (height, width, 3))
        encoded = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=85)
        images = [encoded.getvalue()] * (8 if FLAGS.quick else 64)
        for threads in sorted({1, min(8, cores), cores}):
            with ThreadPoolExecutor(threads) as pool:
                start = time.perf_counter()
                list(pool.map(transform, [images] * threads))
                seconds = time.perf_counter() - start
            rows[f"{width}x{height}_{threads}_threads"] = round(len(images) * threads / seconds)
    return rows


PARTS: dict[str, Callable[[], dict[str, Any] | Iterator[dict[str, Any]]]] = {
    "device": measure_device,
    "correct": check_results,
    "base": lambda: measure_ours(base_config, (4,) if FLAGS.quick else (32,)),
    "torch": lambda: measure_torch((32,)),
    "recipe": lambda: measure_ours(recipe_config, (4,) if FLAGS.quick else (64,)),
    "embed": measure_embedding,
    "decode": measure_decoding,
}


def run_part(name: str, seconds: float) -> dict[str, Any]:
    """Runs a part in a process of its own and returns the last JSON line it printed, or its error."""
    command = [sys.executable, "-m", "benchmarks.device", f"--part={name}", f"--quick={FLAGS.quick}"]
    variables = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    if FLAGS.quick:
        variables["JAX_PLATFORMS"] = "cpu"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        errors = f"stopped after {seconds} s"
    lines = [line for line in output.splitlines() if line.startswith("{")]
    found = json.loads(lines[-1]) if lines else {}
    return found if process.returncode == 0 else found | {"failed": errors[-600:]}


def main(_: list[str]) -> None:
    """Runs all parts, or one in this process."""
    if FLAGS.part:
        found = PARTS[FLAGS.part]()
        for row in [found] if isinstance(found, dict) else found:
            print(json.dumps(row), flush=True)
        return
    result: dict[str, Any] = {}
    for name, limit in LIMITS.items():
        start = time.perf_counter()
        result[name] = run_part(name, limit)
        print(f"{name}: {time.perf_counter() - start:.0f} s {json.dumps(result[name])}", file=sys.stderr, flush=True)
    rates = {
        name: max((row.get("products_per_s", 0.0) for row in result[name].get("batches", {}).values()), default=0.0)
        for name in ("base", "torch")
    }
    result["ratio_to_torch"] = round(rates["base"] / rates["torch"], 3) if rates["torch"] else None
    print(json.dumps(result))


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_bool("quick", False, "Use tiny sizes, on the CPU.")
    flags.DEFINE_enum("part", None, list(LIMITS), "Run only this part, in this process.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
