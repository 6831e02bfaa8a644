"""Finding and reading checkpoints: formats, invalid files, missing files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from cope_jax.models.backbones.files import INDEX, SINGLE_FILE, open_weights

KEY = "config.model.text.init_from"


def write(folder, files, *, index=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    if index is not None:
        (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return str(folder)


def test_tensors_are_listed_and_read_as_float32(tmp_path):
    """In each published float type; bfloat16 rounds 1 + 1/256 to 1."""
    half = np.asarray([1.5, -2.0], np.float16)
    tensors = {"a": np.ones((2, 3)), "b": half, "c": np.asarray([1 + 1 / 256], jnp.bfloat16), "n": np.arange(3)}
    weights = open_weights(write(tmp_path, {SINGLE_FILE: tensors}), key=KEY)
    assert {name: (t.shape, t.dtype) for name, t in weights.tensors.items()} == {
        "a": ((2, 3), "F64"),
        "b": ((2,), "F16"),
        "c": ((1,), "BF16"),
        "n": ((3,), "I64"),
    }
    assert weights.read("a").dtype == weights.read("b").dtype == weights.read("c").dtype == np.float32
    np.testing.assert_array_equal(weights.read("b"), [1.5, -2.0])
    assert weights.read("c")[0] == 1.0
    assert weights.config == {"model_type": "bert"}


def test_weights_in_several_files_are_found_by_their_index(tmp_path):
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    files = {one: {"a": np.ones(2)}, two: {"b": np.zeros(3)}}
    weights = open_weights(write(tmp_path, files, index={"a": one, "b": two}), key=KEY)
    assert weights.tensors["a"].file.name == one
    np.testing.assert_array_equal(weights.read("b"), np.zeros(3))
    (tmp_path / two).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {two} listed in its {INDEX}"):
        open_weights(str(tmp_path), key=KEY)


def test_old_names_of_norms_are_translated(tmp_path):
    tensors = {"x.LayerNorm.gamma": np.ones(2), "x.LayerNorm.beta": np.zeros(2), "gamma": np.ones(1)}
    weights = open_weights(write(tmp_path, {SINGLE_FILE: tensors}), key=KEY)
    assert set(weights.tensors) == {"x.LayerNorm.weight", "x.LayerNorm.bias", "gamma"}
    np.testing.assert_array_equal(weights.read("x.LayerNorm.weight"), [1, 1])


def test_two_tensors_of_the_same_name_are_reported(tmp_path):
    tensors = {"x.LayerNorm.gamma": np.ones(2), "x.LayerNorm.weight": np.ones(2)}
    with pytest.raises(ValueError, match=r"has two tensors x\.LayerNorm\.weight: in .*model\.safetensors"):
        open_weights(write(tmp_path, {SINGLE_FILE: tensors}), key=KEY)


def test_a_pickle_is_not_read_and_the_error_shows_alternatives(tmp_path):
    folder = write(tmp_path, {})
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors.*pickle.*@refs/pr/1.*python -c .*torch"):
        open_weights(folder, key=KEY)


def test_an_incomplete_file_is_reported(tmp_path):
    folder = write(tmp_path, {SINGLE_FILE: {"a": np.ones(9)}})
    whole = (tmp_path / SINGLE_FILE).read_bytes()
    (tmp_path / SINGLE_FILE).write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete safetensors file .*download it again"):
        open_weights(folder, key=KEY)


def test_a_folder_without_config_is_reported(tmp_path):
    folder = write(tmp_path, {SINGLE_FILE: {"a": np.ones(1)}})
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{KEY} is .* has no config\.json"):
        open_weights(folder, key=KEY)


@pytest.mark.parametrize("file", ["config.json", INDEX])
def test_an_invalid_json_file_is_reported(tmp_path, file):
    folder = write(tmp_path, {"part.safetensors": {"a": np.ones(1)}}, index={"a": "part.safetensors"})
    (tmp_path / file).write_text('{"cut": ')
    with pytest.raises(ValueError, match=rf"{file} is not valid JSON .*: download it again"):
        open_weights(folder, key=KEY)


def test_an_index_cannot_refer_to_other_folders(tmp_path):
    write(tmp_path / "other", {"part.safetensors": {"a": np.ones(1)}})
    folder = write(tmp_path / "weights", {}, index={"a": "../other/part.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"lacks part\.safetensors listed in its"):
        open_weights(folder, key=KEY)


@pytest.mark.parametrize("name", ["no-one/no-such-model", "./no/such/folder", "no-one/no-such-model@refs/pr/1"])
def test_without_network_the_error_says_what_to_download_and_where_to_put_it(name, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = name.partition("@")[0]
    with pytest.raises(
        FileNotFoundError, match=rf"{KEY} is '{name}'.*hf download {repository} --local-dir FOLDER.*set {KEY} to it"
    ):
        open_weights(name, key=KEY)


def test_a_repository_is_downloaded_at_its_revision_and_without_pickles(tmp_path, monkeypatch):
    folder = write(tmp_path / "snapshot", {SINGLE_FILE: {"a": np.ones(1)}})
    asked = []

    def snapshot_download(repository, *, revision, allow_patterns, local_files_only):
        asked.append((repository, revision))
        assert not any(pattern.endswith(("bin", "*")) for pattern in allow_patterns)
        return folder

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for name in ("hfl/rbt3", "hfl/rbt3@refs/pr/1"):
        weights = open_weights(name, key=KEY)
        assert weights.name == name
        assert set(weights.tensors) == {"a"}
    assert asked == [("hfl/rbt3", None), ("hfl/rbt3", "refs/pr/1")]


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "pytorch_model.safetensors"])
def test_a_single_file_of_another_name_is_read(tmp_path, name):
    assert set(open_weights(write(tmp_path, {name: {"a": np.ones(1)}}), key=KEY).tensors) == {"a"}


def test_an_index_of_a_variant_is_read(tmp_path):
    parts = {f"model.fp16-0000{i}-of-00002.safetensors": {"ab"[i - 1]: np.ones(i)} for i in (1, 2)}
    folder = write(tmp_path, parts)
    index = {"weight_map": {"a": "model.fp16-00001-of-00002.safetensors", "b": "model.fp16-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    assert set(open_weights(folder, key=KEY).tensors) == {"a", "b"}


def test_several_files_without_an_index_are_reported(tmp_path):
    folder = write(tmp_path, {"model.bf16.safetensors": {"a": np.ones(1)}, "model.fp16.safetensors": {"a": np.ones(1)}})
    match = r"has model\.bf16\.safetensors, model\.fp16\.safetensors; rename the one to use to model\.safetensors"
    with pytest.raises(ValueError, match=match):
        open_weights(folder, key=KEY)
