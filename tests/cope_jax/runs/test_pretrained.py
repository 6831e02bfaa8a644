"""Runs that start from a published image-text model."""

import jax
import numpy as np
import pytest
from transformers import AutoConfig, GemmaTokenizer

from cope_jax.models.backbones.load import MODEL_TYPES
from cope_jax.parallel.mesh import make_mesh
from cope_jax.runs.checkpoints import Checkpoints
from cope_jax.runs.config import flatten
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import run_tokenizer
from cope_jax.runs.model import load_model, split_model
from cope_jax.runs.pretrained import DATA_FIELDS, start_from_weights

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"abcdefghijklmnopqr"]


@pytest.fixture
def siglip(tmp_path, write_checkpoint):
    """A folder like that of a SigLIP 2 on the hub, and its tensors."""

    def change(tensors):
        tensors["logit_scale"][:], tensors["logit_bias"][:] = np.log(117.0), -12.5

    tensors = write_checkpoint(tmp_path / "siglip2", "siglip", change=change)
    tokenizer = GemmaTokenizer({word: i for i, word in enumerate(WORDS)}, [], add_eos_token=True, add_bos_token=False)
    config = (tmp_path / "siglip2/config.json").read_text()
    tokenizer.save_pretrained(tmp_path / "siglip2")
    (tmp_path / "siglip2/config.json").write_text(config)
    return tmp_path / "siglip2", tensors


def test_one_field_sets_encoders_tokenizer_sizes_and_scalars(make_tiny_config, siglip):
    folder, _ = siglip
    before = make_tiny_config({"model.init_from": str(folder), "data.image_size": 32})
    config = start_from_weights(before)
    changed = {key: value for key, value in flatten(config).items() if value != flatten(before)[key]}
    assert changed == {
        "data.image_size": 16,
        "data.lowercase": True,
        "data.text_length": 7,
        "data.tokenizer": str(folder),
        "losses.sigmoid.bias": -12.5,
        "losses.sigmoid.temperature": pytest.approx(117.0, rel=1e-6),
        "model.init_from": "",
        "model.text.activation": "gelu_tanh",
        "model.text.depth": 2,
        "model.text.dropout": 0.0,
        "model.text.family": "siglip",
        "model.text.init_from": str(folder),
        "model.text.output_width": 8,
        "model.text.pooling": "last",
        "model.text.width": 8,
        "model.vision.across_frames": "gated",
        "model.vision.activation": "gelu_tanh",
        "model.vision.depth": 2,
        "model.vision.family": "siglip",
        "model.vision.heads": 3,
        "model.vision.init_from": str(folder),
        "model.vision.normalisation": "siglip",
        "model.vision.output_width": 12,
        "model.vision.pooling": "attention",
        "model.vision.width": 12,
    }
    assert start_from_weights(config) == config
    kept = start_from_weights(before, keep={"data.image_size", "losses.sigmoid.bias", "model.init_from"})
    assert (kept.data.image_size, kept.losses.sigmoid.bias) == (32, before.losses.sigmoid.bias)
    assert kept.model.init_from == ""
    lora = replace_fields(before, {"finetune.method": "lora"})
    assert start_from_weights(lora).model.remat == "block"
    assert start_from_weights(lora, keep={"model.remat"}).model.remat == before.model.remat == "none"


def test_the_encoders_of_the_run_are_those_of_the_weights(make_tiny_config, siglip, tmp_path):
    folder, tensors = siglip
    config = start_from_weights(make_tiny_config({"model.init_from": str(folder)}))
    tokenizer = run_tokenizer(config, tmp_path / "run")
    assert tokenizer.backend_tokenizer.encode("AbC").ids == [5, 6, 7, 1]
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    with Checkpoints(tmp_path / "run") as checkpoints:
        _, model = load_model(config, checkpoints, 0, mesh, vocab_size=len(tokenizer))
    text, vision = model.params["text"], model.params["vision"]
    np.testing.assert_array_equal(
        text["words"]["embedding"][2:], tensors["text_model.embeddings.token_embedding.weight"][2:]
    )
    np.testing.assert_array_equal(vision["head"]["probe"], tensors["vision_model.head.probe"][0, 0])
    np.testing.assert_array_equal(vision["integration"]["gate"], np.zeros(12))


def test_weights_without_a_text_encoder_are_reported(make_tiny_config, write_checkpoint, tmp_path):
    write_checkpoint(tmp_path, "xclip")
    with pytest.raises(
        ValueError, match=r"config\.model\.init_from is .* model_type is 'xclip'; the text encoder supports"
    ):
        start_from_weights(make_tiny_config({"model.init_from": str(tmp_path)}))


def test_the_field_must_be_resolved_before_a_model_is_made(make_tiny_config):
    with pytest.raises(ValueError, match=r"config\.model\.init_from stands for other fields"):
        split_model(make_tiny_config({"model.init_from": "google/siglip2-base-patch16-224"}), vocab_size=23)[1]()


# X-CLIP has no text encoder here, so no run takes over all its settings.
FAMILIES = [(encoder, kind) for encoder in MODEL_TYPES for kind in MODEL_TYPES[encoder] if "xclip" not in kind]


@pytest.mark.parametrize(("encoder", "kind"), FAMILIES)
def test_every_family_states_valid_settings_and_how_its_inputs_are_made(make_tiny_config, encoder, kind):
    settings = MODEL_TYPES[encoder][kind](AutoConfig.for_model(kind), ()).settings()
    facts = {"vision": {"normalisation", "image_size", "resize"}, "text": {"max_length"}}[encoder]
    assert facts | {"pooling"} <= settings.keys()
    fields = {
        f"data.{DATA_FIELDS[key]}" if key in DATA_FIELDS else f"model.{encoder}.{key}": settings[key]
        for key in settings
    }
    config = make_tiny_config(fields | {"model.text.attention_dropout": 0.0, "model.vision.integration_depth": 0})
    assert {key: value for key, value in flatten(config).items() if key in fields} == fields
