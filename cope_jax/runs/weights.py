"""The published weights that a run's encoders start from."""

from typing import Any

import jax

from cope_jax.models.backbones.load import Pretrained, prepare
from cope_jax.runs.config import RunConfig
from cope_jax.runs.model import encoder_settings

ENCODERS = ("vision", "text")


def prepare_weights(config: RunConfig, shapes: Any, *, vocab_size: int) -> dict[str, Pretrained]:
    """Finds the weights that config.model.vision.init_from and text.init_from name, and checks that they fit.

    Args:
        shapes: tree of the model's parameters, arrays or shapes.
        vocab_size: of the run's tokenizer.

    Returns:
        Encoder → weights; without the encoders that start fresh.

    Raises:
        FileNotFoundError: there are none of that name; says what to download.
        ValueError: they are of another model; lists all that differs.
    """
    settings = encoder_settings(config, vocab_size=vocab_size)
    return {
        encoder: prepare(
            getattr(config.model, encoder).init_from,
            encoder,
            shapes[encoder],
            settings=settings[encoder],
            cut=getattr(config.model, encoder).init_cut,
            section=f"config.model.{encoder}",
        )
        for encoder in ENCODERS
        if getattr(config.model, encoder).init_from
    }


def load_weights(weights: dict[str, Pretrained], params: Any) -> Any:
    """The model's fresh parameters with the published ones in their places, sharded alike."""
    for encoder, pretrained in weights.items():
        if jax.process_index() == 0:
            print(f"{encoder} encoder: {pretrained.report()}")
        params = params | {encoder: pretrained.load(params[encoder])}
    return params
