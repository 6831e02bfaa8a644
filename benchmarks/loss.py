"""Memory and time of the sigmoid loss on 1 to 16 devices: `python -m benchmarks.loss`.

Value and gradients over the three pairs, `--chunk` examples a device, computed in three ways: the project's `ring`;
`tiled`, the same blocks where every device first gathers all chunks; and `dense`, the formula on whole similarity
matrices, left to XLA. Devices are pretended on this machine's cores, a process for each number of them; the ways take
turns. The last line is JSON: for each number of devices the temporary bytes of one device, as XLA plans them, and the
median seconds; and the three ratios that the loss is held to.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh

from benchmarks.ratios import ratio
from cope_jax.domains import DOMAINS, PAIRS
from cope_jax.losses.pairs import Pair, Side, compare, join_vectors, split_vectors
from cope_jax.losses.ring import AXES
from cope_jax.losses.sigmoid import init_scalars, sigmoid_loss
from cope_jax.losses.statistics import Nearest
from cope_jax.parallel.mesh import batch_sharding, make_mesh, replicated

DEVICES = (1, 2, 4, 8, 16)
DENSE_RUNS_UP_TO = 8  # devices: at 16 its matrices take 26 GB of this machine's memory; it is compiled only
WIDTH, PRODUCTS = 128, 4

FLAGS = flags.FLAGS


def ring(sides: dict[str, Side], scalars: Any, mesh: Mesh) -> Any:
    """The project's own."""
    return sigmoid_loss(sides, scalars, pairs=[Pair(a, b) for a, b in PAIRS], mesh=mesh)


def tiled(sides: dict[str, Side], scalars: Any, mesh: Mesh) -> Any:
    """The same without the ring: all chunks visit every device at once."""
    with mock.patch("cope_jax.losses.sigmoid.go_round", all_at_once):
        return ring(sides, scalars, mesh)


def all_at_once(visit: Callable[..., Any], *, stays: Any, guest: Any, returns: Any) -> Any:
    """In the place of `ring.go_round`."""
    gather = partial(jax.lax.all_gather, axis_name=AXES, tiled=True)
    stays, gathered = visit(stays, jax.tree.map(gather, guest), jax.tree.map(gather, returns))
    return stays, [(jax.lax.psum_scatter(gradient, AXES, tiled=True), home(near)) for gradient, near in gathered]


def home(nearest: Nearest) -> Nearest:
    """This device's part of what all found to be nearest."""
    parts = jax.tree.map(lambda found: jax.lax.pmax(found, AXES).reshape(-1, FLAGS.chunk), nearest)
    return jax.tree.map(lambda part: part[jax.lax.axis_index(AXES)], parts)


def dense(sides: dict[str, Side], scalars: Any, mesh: Mesh) -> Any:
    """The formula as one writes it down, with the same watched values."""
    total, watched = jnp.zeros(()), {}
    for a, b in PAIRS:
        grid = compare(sides[a], sides[b])
        logits = jnp.exp(scalars["log_t"]) * grid.cosine + scalars["bias"]
        terms = jax.nn.softplus(jnp.where(grid.positive, -logits, logits))
        loss = jnp.where(grid.positive | grid.negative, terms, 0.0).sum() / len(terms)
        cosine = jax.lax.stop_gradient(grid.cosine)
        kinds = [jnp.where(mask, cosine, 0.0).sum() / mask.sum() for mask in (grid.positive, grid.negative)]
        nearest = [Nearest.among(grid._replace(cosine=cosine), axis=axis).accuracy() for axis in (0, 1)]
        total += loss
        watched[a, b] = loss, kinds, nearest
    return total, list(watched.values())


def make_sides(examples: int) -> dict[str, Side]:
    """Random vectors; one product in a batch twice, now and then, and one item in ten missing."""
    rng = np.random.default_rng(0)
    products = np.full((examples, PRODUCTS), -1, np.int32)
    products[:, 0] = rng.integers(0, 20 * examples, examples)

    def side() -> Side:
        vectors = rng.normal(size=(examples, WIDTH)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return Side(vectors, products, rng.random(examples) > 0.1, np.arange(examples, dtype=np.int32))

    return {domain: side() for domain in DOMAINS}


def measure(devices: int, rounds: int) -> dict[str, Any]:
    """A row of the table, on as many devices as this process has."""
    mesh = make_mesh(data=devices, fsdp=1, tensor=1)
    cut, whole = batch_sharding(mesh), replicated(mesh)
    scalars = jax.device_put(init_scalars(temperature=10.0, bias=-10.0), whole)
    arguments = (*jax.device_put(split_vectors(make_sides(FLAGS.chunk * devices)), cut), scalars)
    programs = {}
    for way in (ring, tiled, dense):

        def loss(vectors: Any, rest: Any, scalars: Any, way: Callable[..., Any] = way) -> Any:
            return way(join_vectors(vectors, rest), scalars, mesh)

        gradient = jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)
        outputs = (whole, whole), (cut, whole)
        program = jax.jit(gradient, in_shardings=(cut, cut, whole), out_shardings=outputs).lower(*arguments).compile()
        programs[way.__name__] = program
    row: dict[str, Any] = {"devices": devices}
    row |= {f"{name}_bytes": program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    if devices > DENSE_RUNS_UP_TO:
        del programs["dense"]
    values = [float(program(*arguments)[0][0]) for program in programs.values()]  # and a warm-up
    np.testing.assert_allclose(values, values[0], rtol=1e-4)
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds[name].append(time.perf_counter() - start)
    if "dense" in seconds:
        row |= ratio("ring_over_dense_time", seconds["ring"], seconds["dense"])
    for name, times in seconds.items():
        row[f"{name}_seconds"] = round(median(times), 4)
        row[f"{name}_spread"] = [round(min(times), 4), round(max(times), 4)]
    return row


def in_own_process(devices: int) -> dict[str, Any]:
    """A row, from a process that pretends to have that many devices."""
    count = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": count}
    command = [sys.executable, "-m", "benchmarks.loss", f"--devices={devices}"]
    command += [f"--rounds={FLAGS.rounds}", f"--chunk={FLAGS.chunk}"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_integer("devices", None, "Measure this number of devices in this process.")
    flags.DEFINE_integer("rounds", 5, "Times that each way is timed.", lower_bound=1)
    flags.DEFINE_integer("chunk", 1024, "Examples a device.", lower_bound=8)


def main(_: list[str]) -> None:
    """Measures and prints."""
    if FLAGS.devices:
        print(json.dumps(measure(FLAGS.devices, FLAGS.rounds)))
        return
    table = {}
    for devices in DEVICES:
        table[devices] = row = in_own_process(devices)
        for name in ("ring", "tiled", "dense"):
            line = f"{devices:2} devices  {name:5}  {row[f'{name}_bytes'] / 1e6:8.1f} MB"
            if f"{name}_seconds" in row:
                low, high = row[f"{name}_spread"]
                line += f"  {row[f'{name}_seconds']:8.3f} s  ({low:.3f} to {high:.3f})"
            print(line, flush=True)
    result = {
        "table": list(table.values()),
        "growth_2_to_16": round(table[16]["ring_bytes"] / table[2]["ring_bytes"], 4),
        "ring_over_dense_bytes_at_16": round(table[16]["ring_bytes"] / table[16]["dense_bytes"], 4),
        "ring_over_dense_time_at_8": table[8]["ring_over_dense_time"],
        "ring_over_dense_time_at_8_spread": table[8]["ring_over_dense_time_spread"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    define_flags()
    app.run(main)
