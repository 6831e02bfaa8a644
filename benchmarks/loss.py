"""Measures memory and time of the sigmoid loss on 1 to 16 devices: `python -m benchmarks.loss`.

Computes the value and the gradients of three pairs, with `--chunk` examples per device, in three ways: `ring`, the
project's loss; `tiled`, the same blocks after every device has gathered all chunks; and `dense`, the formula on whole
similarity matrices. The devices are simulated on the cores of this machine, with one process per number of devices; the
methods take turns. The last line is JSON: for each number of devices the temporary bytes of one device, as planned by
XLA, and the median seconds; and the ratios with the targets.
"""

import json
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

from benchmarks.measuring import run_in_process, summarize_ratio, time_call
from cope_jax.losses.pairs import Nearest, Pair, View, compare, join_vectors, split_vectors
from cope_jax.losses.ring import BATCH_AXES
from cope_jax.losses.sigmoid import init_scalars, sigmoid_loss
from cope_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from data_prep.common.domains import DOMAINS, domain_pairs

DEVICES = (1, 2, 4, 8, 16)
MOST_DENSE_DEVICES = 8  # with 16, the matrices take 26 GB of this machine's memory; dense is then only compiled
WIDTH, PRODUCTS = 128, 4

FLAGS = flags.FLAGS


def ring(views: dict[str, View], scalars: Any, mesh: Mesh) -> Any:
    """Computes the project's loss, around the ring however small the batch is."""
    with mock.patch("cope_jax.losses.ring.GATHER_LIMIT", 0):
        return sigmoid_loss(views, scalars, pairs=[Pair(a, b) for a, b in domain_pairs(DOMAINS)], mesh=mesh)


def tiled(views: dict[str, View], scalars: Any, mesh: Mesh) -> Any:
    """Computes the same loss without the ring: every device gathers all chunks at once."""
    with mock.patch("cope_jax.losses.sigmoid.ring_loop", gather_and_visit):
        return ring(views, scalars, mesh)


def gather_and_visit(
    visit: Callable[..., Any], *, local: list, visitor: Any, for_visitor: list, axes: tuple[str, ...]
) -> tuple[list, list]:
    """Replaces `ring.ring_loop`."""
    gather = partial(jax.lax.all_gather, axis_name=axes, tiled=True)
    visitor, for_visitor = jax.tree.map(gather, visitor), jax.tree.map(gather, for_visitor)
    results = [visit(i, visitor, *own) for i, own in enumerate(zip(local, for_visitor, strict=True))]
    gradients = [jax.lax.psum_scatter(its.gradient, axes, tiled=True) for _, its in results]
    return [own for own, _ in results], [
        its._replace(gradient=gradient, nearest=own_part(its.nearest))
        for gradient, (_, its) in zip(gradients, results, strict=True)
    ]


def own_part(nearest: Nearest) -> Nearest:
    """Returns this device's part of the nearest examples that all devices found."""
    parts = jax.tree.map(lambda found: jax.lax.pmax(found, BATCH_AXES).reshape(-1, FLAGS.chunk), nearest)
    return jax.tree.map(lambda part: part[jax.lax.axis_index(BATCH_AXES)], parts)


def dense(views: dict[str, View], scalars: Any, mesh: Mesh) -> Any:
    """Computes the formula on whole matrices, with the same statistics."""
    total, statistics = jnp.zeros(()), []
    for a, b in domain_pairs(DOMAINS):
        grid = compare(views[a], views[b], precision="highest")
        logits = jnp.exp(scalars["log_t"]) * grid.cosine + scalars["bias"]
        terms = jax.nn.softplus(jnp.where(grid.positive, -logits, logits))
        loss = jnp.where(grid.positive | grid.negative, terms, 0.0).sum() / len(terms)
        cosine = jax.lax.stop_gradient(grid.cosine)
        means = [jnp.where(mask, cosine, 0.0).sum() / mask.sum() for mask in (grid.positive, grid.negative)]
        nearest = [Nearest.along(axis, grid._replace(cosine=cosine)).accuracy() for axis in (0, 1)]
        total += loss
        statistics.append((loss, means, nearest))
    return total, statistics


def make_views(examples: int) -> dict[str, View]:
    """Returns random unit vectors. A product is sometimes twice in a batch, and one item in ten is missing."""
    rng = np.random.default_rng(0)
    products = np.full((examples, PRODUCTS), -1, np.int32)
    products[:, 0] = rng.integers(0, 20 * examples, examples)

    def view() -> View:
        vectors = rng.normal(size=(examples, WIDTH)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        present, example = rng.random(examples) > 0.1, np.arange(examples, dtype=np.int32)
        return View(*map(jnp.asarray, (vectors, products, present, example)))

    return {domain: view() for domain in DOMAINS}


def measure(devices: int, rounds: int) -> dict[str, Any]:
    """Returns a row of the table, measured on the devices of this process."""
    mesh = make_mesh(data=devices, fsdp=1, tensor=1)
    cut, whole = batch_sharding(mesh), replicated(mesh)
    scalars = jax.device_put(init_scalars(temperature=10.0, bias=-10.0), whole)
    arguments = (*jax.device_put(split_vectors(make_views(FLAGS.chunk * devices)), cut), scalars)
    programs = {}
    for method in (ring, tiled, dense):

        def loss(vectors: Any, rest: Any, scalars: Any, method: Callable[..., Any] = method) -> Any:
            return method(join_vectors(vectors, rest), scalars, mesh)

        gradient = jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)
        outputs = (whole, whole), (cut, whole)
        program = jax.jit(gradient, in_shardings=(cut, cut, whole), out_shardings=outputs).lower(*arguments).compile()
        programs[method.__name__] = program
    row: dict[str, Any] = {"devices": devices}
    row |= {f"{name}_bytes": program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    if devices > MOST_DENSE_DEVICES:
        del programs["dense"]
    values = [float(program(*arguments)[0][0]) for program in programs.values()]  # also warms up
    np.testing.assert_allclose(values, values[0], rtol=1e-4)
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            seconds[name].append(time_call(lambda program=program: jax.block_until_ready(program(*arguments))))
    if "dense" in seconds:
        row |= summarize_ratio("ring_over_dense_time", seconds["ring"], seconds["dense"])
    for name, times in seconds.items():
        row[f"{name}_seconds"] = round(median(times), 4)
        row[f"{name}_spread"] = [round(min(times), 4), round(max(times), 4)]
    return row


def measure_in_process(devices: int) -> dict[str, Any]:
    """Returns a row of the table, measured in a process that simulates the devices."""
    count = f"--xla_force_host_platform_device_count={devices}"
    options = [f"--devices={devices}", f"--rounds={FLAGS.rounds}", f"--chunk={FLAGS.chunk}"]
    return run_in_process("loss", *options, environment={"JAX_PLATFORMS": "cpu", "XLA_FLAGS": count})


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_integer("devices", None, "Measure with this number of devices, in this process.")
    flags.DEFINE_integer("rounds", 5, "Number of measurements of each method.", lower_bound=1)
    flags.DEFINE_integer("chunk", 1024, "Examples per device.", lower_bound=8)


def main(_: list[str]) -> None:
    """Measures and prints the result."""
    if FLAGS.devices:
        print(json.dumps(measure(FLAGS.devices, FLAGS.rounds)))
        return
    table = {}
    for devices in DEVICES:
        table[devices] = row = measure_in_process(devices)
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
