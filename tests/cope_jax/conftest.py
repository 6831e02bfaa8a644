"""Checkpoints as transformers writes them, spelled out name by name: small, random, written without torch."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cope_jax.runs.config import flatten
from cope_jax.training import loop
from cope_jax.training.loop import train
from cope_jax.training.plan import make_plan

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def clip_attention(name: str, width: int) -> Shapes:
    parts = [linear(f"{name}.{part}_proj", width, width) for part in ("k", "v", "q", "out")]
    return {key: shape for part in parts for key, shape in part.items()}


def clip_layer(name: str, width: int) -> Shapes:
    return {
        **clip_attention(f"{name}.self_attn", width),
        **norm(f"{name}.layer_norm1", width),
        **linear(f"{name}.mlp.fc1", width, 4 * width),
        **linear(f"{name}.mlp.fc2", 4 * width, width),
        **norm(f"{name}.layer_norm2", width),
    }


def clip_vision(name: str, depth: int, *, pre_norm: str) -> Shapes:
    shapes = {
        f"{name}embeddings.class_embedding": (12,),
        f"{name}embeddings.patch_embedding.weight": (12, 3, 8, 8),
        f"{name}embeddings.position_embedding.weight": (5, 12),
        **norm(f"{name}{pre_norm}", 12),
        **norm(f"{name}post_layernorm", 12),
    }
    for i in range(depth):
        shapes |= clip_layer(f"{name}encoder.layers.{i}", 12)
    return shapes


def messages(name: str, depth: int) -> Shapes:
    shapes = {}
    for i in range(depth):
        layer = f"{name}encoder.layers.{i}"
        shapes |= linear(f"{layer}.message_fc", 12, 12) | norm(f"{layer}.message_ln", 12)
        shapes |= clip_attention(f"{layer}.message_attn", 12)
    return shapes


VISION_CONFIG = {
    "hidden_size": 12,
    "intermediate_size": 48,
    "num_attention_heads": 3,
    "image_size": 16,
    "patch_size": 8,
}


def xclip(depth: int = 2) -> tuple[Shapes, dict]:
    """XCLIPModel of 4 frames, with something of all that its vision side does not need."""
    shapes = clip_vision("vision_model.", depth, pre_norm="pre_layernorm") | {
        "logit_scale": (),
        "visual_projection.weight": (10, 12),
        "mit.position_embedding": (1, 4, 10),
        **clip_layer("mit.encoder.layers.0", 10),
        "prompts_visual_projection": (12, 10),
        **norm("prompts_generator.layernorm", 10),
        **clip_layer("text_model.encoder.layers.0", 6),
        "text_projection.weight": (10, 6),
    }
    shapes |= messages("vision_model.", depth)
    mit = {"mit_hidden_size": 10, "mit_intermediate_size": 40, "mit_num_attention_heads": 2, "num_frames": 4}
    vision = VISION_CONFIG | mit | {"num_hidden_layers": depth}
    return shapes, {"model_type": "xclip", "projection_dim": 10, "vision_config": vision, "text_config": {}}


def xclip_vision_model(depth: int = 2, *, prefix: str = "") -> tuple[Shapes, dict]:
    """XCLIPVisionModel, which has neither projection nor integration; older versions of transformers wrote a prefix."""
    shapes = clip_vision(prefix, depth, pre_norm="pre_layernorm") | messages(prefix, depth)
    return shapes, VISION_CONFIG | {"model_type": "xclip_vision_model", "num_hidden_layers": depth}


def clip(depth: int = 2) -> tuple[Shapes, dict]:
    """CLIPModel."""
    shapes = clip_vision("vision_model.", depth, pre_norm="pre_layrnorm") | {
        "logit_scale": (),
        "vision_model.embeddings.position_ids": (1, 5),
        "visual_projection.weight": (10, 12),
        **clip_layer("text_model.encoder.layers.0", 6),
        "text_projection.weight": (10, 6),
    }
    vision = VISION_CONFIG | {"num_hidden_layers": depth}
    return shapes, {"model_type": "clip", "projection_dim": 10, "vision_config": vision, "text_config": {}}


def clip_vision_model(depth: int = 2, *, prefix: str = "", projection: bool = False) -> tuple[Shapes, dict]:
    """CLIPVisionModel, or CLIPVisionModelWithProjection."""
    shapes = clip_vision(prefix, depth, pre_norm="pre_layrnorm")
    if projection:
        shapes["visual_projection.weight"] = (10, 12)
    sizes = {"num_hidden_layers": depth, "projection_dim": 10 if projection else 512}
    return shapes, VISION_CONFIG | sizes | {"model_type": "clip_vision_model"}


def text_tower(name: str, depth: int, *, width: int, rows: int, positions: int) -> Shapes:
    """The text tower of CLIP and SigLIP, without projection."""
    shapes = {
        f"{name}embeddings.token_embedding.weight": (rows, width),
        f"{name}embeddings.position_embedding.weight": (positions, width),
        **norm(f"{name}final_layer_norm", width),
    }
    for i in range(depth):
        shapes |= clip_layer(f"{name}encoder.layers.{i}", width)
    return shapes


def siglip(depth: int = 2, *, vocab_size: int = 23) -> tuple[Shapes, dict]:
    """SiglipModel, of SigLIP or SigLIP 2."""
    vision, head = "vision_model.", "vision_model.head"
    shapes = {
        "logit_scale": (1,),
        "logit_bias": (1,),
        **linear("text_model.head", 8, 8),
        **text_tower("text_model.", depth, width=8, rows=vocab_size, positions=7),
        f"{vision}embeddings.patch_embedding.weight": (12, 3, 8, 8),
        f"{vision}embeddings.patch_embedding.bias": (12,),
        f"{vision}embeddings.position_embedding.weight": (4, 12),
        **norm(f"{vision}post_layernorm", 12),
        f"{head}.probe": (1, 1, 12),
        f"{head}.attention.in_proj_weight": (36, 12),
        f"{head}.attention.in_proj_bias": (36,),
        **linear(f"{head}.attention.out_proj", 12, 12),
        **norm(f"{head}.layernorm", 12),
        **linear(f"{head}.mlp.fc1", 12, 48),
        **linear(f"{head}.mlp.fc2", 48, 12),
    }
    for i in range(depth):
        shapes |= clip_layer(f"{vision}encoder.layers.{i}", 12)
    text = {"hidden_size": 8, "intermediate_size": 32, "num_attention_heads": 2, "max_position_embeddings": 7}
    text |= {"num_hidden_layers": depth, "vocab_size": vocab_size}
    return shapes, {
        "model_type": "siglip",
        "vision_config": VISION_CONFIG | {"num_hidden_layers": depth},
        "text_config": text,
    }


def bert(depth: int = 2, *, prefix: str = "", vocab_size: int = 23) -> tuple[Shapes, dict]:
    """BertModel, or with a prefix BertForPreTraining."""
    shapes = {
        f"{prefix}embeddings.word_embeddings.weight": (vocab_size, 8),
        f"{prefix}embeddings.position_embeddings.weight": (14, 8),
        f"{prefix}embeddings.token_type_embeddings.weight": (2, 8),
        **norm(f"{prefix}embeddings.LayerNorm", 8),
        **linear(f"{prefix}pooler.dense", 8, 8),
    }
    for i in range(depth):
        layer = f"{prefix}encoder.layer.{i}"
        for part in ("query", "key", "value"):
            shapes |= linear(f"{layer}.attention.self.{part}", 8, 8)
        shapes |= linear(f"{layer}.attention.output.dense", 8, 8) | norm(f"{layer}.attention.output.LayerNorm", 8)
        shapes |= linear(f"{layer}.intermediate.dense", 8, 32)
        shapes |= linear(f"{layer}.output.dense", 32, 8) | norm(f"{layer}.output.LayerNorm", 8)
    if prefix:
        shapes |= {"cls.predictions.bias": (vocab_size,)} | linear("cls.seq_relationship", 8, 2)
    sizes = {"hidden_size": 8, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": depth}
    return shapes, sizes | {"model_type": "bert", "vocab_size": vocab_size, "max_position_embeddings": 14}


KINDS: dict[str, Callable[..., tuple[Shapes, dict]]] = {
    "xclip": xclip,
    "xclip_vision_model": xclip_vision_model,
    "clip": clip,
    "clip_vision_model": clip_vision_model,
    "siglip": siglip,
    "bert": bert,
}


@pytest.fixture(scope="session")
def write_checkpoint():
    """A function that writes a random checkpoint of some kind to a folder, and gives its tensors."""

    def write(
        folder: Path, kind: str, *, change_config=lambda config: None, change=lambda tensors: None, **sizes
    ) -> dict[str, np.ndarray]:
        shapes, config = KINDS[kind](**sizes)
        rng = np.random.default_rng(0)
        tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        change_config(config)
        change(tensors)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        return tensors

    return write


@pytest.fixture(scope="session")
def make_quick_config(make_tiny_config):
    """A function that makes the config of a run of five steps with little to compile."""

    def make(**changes):
        return make_tiny_config(
            {
                "data.frames.video": 1,
                "data.frames.live": 1,
                "model.text_domains": ("page",),
                "model.text.heads": 4,
                "model.vision.heads": 4,
                "model.vision.cross_frame": False,
                "model.vision.drop_path": 0.0,
                "model.vision.integration_depth": 0,
                "train.steps": 5,
                "train.log_every": 1,
            }
            | changes
        )

    return make


@pytest.fixture(scope="module")
def shared_plans():
    """Lets the runs of a module that have the same config and mesh share a plan: each would trace its step again."""
    plans = {}

    def shared_plan(config, mesh, *, vocab_size):
        key = repr(config), mesh, vocab_size
        if key not in plans:
            plans[key] = make_plan(config, mesh, vocab_size=vocab_size)
        return plans[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_plan", shared_plan)
        yield


@pytest.fixture(scope="session")
def write_config(tmp_path_factory):
    """A function that writes a config to a file that `--config` takes."""

    def write(config):
        path = tmp_path_factory.mktemp("config") / "config.py"
        path.write_text(
            "from configs import default\n"
            "def get_config():\n"
            "    config = default.get_config()\n"
            f"    config.update_from_flattened_dict({flatten(config)!r})\n"
            "    return config\n"
        )
        return path

    return write


@pytest.fixture(scope="session")
def read_records():
    """A function that gives the records of a TFRecord file."""

    def read(path):
        content, place = path.read_bytes(), 0
        while place < len(content):  # eight bytes of length, four of a checksum, the content, four more
            (length,) = struct.unpack_from("<Q", content, place)
            yield content[place + 12 : place + 12 + length]
            place += length + 16

    return read


@pytest.fixture(scope="session")
def workdir(make_tiny_config, tmp_path_factory):
    """A work directory of a tiny run."""
    folder = tmp_path_factory.mktemp("run")
    train(make_tiny_config(), folder)
    return folder
