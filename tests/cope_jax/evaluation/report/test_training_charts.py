"""Charts of training from the logs of a run."""

import json

import numpy as np
import pytest

from cope_jax.evaluation.report.training_charts import (
    accuracies,
    evaluations,
    losses,
    pair_name,
    pair_style,
    rates,
    throughput,
    training_charts,
)
from cope_jax.runs.log_files import read_json_lines

LINES = [
    {"step": 2, "loss": 9.0, "a/loss": 4.0, "b/loss": 5.0, "a/accuracy/page_live": 0.2, "a/accuracy/live_page": 0.4},
    {"step": 4, "loss": None, "a/loss": 3.0, "b/loss": 2.0, "a/accuracy/page_live": 0.6, "a/accuracy/live_page": 0.8},
    {"step": 6, "loss": 3.0, "a/loss": 1.0, "b/loss": 2.0, "a/accuracy/page_live": 0.7, "a/accuracy/live_page": 0.9},
]


@pytest.fixture
def run(tmp_path):
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 8, "lo')
    return tmp_path


def plain(curves):
    return {name: (steps.tolist(), values.tolist()) for name, (steps, values) in curves.items()}


def test_losses_and_accuracies(run):
    history = read_json_lines(run / "metrics.jsonl")
    assert history == LINES
    assert plain(losses(history)) == {
        "loss": ([2, 6], [9, 3]),  # the loss of step 4 is missing
        "a": ([2, 4, 6], [4, 3, 1]),
        "b": ([2, 4, 6], [5, 2, 2]),
    }
    found = plain(accuracies(history)["a"])
    assert found == {"page – live": ([2, 4, 6], pytest.approx([0.3, 0.7, 0.8]))}


def test_modalities_are_averaged_and_pairs_within_a_domain_left_out():
    values = {"page_within": 1.0, "page_text_live_vision": 0.2, "video_vision_page_text": 0.4, "page_live": 0.9}
    found = plain(accuracies([{"step": 2} | {f"a/accuracy/{name}": value for name, value in values.items()}])["a"])
    assert found == {"frames – text": ([2], pytest.approx([0.3])), "page – live": ([2], [0.9])}


def test_single_term_is_not_shown_twice():
    assert list(losses([{"step": 1, "loss": 2.0, "infonce/loss": 2.0}])) == ["loss"]


@pytest.mark.parametrize(
    ("metric", "pair", "style"),
    [
        ("live_page_text", "both – text", "modality both-text"),
        ("page_vision_live_text", "frames – text", "modality frames-text"),
        ("page_2_vision_page_vision", "frames – frames", "modality frames-frames"),
        ("live_video", "video – live", "video-live"),
        ("page", "page", "page"),
    ],
)
def test_names_of_pairs(metric, pair, style):
    assert pair_name(metric) == pair
    assert pair_style(pair) == style


def test_pairs_of_other_domains_have_colors_of_their_own():
    names = ["page – video", "page – shop", "shop – spin"]
    assert [pair_style(name, names) for name in names] == ["page-video", "pair1", "pair2"]


def test_throughput_of_a_repeated_step_is_the_last_one(tmp_path):
    lines = [(2, 30.0), (4, 20.0), (6, 10.0), (4, 25.0)]
    text = "".join(json.dumps({"step": step, "examples_per_s": speed}) + "\n" for step, speed in lines)
    (tmp_path / "speed.jsonl").write_text(text + '{"step": 8, "exam')
    steps, speeds = throughput(tmp_path)
    assert steps.tolist() == [2, 4, 6]
    assert speeds.tolist() == [30, 25, 10]
    assert len(throughput(tmp_path / "nowhere")[0]) == 0


def test_evaluations_during_training(tmp_path):
    assert evaluations(tmp_path) == {}
    path = tmp_path / "evaluations.jsonl"
    path.write_text('{"step": 2, "mean_r1": 0.5}\n{"step": 4, "mean_r1": 0.75}\n')
    assert plain(evaluations(tmp_path)) == {"the model": ([2, 4], [0.5, 0.75])}
    path.write_text('{"step": 2, "mean_r1": 0.5, "average_mean_r1": 0.25}\n')
    assert plain(evaluations(tmp_path))["its moving average"] == ([2], [0.25])


def test_titles_of_charts(run, tiny_config, tmp_path):
    (run / "evaluations.jsonl").write_text('{"step": 2, "mean_r1": 0.5, "average_mean_r1": 0.25}\n')
    assert [chart.title for chart in training_charts(run, tiny_config)] == [
        "Loss",
        "a: nearest in the batch is right",
        "Mean R@1 on some products",
        "Learning rate",
    ]
    assert training_charts(tmp_path / "nowhere", tiny_config) == []


def test_learning_rate_follows_the_config(tiny_config):
    steps, values = rates(tiny_config, 6)
    peak = tiny_config.optimizer.rate
    assert steps.tolist() == list(range(7))
    cosine = [peak * (1 + np.cos(np.pi * i / 4)) / 2 for i in range(5)]
    assert values.tolist() == pytest.approx([0, peak / 2, *cosine], abs=1e-9)
