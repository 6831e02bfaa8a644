"""A trained model for serving: weights as safetensors and, for each domain, a StableHLO program.

The folder holds config.json, model.safetensors (a parameter's path is its name), tokenizer/ and page, video and
live.stablehlo, which take the weights as their first argument. `cope_jax.exported` loads it.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import export
from safetensors.numpy import load_file, save_file

from cope_jax import exported
from cope_jax.data.tokenizer import load_tokenizer, save_tokenizer
from cope_jax.domains import DOMAINS
from cope_jax.parallel.mesh import make_mesh
from cope_jax.parallel.path_rules import leaf_paths
from cope_jax.runs.checkpoints import Checkpoints, load_model
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_file import load_config
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.model import ModelState

PLATFORMS = ("cpu", "cuda", "tpu")
# Entries of embeddings, which have length 1, may differ by this much between two compilations of one program.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def export_run(workdir: Path, out: Path, *, step: int | None = None, average: bool = False) -> float:
    """Exports a checkpoint of a run, and checks what was written before it appears under its name.

    Args:
        workdir: of a training run.
        out: folder to write, whole or not at all.
        step: of the checkpoint; None is the newest.
        average: whether the moving average of the parameters is exported in place of these.

    Returns:
        The largest difference between an entry of the run's own embeddings and of those of what was written.

    Raises:
        ValueError: `out` exists, there is no average, or what was written embeds otherwise than the run's model.
        FileNotFoundError: no such work directory or checkpoint.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; choose another --out or remove it")
    config = portable(load_config(workdir))
    tokenizer = load_tokenizer(workdir / "tokenizer")
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.local_devices()[:1])
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.newest() if step is None else step
        graphdef, model = load_model(config, checkpoints, step, mesh, vocab_size=len(tokenizer), average=average)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        unfinished.chmod(0o755)  # mkdtemp makes it private
        save_file(flat(model), unfinished / exported.WEIGHTS)
        save_tokenizer(tokenizer, unfinished / exported.TOKENIZER)
        for domain in DOMAINS:
            program = stablehlo(graphdef, model, domain, config)
            (unfinished / exported.program_file(domain)).write_bytes(program)
        description = describe(config, step, separator=tokenizer.sep_token_id)
        (unfinished / exported.CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        difference = check(unfinished, graphdef, model, config, vocab_size=len(tokenizer))
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return difference


def portable(config: RunConfig) -> RunConfig:
    """The config with attention as plain operations: a program with cuDNN's would run on NVIDIA devices only."""
    return replace_fields(config, {"model.attention": "xla"})


def flat(model: ModelState) -> dict[str, np.ndarray]:
    """Parameters and statistics by their paths in the model."""
    names = [name for tree in model for name in jax.tree.leaves(leaf_paths(tree))]
    return dict(zip(names, map(np.asarray, jax.tree.leaves(model)), strict=True))


def unflat(weights: Mapping[str, Any], like: ModelState) -> ModelState:
    """The inverse of `flat`; `like` gives the structure."""
    names = [name for tree in like for name in jax.tree.leaves(leaf_paths(tree))]
    return jax.tree.unflatten(jax.tree.structure(like), [weights[name] for name in names])


def program_of(graphdef: nnx.GraphDef, like: ModelState, domain: str) -> exported.Program:
    """The function to export: weights by name, frames, frame mask, token ids → float32[B, E]."""

    def program(weights: Mapping[str, Any], frames: Any, frame_mask: Any, text: Any) -> jax.Array:
        model = nnx.merge(graphdef, *unflat(weights, like))
        return model({domain: {"frames": frames, "frame_mask": frame_mask, "text": text}})[domain].fused

    return program


def stablehlo(graphdef: nnx.GraphDef, model: ModelState, domain: str, config: RunConfig) -> bytes:
    """The serialised program of a domain, for any number of items on any platform."""
    (B,) = export.symbolic_shape("B")
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model)
    arguments = (
        {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in flat(model).items()},
        *(jax.ShapeDtypeStruct((B, *shape), dtype) for shape, dtype in input_types(domain, config)),
    )
    program = jax.jit(program_of(graphdef, like, domain))
    return bytes(export.export(program, platforms=PLATFORMS)(*arguments).serialize())


def input_types(domain: str, config: RunConfig) -> list[tuple[tuple[int, ...], Any]]:
    """Shape behind B and type of frames, frame mask and token ids."""
    T, side = config.eval.frames[domain], config.data.image_size
    return [((T, side, side, 3), np.uint8), ((T,), bool), ((config.data.text_length,), np.int32)]


def describe(config: RunConfig, step: int, *, separator: int) -> dict[str, Any]:
    """What a loader must know, and the run's config."""
    sizes = {"image_size": config.data.image_size, "text_length": config.data.text_length}
    return {
        "format": exported.FORMAT,
        "step": step,
        "embedding": config.model.embedding,
        "separator": separator,
        "domains": {domain: {"frames": config.eval.frames[domain], **sizes} for domain in DOMAINS},
        "run": asdict(config),
    }


def check(folder: Path, graphdef: nnx.GraphDef, model: ModelState, config: RunConfig, *, vocab_size: int) -> float:
    """Loads both forms back and compares their embeddings of random items with the model's own.

    Returns:
        The largest difference of an entry.

    Raises:
        ValueError: it is larger than two compilations of one program explain; names domain and form.
    """
    own, loaded = flat(model), exported.load(folder)
    weights = load_file(folder / exported.WEIGHTS)
    largest = 0.0
    for domain in DOMAINS:
        own_code = jax.jit(program_of(graphdef, model, domain))
        items = random_items(domain, config, vocab_size=vocab_size)
        expected = np.asarray(own_code(own, *items))
        forms = {
            exported.WEIGHTS: own_code(weights, *items),
            exported.program_file(domain): loaded.programs[domain](loaded.weights, *items),
        }
        for name, found in forms.items():
            difference = float(np.abs(np.asarray(found) - expected).max())
            if not difference <= TOLERANCE[config.model.dtype]:
                raise ValueError(
                    f"{name} gives {domain} embeddings that differ from the run's by {difference:.1e}; at most "
                    f"{TOLERANCE[config.model.dtype]:.0e} is rounding. Nothing was written"
                )
            largest = max(largest, difference)
    return largest


def random_items(domain: str, config: RunConfig, *, vocab_size: int) -> list[np.ndarray]:
    """Three items: a whole one, one with half of its frames and text, one without text."""
    rng = np.random.default_rng(0)
    (frames, _), (mask, _), (text, _) = input_types(domain, config)
    frame_mask, tokens = np.ones((3, *mask), bool), rng.integers(1, vocab_size, (3, *text), dtype=np.int32)
    frame_mask[1, (mask[0] + 1) // 2 :] = False
    tokens[1, text[0] // 2 :] = 0
    tokens[2] = 0
    return [rng.integers(0, 256, (3, *frames), dtype=np.uint8), frame_mask, tokens]
