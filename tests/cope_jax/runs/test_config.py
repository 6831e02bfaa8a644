"""Configs: every default is valid, every fault is named, a work directory keeps its run."""

import json
import re
from pathlib import Path

import pytest

import configs.cope_rope
import configs.cope_rope_sigmoid
import configs.default
import configs.demo
import configs.grocery
import configs.scratch
from cope_jax.runs.config import flatten, load_config, make_paths_absolute, save_config, validate

EXPERIMENTS = (
    configs.cope_rope,
    configs.cope_rope_sigmoid,
    configs.default,
    configs.demo,
    configs.grocery,
    configs.scratch,
)
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("module", EXPERIMENTS, ids=lambda module: module.__name__)
def test_experiments_are_valid_locked_and_survive_the_work_directory(module, tmp_path):
    config = module.get_config()
    validate(config)
    with pytest.raises(AttributeError, match="batch_size"):
        config.train.batch_sise = 3
    save_config(config, tmp_path)
    assert dict(flatten(load_config(tmp_path))) == dict(flatten(config))


def test_every_file_of_configs_is_tried():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__"}
    assert files == {module.__name__.split(".")[1] for module in EXPERIMENTS}


def test_every_key_has_a_comment_and_is_read():
    """A field nobody reads would be a setting without effect."""
    lines = (ROOT / "configs/default.py").read_text(encoding="utf-8").splitlines()
    assignments = [line for line in lines if re.match(r"    \w+(\.\w+)+ = ", line)]
    assert [line for line in assignments if "#" not in line and "ConfigDict()" not in line] == []
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "cope_jax").rglob("*.py"))
    keys = {key.split(".")[-1] for key, _ in flatten(configs.default.get_config())}
    assert [key for key in keys if not re.search(rf"\b{key}\b", code)] == []


def test_all_faults_are_reported_together():
    config = configs.default.get_config()
    config.data.image_size = 200
    config.data.short_clips = "loop"
    config.model.vision.heads = 7
    config.optimizer.warmup_steps = 60_000
    config.data.text_noise = 1.5
    config.train.batch_size = 0
    with pytest.raises(ValueError, match="the config has faults") as caught:
        validate(config)
    text = str(caught.value)
    for part in (
        "config.data.image_size 200 is no multiple of model.vision.patch_size 16",
        "config.data.short_clips is 'loop'; choose one of repeat, mask",
        "config.model.vision.width 768 is no multiple of its 7 heads",
        "config.optimizer.warmup_steps 60000 must be less than config.train.steps 50000",
        "config.data.text_noise is 1.5; it must lie between 0 and 1",
        "config.train.batch_size is 0; it must be above 0",
    ):
        assert part in text
    assert text.count("\n") == 6


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.crop_scale", (0.0, 1.0), "0 < low <= high <= 1"),
        ("data.text_length", 2, r"must be 3 or more: \[CLS\], a token, \[SEP\]"),
        ("data.frames.live", 0, "config.data.frames.live is 0; it must be above 0"),
        ("model.text_domains", ("page", "shop"), "names 'shop'; choose from page, video, live"),
        ("model.text.dropout", 1.0, "config.model.text.dropout is 1.0; it must be at least 0 and below 1"),
        ("model.vision.normalisation", "zero", "choose one of imagenet, clip"),
        ("model.vision.integration_depth", -1, "config.model.vision.integration_depth is -1; it must not be negative"),
        ("model.text.init_cut", True, "config.model.text.init_from names no weights to cut"),
        ("model.vision.stem", "resnet", "choose one of patch, conv"),
        ("optimizer.groups", (("(", 1.0),), r"has the regex '\(', which does not parse: missing \)"),
        (
            "optimizer.groups",
            (("text", -1.0),),
            r"gives 'text' the factor -1.0; it must be 0 \(frozen\) or more",
        ),
        ("model.vision.activation", "relu", "choose one of gelu, quick_gelu"),
        ("model.fusion.kind", "sum", "choose one of linear, transformer"),
        ("model.fusion.heads", 5, "config.model.fusion.width 256 is no multiple of its 5 heads"),
        ("model.remat", "all", "choose one of none, block, dots"),
        ("model.attention", "cudnn", "computes in 16 bits; set config.model.dtype to bfloat16"),
        ("losses.sigmoid.weight", 0.0, "config.losses gives no term a weight"),
        ("losses.infonce.weight", -1.0, "config.losses.infonce.weight is -1.0; it must not be negative"),
        ("losses.classifier.rate", 1.5, "config.losses.classifier.rate is 1.5; it must lie between 0 and 1"),
        ("train.average_decay", 1.0, "average_decay is 1.0; .* below 1, which would keep what the run began with"),
        ("train.best_by", "loss", "config.train.best_by is 'loss'; choose one of mean_r1, .*, average_mean_map"),
        ("train.best_by", "average_mean_r1", "best_by is 'average_mean_r1', and config.train.average_decay is 0"),
        ("train.microbatch", 48, "config.train.batch_size 128 is no multiple of config.train.microbatch 48"),
        ("eval.ways", 1, "few-shot needs 2 classes or more"),
        ("eval.episodes", 9, "an interval needs 10 or more"),
    ],
)
def test_a_fault_names_its_key(key, value, message):
    config = configs.default.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        validate(config)


def test_terms_and_micro_batches_fit_the_model():
    config = configs.default.get_config()
    config.losses.infonce.weight = 1.0
    config.train.microbatch = 32
    validate(config)
    config.model.text_domains = ("video",)
    config.model.head_norm = "batch"
    with pytest.raises(
        ValueError,
        match=r"infonce.page_text is 1.0, and config.model.text_domains has no 'page'\n.*'batch' needs whole batches",
    ):
        validate(config)


def test_a_conv_stem_fixes_its_patch_size():
    config = configs.default.get_config()
    config.model.vision.stem = "conv"
    validate(config)
    config.model.vision.stem_widths = (8, 16)
    with pytest.raises(
        ValueError, match=r"patch_size is 16; the 2 stages of stem_widths make 8\n.*one entry a stage each"
    ):
        validate(config)


def test_a_work_directory_keeps_its_run(tmp_path):
    config = configs.default.get_config()
    save_config(config, tmp_path)
    config.mesh.fsdp = 2
    config.train.log_every = 7
    config.model.scan_layers, config.model.remat = False, "block"
    save_config(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mesh"]["fsdp"] == 2
    config.train.batch_size = 64
    (tmp_path / "checkpoints/1000").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"holds a run with another config.*\n  config.train.batch_size: 128 there, 64 now"
    ):
        save_config(config, tmp_path)


def test_a_start_that_failed_may_start_again_with_another_config(tmp_path):
    """Its tokenizer may be of the old config."""
    config = configs.default.get_config()
    save_config(config, tmp_path)
    (tmp_path / "tokenizer").mkdir()
    save_config(config, tmp_path)
    assert (tmp_path / "tokenizer").exists()
    config.data.vocab_size = 77
    save_config(config, tmp_path)
    assert load_config(tmp_path).data.vocab_size == 77
    assert not (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize("frames", ["eval.frames.live", "data.frames.live"])
def test_frames_stay_as_they_are_once_positions_are_trained(tmp_path, frames):
    config = configs.default.get_config()
    save_config(config, tmp_path)
    (tmp_path / "checkpoints/1000").mkdir(parents=True)
    config.update_from_flattened_dict({frames: 16})
    with pytest.raises(ValueError, match=f"config.{frames}: 8 there, 16 now"):
        save_config(config, tmp_path)


def test_published_positions_of_frames_are_not_stretched_beyond_training():
    config = configs.cope_rope.get_config()
    config.eval.frames.video = 16
    with pytest.raises(ValueError, match=r"config.eval.frames go to 16, config.data.frames to 8"):
        validate(config)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--workdir must name the folder that a training run wrote"):
        load_config(tmp_path)


def test_folders_become_absolute_and_names_of_the_hub_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    config = configs.default.get_config()
    config.data.data_dir = "data"
    config.model.vision.init_from = "weights"
    config.model.text.init_from = "hfl/rbt3"
    make_paths_absolute(config)
    assert config.data.data_dir == str(tmp_path / "data")
    assert config.model.vision.init_from == str(tmp_path / "weights")
    assert config.model.text.init_from == "hfl/rbt3"
    assert config.data.tokenizer == ""
