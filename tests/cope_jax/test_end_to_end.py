"""Tests which options go to which step of the pipelines."""

from cope_jax import end_to_end


def test_options_of_the_release_go_there_and_the_others_to_training(monkeypatch, tmp_path):
    steps = {}
    monkeypatch.setattr(end_to_end, "run", lambda *words: steps.update({words[1]: words[2:]}))
    release_options = ("--train_products=9", "--test_products=8", "--image_side=32", "--seed=3", "--recipe=7")
    end_to_end.main("demo", f"--root={tmp_path}", "--config.seed=1", *release_options)
    assert steps["synthetic"] == (f"--out={tmp_path}/data/demo/release", *release_options)
    assert [word for word in steps["train"] if not word.startswith(("--config=", "--workdir=", "--config.data."))] == [
        "--config.seed=1"
    ]
