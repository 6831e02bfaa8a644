"""Exports a run for serving: `python -m cope_jax.export --workdir=runs/demo --out=exports/demo`.

Writes config.json, model.safetensors (named by parameter paths), tokenizer/, and one StableHLO program per domain,
page.stablehlo and so on, whose first argument is the weights. `cope_jax.exported` loads them. README.md is the model
card.
"""

import json
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from jax import export
from safetensors.numpy import save

from cope_jax import cli, exported
from cope_jax.data.tokenizer import load_tokenizer, save_tokenizer, separator_id
from cope_jax.model_card import CARD, model_card
from cope_jax.parallel.mesh import make_mesh
from cope_jax.parallel.path_rules import leaf_paths
from cope_jax.runs.checkpoints import UNTRAINED, Checkpoints, ModelState
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_file import load_config
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.model import load_model
from data_prep.common.files import atomic_folder, atomic_write

FLAGS = flags.FLAGS
PLATFORMS = ("cpu", "cuda", "tpu")
# Maximum difference of an entry between two compilations of one program; embeddings have length 1.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("workdir", None, "Work directory of the run.")
    flags.DEFINE_string("out", None, "Folder to write; it must not exist.")
    flags.DEFINE_integer("step", None, "Checkpoint to export; the newest by default.", lower_bound=0)
    flags.DEFINE_bool("average", False, "Export the moving average; needs config.train.average_decay.")
    flags.DEFINE_float(
        "interpolate",
        1.0,
        "Share of the trained weights in a mean with the initial ones, such as 0.5, against forgetting (WiSE-FT).",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_string("license", "unknown", "License of the weights for the model card, such as apache-2.0.")
    flags.mark_flags_as_required(["workdir", "out"])


def main() -> None:
    """Exports the run and prints how well the copies agree. If it is terminated, it leaves nothing behind."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", FLAGS.license):
        raise ValueError(f"--license is {FLAGS.license!r}; expected an identifier of the hub, such as apache-2.0")
    options = {"average": FLAGS.average, "interpolate": FLAGS.interpolate, "license": FLAGS.license}
    difference = export_run(Path(FLAGS.workdir), Path(FLAGS.out), step=FLAGS.step, **options)
    print(f"wrote {FLAGS.out}; loaded back, its embeddings differ from the run's by at most {difference:.1e}")


def export_run(
    workdir: Path,
    out: Path,
    *,
    step: int | None = None,
    average: bool = False,
    interpolate: float = 1.0,
    license: str = "unknown",
) -> float:
    """Exports a checkpoint of a run, by default the newest, or the moving average of its parameters.

    With `interpolate` α less than 1, exports α times these parameters plus 1 − α times the initial ones (arXiv
    2109.01903). `license` is that of the weights, for the model card.

    The files are checked before they appear in `out`, which must not exist. Returns the largest difference between an
    entry of the run's embeddings and of the exported model's; raises ValueError if it is more than rounding.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; choose another --out or remove it")
    # cuDNN's attention would run on NVIDIA devices only.
    config = replace_fields(load_config(workdir), {"model.attention": "xla"})
    tokenizer = load_tokenizer(workdir / "tokenizer")
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.local_devices()[:1])
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.newest() if step is None else step
        graphdef, model = load_model(config, checkpoints, step, mesh, vocab_size=len(tokenizer), average=average)
        if interpolate < 1:
            _, initial = load_model(config, checkpoints, UNTRAINED, mesh, vocab_size=len(tokenizer))
            axes = {name: value for name, value in model.statistics.items() if name == "axes"}  # remain orthogonal
            initial = ModelState(initial.params, initial.statistics | axes)
            model = jax.tree.map(lambda new, old: interpolate * new + (1 - interpolate) * old, model, initial)
    with atomic_folder(out) as folder:
        with atomic_write(folder / exported.WEIGHTS) as file:  # `save_file` would make it readable by its owner only
            file.write(save(flatten_weights(model)))
        save_tokenizer(tokenizer, folder / exported.TOKENIZER)
        for domain in config.data.domains:
            (folder / exported.program_file(domain)).write_bytes(export_program(graphdef, model, domain, config))
        sizes = {"image_size": config.data.image_size, "text_length": config.data.text_length}
        description = {
            "format": exported.FORMAT,
            "step": step,
            "interpolate": interpolate,
            "embedding": config.model.embedding,
            "separator": separator_id(tokenizer),
            "domains": {
                domain: {"frames": config.eval.frames[domain], "template": config.data.template(domain), **sizes}
                for domain in config.data.domains
            },
            "run": asdict(replace_fields(config, {"data.data_dir": Path(config.data.data_dir).name})),
        }
        (folder / exported.CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        other = "the weights are a mean of those before and after training" if interpolate < 1 else ""
        options = {"title": out.name, "step": step, "license": license, "average": average, "other": other}
        (folder / CARD).write_text(model_card(config, workdir, **options), encoding="utf-8")
        return _check_export(folder, graphdef, model, config, vocab_size=len(tokenizer))


def _weight_names(model: ModelState) -> list[str]:
    return [name for tree in model for name in jax.tree.leaves(leaf_paths(tree))]


def flatten_weights(model: ModelState) -> dict[str, np.ndarray]:
    """Returns parameters and statistics by their paths in the model."""
    return dict(zip(_weight_names(model), map(np.asarray, jax.tree.leaves(model)), strict=True))


def _make_program(graphdef: nnx.GraphDef, like: ModelState, domain: str) -> exported.Program:
    """The function to export: weights by name, frames, frame mask, token ids → float32[B, E]."""

    def program(weights: Mapping[str, Any], frames: Any, frame_mask: Any, text: Any) -> jax.Array:
        leaves = [weights[name] for name in _weight_names(like)]
        model = nnx.merge(graphdef, *jax.tree.unflatten(jax.tree.structure(like), leaves))
        items = {domain: {"frames": frames, "frame_mask": frame_mask, "text": text}}
        # By default, float32 products are TF32 on GPUs and bfloat16 on TPUs.
        with jax.default_matmul_precision("highest"):
            return model(items)[domain].fused

    return program


def export_program(graphdef: nnx.GraphDef, model: ModelState, domain: str, config: RunConfig) -> bytes:
    """Serializes the program of a domain, for any number of items on any platform."""
    (B,) = export.symbolic_shape("B")
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model)
    arguments = (
        {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in flatten_weights(model).items()},
        *(jax.ShapeDtypeStruct((B, *shape), dtype) for shape, dtype in _input_types(domain, config)),
    )
    program = jax.jit(_make_program(graphdef, like, domain))
    return bytes(export.export(program, platforms=PLATFORMS)(*arguments).serialize())


def _input_types(domain: str, config: RunConfig) -> list[tuple[tuple[int, ...], Any]]:
    """Shapes, without the batch axis, and types of frames, frame mask, and token ids."""
    T, side = config.eval.frames[domain], config.data.image_size
    return [((T, side, side, 3), np.uint8), ((T,), bool), ((config.data.text_length,), np.int32)]


def _check_export(
    folder: Path, graphdef: nnx.GraphDef, model: ModelState, config: RunConfig, *, vocab_size: int
) -> float:
    """Compares the embeddings of random items by the stored weights and programs with the model's; see `export_run`."""
    own_weights, loaded, largest = flatten_weights(model), exported.load(folder), 0.0
    for domain in config.data.domains:
        items = _random_items(domain, config, vocab_size=vocab_size)
        expected = np.asarray(jax.jit(_make_program(graphdef, model, domain))(own_weights, *items))
        found = np.asarray(loaded.programs[domain](loaded.weights, *items))
        difference, tolerance = float(np.abs(found - expected).max()), TOLERANCE[config.model.dtype]
        if not difference <= tolerance:
            raise ValueError(
                f"{exported.WEIGHTS} and {exported.program_file(domain)} give embeddings that differ from the run's "
                f"by {difference:.1e}, more than the rounding error of {tolerance:.0e}. Nothing was written"
            )
        largest = max(largest, difference)
    return largest


def _random_items(domain: str, config: RunConfig, *, vocab_size: int) -> list[np.ndarray]:
    """Three items: a complete one, one with half its frames and text, and one without text."""
    rng = np.random.default_rng(0)
    (frames, _), (mask, _), (text, _) = _input_types(domain, config)
    frame_mask, tokens = np.ones((3, *mask), bool), rng.integers(1, vocab_size, (3, *text), dtype=np.int32)
    frame_mask[1, (mask[0] + 1) // 2 :] = False
    tokens[1, text[0] // 2 :] = 0
    tokens[2] = 0
    return [rng.integers(0, 256, (3, *frames), dtype=np.uint8), frame_mask, tokens]


if __name__ == "__main__":
    define_flags()
    cli.run("export", main)
