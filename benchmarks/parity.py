"""Compares our encoders with loaded weights to those of transformers: `python -m benchmarks.parity`.

Random models of transformers are saved, loaded by our code and given the same inputs, all in float32 at the
highest precision of the device. The last line is
JSON: for each model the largest difference of the outputs and of the gradients, relative to the largest value of each
array, and the maxima over all models. The exit code is 1 if a difference exceeds its bound.
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
from jax.typing import ArrayLike

from benchmarks.torch_references import REFERENCES, Reference
from cope_jax.models.backbones.load import prepare
from cope_jax.models.layers import ComputeOptions
from cope_jax.models.text import TextEncoder, TextSettings
from cope_jax.models.vision import VisionEncoder, VisionSettings

ENCODERS = {"vision": (VisionEncoder, VisionSettings), "text": (TextEncoder, TextSettings)}
FORWARD_BOUND, GRADIENT_BOUND = 1e-5, 1e-4

Differences = dict[str, float]
FLAGS = flags.FLAGS


@jax.default_matmul_precision("highest")  # float32 products are TF32 on GPUs and bfloat16 on TPUs by default
def compare(reference: Reference) -> tuple[Differences, Differences]:
    """Returns the relative differences of all outputs, and of the gradients of all parameters and of the input."""

    def make(scan_layers: bool = True) -> nnx.Module:
        compute = ComputeOptions(dtype=jnp.dtype("float32"), scan_layers=scan_layers)
        make_encoder, settings = ENCODERS[reference.encoder]
        return make_encoder(settings(**reference.settings), compute=compute, rngs=nnx.Rngs(params=0))

    graphdef = nnx.graphdef(nnx.eval_shape(make))
    unrolled = nnx.graphdef(nnx.eval_shape(lambda: make(scan_layers=False)))
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param))
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)  # all of it is replaced
    params = load_parameters(reference, reference.weights, fresh)
    shift, mask = jnp.zeros(reference.input_gradient.shape), jnp.asarray(reference.mask)

    def weighted_sum(params: Any, shift: jax.Array, inputs: jax.Array, cotangents: Any) -> tuple[jax.Array, Any]:
        outputs = encode(nnx.merge(graphdef, params), inputs, shift, mask)
        return jnp.array([(outputs[name] * cotangents[name]).sum() for name in outputs]).sum(), outputs

    differentiate = jax.jit(jax.grad(weighted_sum, argnums=(0, 1), has_aux=True))
    (gradients, input_gradient), outputs = differentiate(params, shift, reference.inputs, reference.cotangents)
    forward = {name: difference(outputs[name], wanted) for name, wanted in reference.outputs.items()}
    blocks = jax.jit(lambda params: block_outputs(nnx.merge(unrolled, params), reference))(params)
    for k, (x, wanted) in enumerate(zip(blocks, reference.hidden, strict=True), start=1):
        forward[f"block {k}"] = difference(x, wanted)
    ours, wanted = by_path(gradients), by_path(load_parameters(reference, reference.gradients, fresh))
    gradient = {path: difference(ours[path], wanted[path]) for path in wanted}
    return forward, gradient | {"input": difference(input_gradient, reference.input_gradient)}


def by_path(tree: Any) -> dict[str, jax.Array]:
    """Returns the leaves of a tree by their paths: "blocks/mlp/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def load_parameters(reference: Reference, folder: Path, fresh: Any) -> Any:
    """Loads the parameters of the encoder from a folder, with the code under test."""
    weights = prepare(str(folder), reference.encoder, fresh, settings=reference.settings, cut=False)
    assert not weights.fresh, f"the reference does not fill {', '.join(weights.fresh)}"
    return weights.load(fresh)


def encode(
    encoder: VisionEncoder | TextEncoder, inputs: jax.Array, shift: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Returns the outputs of an encoder, with the names of `Reference.outputs`.

    Args:
        encoder: The encoder.
        inputs: Pixels or tokens, as in `Reference.inputs`.
        shift: Zeros to add to the normalized pixels or word embeddings, to differentiate by.
        mask: False for padding.
    """
    if isinstance(encoder, VisionEncoder):
        pixels = inputs + shift
        (clip,) = encoder.integrate([(encoder.encode_pixels(pixels, mask, lengths=[pixels.shape[1]]), mask)])
        return {"frames": clip.frames, "vector": clip.vector}
    text = encoder.encode(encoder.words(inputs) + shift, mask)
    return {"words": jnp.where(mask[..., None], text.words, 0.0), "vector": text.vector}


def block_outputs(encoder: VisionEncoder | TextEncoder, reference: Reference) -> list[jax.Array]:
    """Returns the output of each block of an encoder with unrolled layers, with zeros at padding."""
    block, outputs = type(encoder.blocks), []
    call = block.__call__

    def record(*args: Any, **kwargs: Any) -> jax.Array:
        outputs.append(call(*args, **kwargs))
        return outputs[-1]

    with mock.patch.object(block, "__call__", record):
        shift = jnp.zeros(reference.input_gradient.shape)
        encode(encoder, jnp.asarray(reference.inputs), shift, jnp.asarray(reference.mask))
    if isinstance(encoder, VisionEncoder):
        return (
            [x[:, :, :-1] for x in outputs] if encoder.settings.cross_frame else outputs
        )  # the last token is for messages
    return [jnp.where(reference.mask[..., None], x, 0.0) for x in outputs]


def difference(ours: jax.Array, wanted: ArrayLike) -> float:
    """Returns the largest difference, relative to the largest value of the reference."""
    wanted = np.asarray(wanted)
    assert ours.shape == wanted.shape, f"shapes differ: {ours.shape} here, {wanted.shape} in the reference"
    return float(np.abs(np.asarray(ours) - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def worst(differences: Mapping[str, float]) -> str:
    """Returns the name of the largest difference."""
    return max(differences, key=differences.__getitem__)


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_integer("side", 224, "Side of the images in pixels; a multiple of 32.", lower_bound=32)


def main(_: list[str]) -> None:
    """Compares all references and prints the result."""
    result: dict[str, dict[str, float]] = {"forward": {}, "gradient": {}}
    for name, make in REFERENCES.items():
        with tempfile.TemporaryDirectory() as folder:
            forward, gradient = compare(make(Path(folder), FLAGS.side))
        result["forward"][name], result["gradient"][name] = max(forward.values()), max(gradient.values())
        print(f"{name}: outputs {max(forward.values()):.1e} ({worst(forward)}), ", end="")
        print(f"gradients {max(gradient.values()):.1e} ({worst(gradient)})")
    largest = {f"largest_{kind}": max(found.values()) for kind, found in result.items()}
    print(json.dumps(largest | result))
    if largest["largest_forward"] > FORWARD_BOUND or largest["largest_gradient"] > GRADIENT_BOUND:
        raise SystemExit(1)


if __name__ == "__main__":
    define_flags()
    app.run(main)
