"""Tests that Apache Beam writes the same shards as the local pool, byte for byte."""

OPTIONS = ["runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"]  # in this process


def test_beam_writes_the_same_files(small, inputs, built, tmp_path, capsys):
    summary, _ = small.build(inputs, tmp_path, beam_options=OPTIONS)
    assert small.contents(tmp_path) == small.contents(built)
    assert summary["splits"]["train"]["video"]["items"]["kept"] == 57
    assert "train video: 60/60 items" in capsys.readouterr().err
