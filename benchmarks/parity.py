"""How far our encoders with loaded weights are from torch's: `python -m benchmarks.parity`, with torch installed.

Random models of transformers are saved, loaded by our code and given the same inputs, all in float32. The last line is
JSON: for each model the largest difference of outputs and of gradients, relative to the largest value of each, and the
largest of all.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from flax.traverse_util import flatten_dict

from benchmarks.torch_references import REFERENCES, Reference
from cope_jax.models.backbones.load import prepare
from cope_jax.models.compute import Compute
from cope_jax.models.text import TextEncoder
from cope_jax.models.vision import VisionEncoder

ENCODERS = {"vision": VisionEncoder, "text": TextEncoder}
FORWARD, GRADIENT = 1e-4, 1e-3  # the bounds

Differences = dict[str, float]
# In tests too, which compile quickly rather than well: at the published widths running takes longer than compiling.
COMPILED_WELL = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
FLAGS = flags.FLAGS


def compare(reference: Reference) -> tuple[Differences, Differences]:
    """Relative differences of all outputs, and of the gradients of all parameters and of the input."""

    def make(scan_layers: bool = True) -> nnx.Module:
        compute = Compute(dtype=jnp.dtype("float32"), scan_layers=scan_layers)
        return ENCODERS[reference.encoder](**reference.settings, compute=compute, rngs=nnx.Rngs(params=0))

    graphdef = nnx.graphdef(nnx.eval_shape(make))
    unrolled = nnx.graphdef(nnx.eval_shape(lambda: make(scan_layers=False)))
    fresh = jax.jit(lambda: nnx.to_pure_dict(nnx.state(make(), nnx.Param)))()
    params = loaded(reference, reference.weights, fresh)
    shift = jnp.zeros(reference.input_gradient.shape)

    def product(params: Any, shift: jax.Array, inputs: jax.Array, cotangents: Any) -> tuple[jax.Array, Any]:
        outputs = run(nnx.merge(graphdef, params), inputs, shift, reference.mask)
        return sum((outputs[name] * cotangents[name]).sum() for name in outputs), outputs

    differentiate = jax.jit(jax.grad(product, argnums=(0, 1), has_aux=True), compiler_options=COMPILED_WELL)
    (gradients, input_gradient), outputs = differentiate(params, shift, reference.inputs, reference.cotangents)
    forward = {name: difference(outputs[name], wanted) for name, wanted in reference.outputs.items()}
    behind = hidden(nnx.merge(unrolled, params), reference)
    for k, (x, wanted) in enumerate(zip(behind, reference.hidden, strict=True), start=1):
        forward[f"block {k}"] = difference(x, wanted)
    wanted = flatten_dict(loaded(reference, reference.gradients, fresh), sep="/")
    flat = flatten_dict(gradients, sep="/")
    gradient = {path: difference(flat[path], wanted[path]) for path in wanted}
    return forward, gradient | {"input": difference(input_gradient, reference.input_gradient)}


def loaded(reference: Reference, folder: Path, fresh: Any) -> Any:
    """The encoder's parameters from a folder, by the code under test."""
    weights = prepare(
        str(folder), reference.encoder, fresh, settings=reference.settings, cut=False, section="reference"
    )
    assert not weights.fresh, f"the reference does not fill {', '.join(weights.fresh)}"
    return weights.load(fresh)


def run(
    encoder: VisionEncoder | TextEncoder, inputs: jax.Array, shift: jax.Array, mask: np.ndarray
) -> dict[str, jax.Array]:
    """The outputs of an encoder, by the names of the reference's.

    Args:
        shift: zeros, added to normalised pixels or embedded words: what to differentiate by.
    """
    if isinstance(encoder, VisionEncoder):
        clip = encoder.encode(inputs + shift, mask)
        return {"frames": clip.frames, "vector": clip.vector}
    text = encoder.encode(encoder.words(inputs) + shift, mask)
    return {"words": jnp.where(mask[..., None], text.words, 0.0), "vector": text.vector}


def hidden(encoder: VisionEncoder | TextEncoder, reference: Reference) -> list[jax.Array]:
    """What comes out of each block of an encoder whose layers are unrolled; 0 at padding."""
    block, outputs = type(encoder.blocks), []
    call = block.__call__

    def keep(*args: Any, **kwargs: Any) -> jax.Array:
        outputs.append(call(*args, **kwargs))
        return outputs[-1]

    with mock.patch.object(block, "__call__", keep):
        run(encoder, reference.inputs, jnp.zeros(reference.input_gradient.shape), reference.mask)
    if isinstance(encoder, VisionEncoder):
        return outputs
    return [jnp.where(reference.mask[..., None], x, 0.0) for x in outputs]


def difference(ours: jax.Array, wanted: np.ndarray) -> float:
    """The largest difference, relative to the largest wanted value."""
    wanted = np.asarray(wanted)
    assert ours.shape == wanted.shape, f"shapes differ: {ours.shape} here, {wanted.shape} in the reference"
    return float(np.abs(np.asarray(ours) - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def worst(differences: Mapping[str, float]) -> str:
    """The name of the largest one."""
    return max(differences, key=differences.__getitem__)


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_integer("side", 224, "Pixels of the images' sides; a multiple of 32.", lower_bound=32)


def main(_: list[str]) -> None:
    """Compares all references; the exit code is 1 if one is out of bounds."""
    result: dict[str, dict[str, float]] = {"forward": {}, "gradient": {}}
    for name, make in REFERENCES.items():
        with tempfile.TemporaryDirectory() as folder:
            forward, gradient = compare(make(Path(folder), FLAGS.side))
        result["forward"][name], result["gradient"][name] = max(forward.values()), max(gradient.values())
        print(f"{name}: outputs {max(forward.values()):.1e} ({worst(forward)}), ", end="")
        print(f"gradients {max(gradient.values()):.1e} ({worst(gradient)})")
    largest = {f"largest_{kind}": max(found.values()) for kind, found in result.items()}
    print(json.dumps(largest | result))
    if largest["largest_forward"] > FORWARD or largest["largest_gradient"] > GRADIENT:
        raise SystemExit(1)


if __name__ == "__main__":
    define_flags()
    app.run(main)
