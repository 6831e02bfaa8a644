"""config.json: a work directory keeps its run."""

import dataclasses
import json
from functools import reduce

import pytest

from configs import cope_rope, default
from cope_jax.runs.config_file import load_config, make_paths_absolute, save_config
from cope_jax.runs.config_validation import ADDED_FIELDS, replace_fields, resolve_config

DEFAULT = resolve_config(default.get_config())


def test_configs_come_back_in_the_format_of_earlier_versions(tmp_path):
    fields = cope_rope.get_config()
    config = resolve_config(fields)
    save_config(config, tmp_path)
    assert (tmp_path / "config.json").read_text() == fields.to_json(indent=2) + "\n"
    assert load_config(tmp_path) == config


def test_runs_of_earlier_versions_are_read_and_resumed(tmp_path):
    save_config(DEFAULT, tmp_path)
    (tmp_path / "checkpoints/1000").mkdir(parents=True)
    fields = json.loads((tmp_path / "config.json").read_text())
    for key in ADDED_FIELDS:
        *sections, name = key.split(".")
        del reduce(dict.__getitem__, sections, fields)[name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert load_config(tmp_path) == DEFAULT
    save_config(DEFAULT, tmp_path)
    with pytest.raises(ValueError, match=r"config\.data\.frame_choice: 'random' before, 'center' now"):
        save_config(replace_fields(DEFAULT, {"data.frame_choice": "center"}), tmp_path)


def test_pairs_of_views_of_earlier_versions_are_read(tmp_path):
    config = resolve_config(cope_rope.get_config())
    save_config(config, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    for term, weights in (("sigmoid", (0.0, 0.0)), ("infonce", (1.0, 0.5))):
        del fields["losses"][term]["pairs"]
        fields["losses"][term] |= dict(zip(("page_text", "page_vision"), weights, strict=True))
    (tmp_path / "config.json").write_text(json.dumps(fields))
    losses = load_config(tmp_path).losses
    expected = [(a, b, 0.5 if a == "page.vision" else w) for a, b, w in config.losses.infonce.pairs]
    assert (losses.sigmoid.pairs, list(losses.infonce.pairs)) == ((), expected)


def test_a_run_resumes_with_other_settings_but_stays_the_same_run(tmp_path):
    save_config(DEFAULT, tmp_path)
    (tmp_path / "checkpoints/1000").mkdir(parents=True)
    changes = {"mesh.fsdp": 2, "train.log_every": 7, "model.scan_layers": False, "model.remat": "block"}
    config = replace_fields(DEFAULT, changes)
    save_config(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mesh"]["fsdp"] == 2
    config = replace_fields(config, {"train.batch_size": 64, "data.crop_scale": (0.5, 1.0)})
    with pytest.raises(ValueError, match=r"contains a run with another config; choose another --workdir") as caught:
        save_config(config, tmp_path)
    assert str(caught.value).splitlines()[1:] == [
        "  config.data.crop_scale: [0.64, 1.0] before, [0.5, 1.0] now",
        "  config.train.batch_size: 128 before, 64 now",
    ]


def test_a_failed_start_may_be_repeated_with_another_config(tmp_path):
    """Its tokenizer, features and results of the untrained model may be those of the old config."""
    save_config(DEFAULT, tmp_path)
    folders = [tmp_path / name for name in ("tokenizer", "features", "eval/0")]
    for folder in folders:
        folder.mkdir(parents=True)
    save_config(DEFAULT, tmp_path)
    assert all(folder.exists() for folder in folders)
    save_config(replace_fields(DEFAULT, {"data.vocab_size": 77}), tmp_path)
    assert load_config(tmp_path).data.vocab_size == 77
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize("frames", ["eval.frames.live", "data.frames.live"])
def test_numbers_of_frames_are_fixed_once_positions_are_trained(tmp_path, frames):
    save_config(DEFAULT, tmp_path)
    (tmp_path / "checkpoints/1000").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"config.{frames}: 8 before, 16 now"):
        save_config(replace_fields(DEFAULT, {frames: 16}), tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--workdir must name the folder of a training run"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config.json is not valid JSON \(Expecting"),
        ("[" * 100_000, r"config.json is not valid JSON \(maximum recursion depth"),
        ("[]", r"config.json is not a JSON object: copy it"),
        ("{}", r"config.json: invalid config:\n  config.seed is missing; expected an integer"),
    ],
)
def test_an_invalid_file_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path)


def test_a_field_that_the_file_lacks_counts_as_a_difference(tmp_path):
    fields = dataclasses.asdict(DEFAULT)
    del fields["train"]["batch_size"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "checkpoints/1000").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"config.train.batch_size: nothing before, 128 now"):
        save_config(DEFAULT, tmp_path)


def test_folders_become_absolute_and_names_of_the_hub_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    changes = {"data.data_dir": "data", "model.vision.init_from": "weights", "data.tokenizer": "hfl/rbt3"}
    config = make_paths_absolute(replace_fields(DEFAULT, changes | {"model.text.init_from": "hfl/rbt3"}))
    assert config.data.data_dir == str(tmp_path / "data")
    assert config.model.vision.init_from == str(tmp_path / "weights")
    assert config.model.text.init_from == config.data.tokenizer == "hfl/rbt3"
