"""Loading checkpoints into encoders: filled and fresh parameters, and every kind of mismatch."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from transformers import AutoConfig, logging

from cope_jax.models.backbones.files import Weights
from cope_jax.models.backbones.load import MODEL_TYPES, OPTIONAL, find_spec, prepare
from cope_jax.models.layers import ComputeOptions
from cope_jax.models.text import TextEncoder, TextSettings
from cope_jax.models.vision import VisionEncoder, VisionSettings

ENCODERS = {"vision": (VisionEncoder, VisionSettings), "text": (TextEncoder, TextSettings)}
CASES = [(encoder, model_type) for encoder in ENCODERS for model_type in MODEL_TYPES[encoder]]


def encoder_shapes(encoder, settings):
    """Returns an encoder with the shapes of its parameters instead of the arrays."""
    make, kind = ENCODERS[encoder]
    compute = ComputeOptions(dtype=jnp.dtype("float32"))
    return nnx.eval_shape(lambda: make(kind(**settings), compute=compute, rngs=nnx.Rngs(params=0)))


@pytest.fixture
def start(tmp_path, write_checkpoint, encoder_settings):
    """Returns a function that writes a checkpoint and prepares the tiny model's encoder to load it."""

    def run(kind, encoder, *, cut=False, changed=None, own_tokenizer=False, **checkpoint):
        own = {"normalisation": "clip"} if "clip" in kind.split("_") else {}
        settings = encoder_settings[encoder] | (own if encoder == "vision" else {}) | (changed or {})
        tensors = write_checkpoint(tmp_path, kind, **checkpoint)
        shapes = encoder_shapes(encoder, settings)
        rng = np.random.default_rng(1)
        params = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
            nnx.to_pure_dict(nnx.state(shapes, nnx.Param)),
        )
        given = {"settings": settings, "cut": cut, "own_tokenizer": own_tokenizer}
        weights = prepare(str(tmp_path), encoder, params, **given)
        return weights, tensors, params

    return run


def flat_numpy(tree):
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def loaded(start, *args, **kwargs):
    """Returns weights, tensors, initial parameters and loaded parameters, the last two by path."""
    weights, tensors, params = start(*args, **kwargs)
    return weights, tensors, flat_numpy(params), flat_numpy(weights.load(params))


def unchanged(fresh, new):
    return {path for path in fresh if np.array_equal(fresh[path], new[path])}


def test_xclip_fills_the_whole_vision_encoder(start):
    weights, tensors, fresh, new = loaded(start, "xclip", "vision", changed={"max_frames": 4})
    assert unchanged(fresh, new) == set()
    assert weights.fresh == ()
    layer = "vision_model.encoder.layers.1"
    np.testing.assert_array_equal(new["blocks/message_fc/kernel"][1], tensors[f"{layer}.message_fc.weight"].T)
    np.testing.assert_array_equal(new["blocks/block/norm2/scale"][1], tensors[f"{layer}.layer_norm2.weight"])
    query = new["blocks/message_attention/qkv/kernel"][1, :, 0].reshape(12, 12)
    np.testing.assert_array_equal(query, tensors[f"{layer}.message_attn.q_proj.weight"].T)
    np.testing.assert_array_equal(new["integration/position"], tensors["mit.position_embedding"][0])
    np.testing.assert_array_equal(new["project/kernel"], tensors["visual_projection.weight"].T)
    report = weights.report()
    assert "initialized randomly" not in report
    assert "unused: logit_scale (1), prompts_generator (2), prompts_visual_projection (1), " in report
    assert "text_model.encoder.layers.* (16), text_projection (1)" in report


def test_an_image_model_does_not_fill_layers_across_frames(start):
    weights, _, fresh, new = loaded(start, "clip", "vision")
    across_frames = {path for path in fresh if path.startswith(("blocks/message_", "integration/"))}
    assert unchanged(fresh, new) == across_frames
    assert weights.fresh == (
        "blocks/message_attention",
        "blocks/message_fc",
        "blocks/message_norm",
        "integration",
        "integration/blocks",
    )
    assert "initialized randomly: blocks/message_attention, " in weights.report()


@pytest.mark.parametrize("prefix", ["", "vision_model."])
@pytest.mark.parametrize(("kind", "frames"), [("clip_vision_model", False), ("xclip_vision_model", True)])
def test_a_vision_model_without_projection_does_not_fill_it(start, kind, frames, prefix):
    changed = {"cross_frame": frames, "integration_depth": 0}
    weights, _, fresh, new = loaded(start, kind, "vision", changed=changed, prefix=prefix)
    assert unchanged(fresh, new) == {"project/kernel"}
    assert weights.fresh == ("project",)


def test_a_vision_model_with_a_projection_fills_it(start):
    changed = {"cross_frame": False, "integration_depth": 0}
    sizes = {"prefix": "vision_model.", "projection": True}
    _, _, fresh, new = loaded(start, "clip_vision_model", "vision", changed=changed, **sizes)
    assert unchanged(fresh, new) == set()
    with pytest.raises(ValueError, match=r"output_width is 14; its projection_dim is 10"):
        start("clip_vision_model", "vision", changed=changed | {"output_width": 14}, **sizes)


def test_tensors_of_parts_that_the_model_lacks_are_unused(start):
    changed = {"cross_frame": False, "integration_depth": 0, "integration_heads": 5}
    weights, _, fresh, new = loaded(start, "xclip", "vision", changed=changed)
    assert unchanged(fresh, new) == set()
    assert {name for name in weights.unused if "message" in name or name.startswith("mit.")} >= {
        "mit.position_embedding",
        "vision_model.encoder.layers.1.message_ln.bias",
    }


def test_integration_layers_beyond_the_checkpoint_are_initialized_randomly(start):
    weights, tensors, fresh, new = loaded(start, "xclip", "vision", changed={"integration_depth": 3})
    assert weights.fresh == ("integration/blocks[1:]",)
    path = "integration/blocks/mlp/up/bias"
    np.testing.assert_array_equal(new[path][0], tensors["mit.encoder.layers.0.mlp.fc1.bias"])
    np.testing.assert_array_equal(new[path][1:], fresh[path][1:])


SIGLIP = {
    "vision": {
        "family": "siglip",
        "normalisation": "siglip",
        "pooling": "attention",
        "activation": "gelu_tanh",
        "across_frames": "gated",
        "output_width": 12,
    },
    "text": {"family": "siglip", "pooling": "last", "activation": "gelu_tanh", "output_width": 8},
}


def test_siglip_fills_both_encoders_except_for_layers_across_frames(start):
    weights, tensors, fresh, new = loaded(start, "siglip", "vision", changed=SIGLIP["vision"])
    assert unchanged(fresh, new) == {path for path in fresh if path.startswith(("blocks/message_", "integration/"))}
    assert {name.split(".")[0] for name in weights.unused} == {"text_model", "logit_scale", "logit_bias"}
    inputs = tensors["vision_model.head.attention.in_proj_weight"]
    np.testing.assert_array_equal(new["head/query/kernel"].reshape(12, 12), inputs[:12].T)
    np.testing.assert_array_equal(new["head/kv/kernel"][:, 1].reshape(12, 12), inputs[24:].T)
    bias = tensors["vision_model.head.attention.in_proj_bias"]
    np.testing.assert_array_equal(new["head/kv/bias"][0].reshape(12), bias[12:24])
    weights, tensors, fresh, new = loaded(start, "siglip", "text", changed=SIGLIP["text"])
    assert unchanged(fresh, new) == set()
    assert {name.split(".")[0] for name in weights.unused} == {"vision_model", "logit_scale", "logit_bias"}


@pytest.mark.parametrize(("rows", "row_of_padding"), [(23, 1), (256_000, 0)])
def test_padding_has_the_vector_that_it_had_in_training(start, rows, row_of_padding):
    """SigLIP pads with </s>, the second entry of its vocabulary, and SigLIP 2 with the first."""
    sizes = {"vocab_size": rows, "own_tokenizer": True}
    _, tensors, _, new = loaded(start, "siglip", "text", changed=SIGLIP["text"], **sizes)
    words = tensors["text_model.embeddings.token_embedding.weight"]
    np.testing.assert_array_equal(new["words/embedding"][0], words[row_of_padding])
    np.testing.assert_array_equal(new["words/embedding"][1:], words[1:23])


def test_siglip_needs_texts_of_its_length(start):
    with pytest.raises(ValueError, match=r"config\.data\.text_length is 5; its max_position_embeddings is 7"):
        start("siglip", "text", changed=SIGLIP["text"] | {"max_length": 5})


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_bert_with_or_without_head_fills_the_whole_text_encoder(start, prefix):
    weights, tensors, fresh, new = loaded(start, "bert", "text", prefix=prefix)
    assert unchanged(fresh, new) == set()
    positions = tensors[f"{prefix}embeddings.position_embeddings.weight"]
    np.testing.assert_array_equal(new["position"], positions[:7])
    value = new["blocks/attention/qkv/bias"][1, 2].reshape(8)
    np.testing.assert_array_equal(value, tensors[f"{prefix}encoder.layer.1.attention.self.value.bias"])
    assert set(weights.unused) == {name for name in tensors if name.startswith("cls.")}


def test_a_missing_pooler_is_initialized_randomly_and_an_additional_one_is_unused(start):
    def no_pooler(tensors):
        del tensors["pooler.dense.weight"], tensors["pooler.dense.bias"]

    weights, _, fresh, new = loaded(start, "bert", "text", change=no_pooler)
    assert unchanged(fresh, new) == {"pooler/kernel", "pooler/bias"}
    weights, _, fresh, new = loaded(start, "bert", "text", changed={"pooling": "mean"})
    assert weights.unused == ("pooler.dense.bias", "pooler.dense.weight")


def test_a_cut_takes_the_first_layers(start):
    weights, tensors, _, new = loaded(start, "bert", "text", depth=5, cut=True)
    path = "blocks/mlp/down/kernel"
    for i in range(2):
        np.testing.assert_array_equal(new[path][i], tensors[f"encoder.layer.{i}.output.dense.weight"].T)
    assert {name.split(".")[2] for name in weights.unused} == {"2", "3", "4"}


def test_positions_are_resized_to_other_resolutions_and_frame_counts(start):
    """Constant positions stay constant; that of the class token is kept."""

    def constant(tensors):
        tensors["vision_model.embeddings.position_embedding.weight"][1:] = 5
        tensors["mit.position_embedding"][:] = 3

    changed = {"image_size": 40, "max_frames": 7}
    _, tensors, _, new = loaded(start, "xclip", "vision", changed=changed, change=constant)
    table = tensors["vision_model.embeddings.position_embedding.weight"]
    assert new["position"].shape == (26, 12)
    np.testing.assert_array_equal(new["position"][0], table[0])
    np.testing.assert_allclose(new["position"][1:], 5, rtol=1e-6)
    np.testing.assert_allclose(new["integration/position"], np.full((7, 10), 3), rtol=1e-6)


def test_loaded_parameters_keep_their_shardings(start):
    """For sharded and replicated axes, and stacks deeper than the checkpoint; the values do not change."""
    weights, _, params = start("xclip", "vision", changed={"integration_depth": 3})
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("a", "b"))

    def sharding(leaf):
        """Shards the first two axes after that of the layers that have even sizes."""
        axes = iter(mesh.axis_names)
        names = [next(axes, None) if size % 2 == 0 else None for size in leaf.shape[1:]]
        return jax.NamedSharding(mesh, jax.P(None, *names))

    sharded = jax.tree.map(lambda leaf: jax.device_put(leaf, sharding(leaf)), params)
    result = weights.load(sharded)
    assert jax.tree.map(lambda x: x.sharding, result) == jax.tree.map(sharding, params)
    alone, together = flat_numpy(weights.load(params)), flat_numpy(result)
    for path in alone:
        np.testing.assert_array_equal(together[path], alone[path], err_msg=path)


def test_vision_settings_that_differ_are_listed_with_their_keys(start):
    def other(config):
        config["vision_config"] |= {"num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
        config["vision_config"] |= {"intermediate_size": 40, "mit_num_attention_heads": 5}

    changed = {"width": 24, "patch_size": 16, "output_width": 14}
    with pytest.raises(ValueError, match=r"config\.model\.vision\.init_from is .*, which is another model") as caught:
        start("xclip", "vision", changed=changed, change_config=other)
    for line in (
        "config.model.vision.width is 24; its hidden_size is 12",
        "config.model.vision.heads is 3; its num_attention_heads is 4",
        "config.model.vision.patch_size is 16; its patch_size is 8",
        "config.model.vision.activation is 'quick_gelu'; its hidden_act is 'gelu'",
        "config.model.vision.output_width is 14; its projection_dim is 10",
        "config.model.vision.integration_heads is 2; its mit_num_attention_heads is 5",
        "its intermediate_size is 40, but only 4 times the width, 48, is supported",
        "its layer_norm_eps is 1e-06, but only 1e-05 is supported",
    ):
        assert f"\n  {line}" in str(caught.value)


def test_another_pixel_normalization_is_reported(start):
    """CLIP weights expect the mean and deviation of CLIP, X-CLIP weights those of ImageNet."""
    wrong = {"clip": "imagenet", "clip_vision_model": "imagenet", "xclip": "clip"}
    for kind, normalisation in wrong.items():
        right = {"clip": "imagenet", "imagenet": "clip"}[normalisation]
        message = f"config.model.vision.normalisation is '{normalisation}'; its family's is '{right}'"
        with pytest.raises(ValueError, match=message):
            start(kind, "vision", changed={"normalisation": normalisation})


def test_text_settings_that_differ_are_listed_with_their_keys(start):
    def other(config):
        config |= {"hidden_act": "relu", "layer_norm_eps": 1e-5}

    with pytest.raises(ValueError, match="which is another model") as caught:
        start("bert", "text", vocab_size=230, changed={"max_length": 15, "heads": 4}, change_config=other)
    for line in (
        "config.model.text.heads is 4; its num_attention_heads is 2",
        "its hidden_act is 'relu', but only 'gelu' is supported",
        "its layer_norm_eps is 1e-05, but only 1e-12 is supported",
        "the run's tokenizer has 23 entries, but it has vectors for 230: set "
        "config.data.tokenizer to that of the weights",
        "config.data.text_length is 15, but it has only 14 positions",
    ):
        assert f"\n  {line}" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "encoder", "depth", "message"),
    [
        ("xclip", "vision", 3, r"vision\.depth is 2, but it has 3: config\.model\.vision\.init_cut=True takes the"),
        ("clip", "vision", 1, r"config\.model\.vision\.depth is 2, but it has only 1"),
        ("bert", "text", 6, r"text\.depth is 2, but it has 6: config\.model\.text\.init_cut=True takes the first 2"),
    ],
)
def test_another_depth_is_reported_without_a_cut(start, kind, encoder, depth, message):
    with pytest.raises(ValueError, match=message):
        start(kind, encoder, depth=depth)


def test_all_mismatches_are_listed(start):
    def damage(tensors):
        layer = "vision_model.encoder.layers.1"
        del tensors[f"{layer}.mlp.fc2.bias"], tensors["visual_projection.weight"]
        tensors[f"{layer}.layer_norm1.bias"] = np.zeros(13, np.float32)
        tensors["vision_model.post_layernorm.bias"] = np.zeros(12, np.int8)
        tensors["vision_model.adapter.weight"] = np.zeros((2, 3), np.float32)

    with pytest.raises(ValueError, match="which does not fit the model") as caught:
        start("xclip", "vision", change=damage)
    lines = str(caught.value).split("\n  ")[1:]
    assert lines == [
        "parameter blocks/block/mlp/down/bias (2, 12): tensor vision_model.encoder.layers.1.mlp.fc2.bias is missing",
        "parameter project/kernel (12, 10): tensor visual_projection.weight is missing",
        "tensor vision_model.adapter.weight (2, 3): unknown",
        "tensor vision_model.encoder.layers.1.layer_norm1.bias (13,): "
        "parameter blocks/block/norm1/bias (2, 12) needs (12,)",
        "tensor vision_model.post_layernorm.bias is I8: parameter post_norm/bias needs one of F64, F32, F16, BF16",
    ]


def test_parameters_that_no_tensor_fills_are_listed(start):
    """No published model has the convolutional stem."""
    with pytest.raises(ValueError, match=r"parameter stem/project/kernel \(5, 12\): no tensor of this model fills it"):
        start("clip", "vision", changed={"stem": "conv", "stem_widths": (4, 5), "stem_blocks": (0, 0)})


@pytest.mark.parametrize(
    ("kind", "encoder", "families"),
    [("bert", "vision", "xclip, xclip_vision_model, clip"), ("xclip", "text", "bert, chinese_clip")],
)
def test_a_model_without_that_encoder_is_reported(start, kind, encoder, families):
    with pytest.raises(ValueError, match=rf"model_type is '{kind}'; the {encoder} encoder supports {families}"):
        start(kind, encoder)


def test_an_invalid_config_is_reported(start):
    def odd(config):
        config["vision_config"]["num_attention_heads"] = 5

    with pytest.raises(ValueError, match=r"whose config\.json is invalid: [^$]*not a multiple"):
        start("clip", "vision", change_config=odd)


@pytest.mark.parametrize(("kind", "encoder"), [("bert", "text"), ("clip", "vision"), ("xclip", "vision")])
@pytest.mark.parametrize("wrapper", ["module.", "model.", "0.auto_model.", "module.model.", "_orig_mod."])
def test_prefixes_of_wrappers_are_accepted(start, kind, encoder, wrapper):
    def wrap(tensors):
        for name in list(tensors):
            tensors[wrapper + name] = tensors.pop(name)

    changed = {"cross_frame": kind == "xclip", "integration_depth": int(kind == "xclip")} if encoder == "vision" else {}
    _, tensors, fresh, new = loaded(start, kind, encoder, changed=changed, change=wrap)
    assert unchanged(fresh, new) == set()
    if encoder == "text":
        words = tensors[f"{wrapper}embeddings.word_embeddings.weight"]
        np.testing.assert_array_equal(new["words/embedding"], words)


@pytest.mark.parametrize(
    "head", ["classifier", "qa_outputs", "bert.classifier", "cls.predictions.transform.dense", "2.linear"]
)
def test_heads_are_unused(start, head):
    prefix = "bert." if head != "bert.classifier" else "model."

    def add(tensors):
        for name in [name for name in tensors if name.startswith("cls.")]:
            del tensors[name]
        tensors[f"{head}.weight"] = np.zeros((2, 8), np.float32)
        tensors[f"{head}.bias"] = np.full(2, np.nan, np.float32)

    weights, _, fresh, new = loaded(start, "bert", "text", prefix=prefix, change=add)
    assert unchanged(fresh, new) == set()
    assert weights.unused == (f"{head}.bias", f"{head}.weight")


def test_a_classifier_of_images_loads_without_projection(start):
    def classify(tensors):
        del tensors["visual_projection.weight"], tensors["text_projection.weight"]
        tensors["classifier.weight"] = np.zeros((2, 12), np.float32)

    changed = {"cross_frame": False, "integration_depth": 0}
    weights, _, fresh, new = loaded(start, "clip", "vision", changed=changed, change=classify)
    assert unchanged(fresh, new) == {"project/kernel"}
    assert weights.fresh == ("project",)


def test_several_encoders_are_reported(start):
    def twice(tensors):
        tensors |= {f"query.{name}": value for name, value in tensors.items()}
        tensors |= {f"passage.{name}": value for name, value in tensors.items() if not name.startswith("query.")}
        for name in [name for name in tensors if not name.startswith(("query.", "passage."))]:
            del tensors[name]

    with pytest.raises(ValueError, match=r"which has several encoders, 'passage\.' and 'query\.'; keep the tensors of"):
        start("bert", "text", change=twice)


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_any_number_of_segments_loads(start, rows):
    name = "embeddings.token_type_embeddings.weight"

    def segments(tensors):
        tensors[name] = np.arange(rows * 8, dtype=np.float32).reshape(rows, 8)

    def config(values):
        values["type_vocab_size"] = rows

    _, tensors, _, new = loaded(start, "bert", "text", change=segments, change_config=config)
    assert new["segment"].shape == (2, 8)
    np.testing.assert_array_equal(new["segment"][0], tensors[name][0])


@pytest.mark.parametrize(("rows", "own"), [(24, False), (150, False), (5000, True)])
def test_rows_after_the_vocabulary_are_padding(start, rows, own):
    _, tensors, _, new = loaded(start, "bert", "text", vocab_size=rows, own_tokenizer=own)
    np.testing.assert_array_equal(new["words/embedding"], tensors["embeddings.word_embeddings.weight"][:23])


def test_fewer_vectors_than_tokens_are_reported(start):
    with pytest.raises(ValueError, match="tokenizer has 23 entries, but it has vectors for 22"):
        start("bert", "text", vocab_size=22, own_tokenizer=True)


def test_the_text_encoder_of_chinese_clip_loads_alone(start):
    def config(values):
        values["model_type"] = "chinese_clip_text_model"

    _, _, fresh, new = loaded(start, "bert", "text", change_config=config)
    assert unchanged(fresh, new) == set()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_reported(start, value):
    def damage(tensors):
        tensors["encoder.layer.1.output.dense.weight"][3, 4] = value

    weights, _, params = start("bert", "text", change=damage)
    match = r"model\.safetensors: 1 of 256 values of tensor encoder\.layer\.1\.output\.dense\.weight are not finite"
    with pytest.raises(ValueError, match=match):
        weights.load(params)


@pytest.mark.parametrize(
    ("content", "theirs"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "class"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, "max_tokens + mean"),
    ],
)
def test_the_pooling_of_sentence_transformers_is_named_if_it_differs(start, tmp_path, content, theirs):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 8} | content))
    report = start("bert", "text")[0].report()
    assert f"by {theirs!r}, but config.model.text.pooling is 'pooler'" in report
    if theirs in ("mean", "class"):
        assert "WARNING" not in start("bert", "text", changed={"pooling": theirs})[0].report()


def test_senseless_sizes_are_reported(start):
    def no_patches(config):
        config["vision_config"]["patch_size"] = 0

    with pytest.raises(ValueError, match=r"whose config\.json is invalid: .*zero"):
        start("clip", "vision", change_config=no_patches)
    with pytest.raises(ValueError, match=r"its config\.json has 1000000000 layers, but it has only"):
        start("bert", "text", cut=True, change_config=lambda config: config.update(num_hidden_layers=10**9))


def test_reading_a_config_prints_no_warnings_and_keeps_the_verbosity_of_transformers(caplog, monkeypatch):
    """It warns about its own default values for SigLIP."""
    monkeypatch.setattr(logging._get_library_root_logger(), "handlers", [caplog.handler])
    before = logging.get_verbosity()
    logging.set_verbosity_warning()
    try:
        find_spec("vision", Weights("siglip", {"model_type": "siglip"}, {}), what="it is")
        assert logging.get_verbosity() == logging.WARNING
    finally:
        logging.set_verbosity(before)
    assert caplog.messages == []


@pytest.mark.parametrize(("encoder", "model_type"), CASES)
def test_sources_are_parameters_and_other_parameters_are_optional(encoder_settings, encoder, model_type):
    """For an encoder with the settings that the checkpoint requires, at the default sizes of transformers."""
    spec = MODEL_TYPES[encoder][model_type](AutoConfig.for_model(model_type), ())
    assert spec.unsupported == ()
    theirs = {key: value for key, value in spec.settings().items() if key in encoder_settings[encoder]}
    settings = encoder_settings[encoder] | theirs
    paths = set(flatten_dict(nnx.to_pure_dict(nnx.state(encoder_shapes(encoder, settings), nnx.Param)), sep="/"))
    assert all(any(re.search(pattern, path) for pattern in OPTIONAL) for path in set(spec.sources) - paths)
    for path in paths - set(spec.sources):
        assert any(re.search(pattern, path) for pattern in spec.optional), path
    for path, source in spec.sources.items():
        assert source.stacked == ("blocks" in path), path
