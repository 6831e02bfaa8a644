"""Flags of the command train."""

import pytest

from cope_jax import CONFIG_ROOT
from cope_jax.train import find_config, list_fields, parse_steps


def test_steps_are_parsed():
    assert parse_steps("10:15") == (10, 15)
    assert parse_steps("7:7") == (7, 7)
    assert parse_steps("") is None


@pytest.mark.parametrize("text", ["10", "10:", ":15", "15:10", "0:3", "a:b", "1:2:3"])
def test_invalid_steps_are_errors(text):
    with pytest.raises(ValueError, match=f"--profile_steps is '{text}'; it must be FIRST:LAST, such as 10:15"):
        parse_steps(text)


@pytest.mark.parametrize("words", [["--config=configs/dmo.py", "--config.seed=1"], ["--config", "configs/dmo.py:8"]])
def test_a_wrong_config_path_lists_the_configs(words):
    with pytest.raises(SystemExit, match=r"no config file 'configs/dmo.py'; configs/ has .*configs/demo.py"):
        find_config(words)


def test_a_config_path_is_relative_to_the_current_folder_or_else_to_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkout = f"--config={CONFIG_ROOT / 'configs/demo.py'}"
    assert find_config(["--config=configs/demo.py", "--config.seed=1"]) == [checkout, "--config.seed=1"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/demo.py").touch()
    assert find_config(["--config", "configs/demo.py:8", "x"]) == ["--config=configs/demo.py:8", "x"]


def test_the_help_lists_the_fields_of_the_config():
    lines = list_fields().splitlines()
    assert "  --config.seed: an integer >= 0 and < 2**32" in lines
    assert "  --config.data.short_clips: one of 'repeat', 'mask'" in lines
    assert "  --config.model.vision.init_from: a string" in lines
