"""Inputs of a run: its tokenizer."""

import shutil

import pytest

from cope_jax.runs.inputs import run_tokenizer


def test_the_start_of_a_run_reports_how_the_tokenizer_suits_the_texts(tiny_config, tmp_path, capsys):
    run_tokenizer(tiny_config, tmp_path)
    first, *warnings = capsys.readouterr().out.splitlines()
    assert first.startswith("texts: ")
    assert first.endswith(f"of the texts are longer than {tiny_config.data.text_length} tokens")
    assert any("increase config.data.text_length" in warning for warning in warnings)


def test_the_tokenizer_of_a_run_with_checkpoints_is_not_replaced(tiny_config, tmp_path):
    run_tokenizer(tiny_config, tmp_path)
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(FileNotFoundError, match=r"tokenizer is missing, but the model in .*: copy it back"):
        run_tokenizer(tiny_config, tmp_path)
    assert not (tmp_path / "tokenizer").exists()
