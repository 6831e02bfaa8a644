"""Checkpoints of open_clip, compared with the same values in the layout of transformers."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from cope_jax.models.backbones.files import open_weights

KEY = "config.model.init_from"
CONFIG = {
    "model_cfg": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map"},
        "text_cfg": {"context_length": 7, "vocab_size": 23, "width": 8, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"},
}


def to_open_clip(hf):
    """Returns tensors of SiglipModel as open_clip stores them."""
    vision, text, head = "vision_model", "text_model", "vision_model.head"
    tensors = {
        "logit_scale": hf["logit_scale"].reshape(()),
        "logit_bias": hf["logit_bias"].reshape(()),
        "visual.trunk.pos_embed": hf[f"{vision}.embeddings.position_embedding.weight"][None],
        "visual.trunk.attn_pool.latent": hf[f"{head}.probe"],
        "text.positional_embedding": hf[f"{text}.embeddings.position_embedding.weight"],
        "text.token_embedding.weight": hf[f"{text}.embeddings.token_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        inputs, pool = hf[f"{head}.attention.in_proj_{kind}"], "visual.trunk.attn_pool"
        tensors |= {
            f"visual.trunk.patch_embed.proj.{kind}": hf[f"{vision}.embeddings.patch_embedding.{kind}"],
            f"visual.trunk.norm.{kind}": hf[f"{vision}.post_layernorm.{kind}"],
            f"{pool}.q.{kind}": inputs[:12],
            f"{pool}.kv.{kind}": inputs[12:],
            f"{pool}.proj.{kind}": hf[f"{head}.attention.out_proj.{kind}"],
            f"{pool}.norm.{kind}": hf[f"{head}.layernorm.{kind}"],
            f"{pool}.mlp.fc1.{kind}": hf[f"{head}.mlp.fc1.{kind}"],
            f"{pool}.mlp.fc2.{kind}": hf[f"{head}.mlp.fc2.{kind}"],
            f"text.ln_final.{kind}": hf[f"{text}.final_layer_norm.{kind}"],
            f"text.text_projection.{kind}": hf[f"{text}.head.{kind}"],
        }
        for i in range(2):
            a, b = f"{vision}.encoder.layers.{i}", f"visual.trunk.blocks.{i}"
            c, d = f"{text}.encoder.layers.{i}", f"text.transformer.resblocks.{i}"
            tensors |= {
                f"{b}.attn.qkv.{kind}": np.concatenate([hf[f"{a}.self_attn.{part}_proj.{kind}"] for part in "qkv"]),
                f"{b}.attn.proj.{kind}": hf[f"{a}.self_attn.out_proj.{kind}"],
                f"{b}.norm1.{kind}": hf[f"{a}.layer_norm1.{kind}"],
                f"{b}.norm2.{kind}": hf[f"{a}.layer_norm2.{kind}"],
                f"{b}.mlp.fc1.{kind}": hf[f"{a}.mlp.fc1.{kind}"],
                f"{b}.mlp.fc2.{kind}": hf[f"{a}.mlp.fc2.{kind}"],
                f"{d}.attn.in_proj_{kind}": np.concatenate([hf[f"{c}.self_attn.{part}_proj.{kind}"] for part in "qkv"]),
                f"{d}.attn.out_proj.{kind}": hf[f"{c}.self_attn.out_proj.{kind}"],
                f"{d}.ln_1.{kind}": hf[f"{c}.layer_norm1.{kind}"],
                f"{d}.ln_2.{kind}": hf[f"{c}.layer_norm2.{kind}"],
                f"{d}.mlp.c_fc.{kind}": hf[f"{c}.mlp.fc1.{kind}"],
                f"{d}.mlp.c_proj.{kind}": hf[f"{c}.mlp.fc2.{kind}"],
            }
    return tensors


@pytest.fixture
def write_open_clip(tmp_path, write_checkpoint):
    """Returns a function that writes a checkpoint of open_clip, and its tensors as transformers names them."""

    def write(*, file="open_clip_model.safetensors", wrapper="", config=CONFIG, more=None):
        hf = write_checkpoint(tmp_path / "hf", "siglip")
        tensors = to_open_clip(hf) | (more or {})
        (tmp_path / "open_clip").mkdir()
        save_file({f"{wrapper}{name}": value for name, value in tensors.items()}, tmp_path / "open_clip" / file)
        (tmp_path / "open_clip/open_clip_config.json").write_text(json.dumps(config))
        return str(tmp_path / "open_clip"), hf

    return write


@pytest.mark.parametrize(("file", "wrapper"), [("open_clip_model.safetensors", ""), ("model.safetensors", "model.")])
def test_all_tensors_are_those_of_transformers(write_open_clip, file, wrapper):
    folder, hf = write_open_clip(file=file, wrapper=wrapper)
    weights = open_weights(folder, key=KEY)
    assert weights.tensors.keys() == hf.keys()
    for name, expected in hf.items():
        found = weights.read(name)
        assert found.shape == weights.tensors[name].shape
        np.testing.assert_array_equal(found, expected.reshape(found.shape), err_msg=name)


def test_the_config_has_the_sizes_of_both_towers(write_open_clip):
    tanh = CONFIG["model_cfg"]["text_cfg"] | {"act_kwargs": {"approximate": "tanh"}}
    folder, _ = write_open_clip(config={"model_cfg": CONFIG["model_cfg"] | {"text_cfg": tanh}})
    sizes = {"num_hidden_layers": 2, "hidden_size": 12, "intermediate_size": 48, "image_size": 16, "patch_size": 8}
    text = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 32, "max_position_embeddings": 7}
    assert open_weights(folder, key=KEY).config == {
        "model_type": "siglip",
        "vision_config": sizes | {"num_attention_heads": 12},
        "text_config": text
        | {"num_attention_heads": 2, "vocab_size": 23, "projection_size": 8, "hidden_act": "gelu_pytorch_tanh"},
    }


def test_unknown_tensors_of_an_encoder_are_kept_as_such(write_open_clip):
    folder, hf = write_open_clip(more={"visual.trunk.adapter.weight": np.zeros(3, np.float32)})
    assert open_weights(folder, key=KEY).tensors.keys() - hf.keys() == {"vision_model.trunk.adapter.weight"}


def test_an_unknown_size_is_reported(write_open_clip):
    vision = CONFIG["model_cfg"]["vision_cfg"] | {"timm_model_name": "vit_odd_patch16_siglip_224"}
    folder, _ = write_open_clip(config={"model_cfg": CONFIG["model_cfg"] | {"vision_cfg": vision}})
    with pytest.raises(ValueError, match=r"open_clip_config\.json is not supported: its timm_model_name is 'vit_odd"):
        open_weights(folder, key=KEY)
