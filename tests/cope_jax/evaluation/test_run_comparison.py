"""Comparison of evaluated runs."""

import csv
import io
import json

import pytest

from cope_jax.evaluation.run_comparison import EvaluatedStep, compare, format_comparison, read_step, to_csv, to_json

NAMES = ("p2v", "v2p", "p2l", "l2p", "v2l", "l2v")
KEYS = ("r1", "r5", "r10", "map")


def metrics(r1: float, half: float, *, step: int = 6, data: str = "d1") -> dict:
    """All metrics are r1 and all intervals ±half; few-shot accuracies are half of r1."""
    bounds = [r1 - half, r1 + half]
    return {
        "step": step,
        "retrieval": {name: dict.fromkeys(KEYS, r1) for name in NAMES},
        "retrieval_mean": {f"mean_{key}": r1 for key in KEYS},
        "intervals": {
            "retrieval": {name: dict.fromkeys(KEYS, bounds) for name in NAMES},
            "retrieval_mean": {f"mean_{key}": bounds for key in KEYS},
        },
        "few_shot": {name: {"accuracy": r1 / 2, "ci95": half} for name in NAMES},
        "evaluated": {"data": data, "split": "test", "subset": None, "data_dir": f"data/{data}"},
    }


def words(line: str) -> str:
    return " ".join(line.split())


def test_differences_beyond_both_intervals_are_marked():
    """√(0.03² + 0.04²) = 0.05."""
    runs = [
        EvaluatedStep("a", metrics(0.5, 0.03)),
        EvaluatedStep("b", metrics(0.551, 0.04)),
        EvaluatedStep("c", metrics(0.451, 0.04)),
    ]
    rows = [row for row in compare(runs) if row.metric == "mean R@1"]
    assert [row.run for row in rows] == ["a", "b", "c"]
    assert [row.difference for row in rows] == pytest.approx([0, 0.051, -0.049])
    assert [row.exceeds for row in rows] == [False, True, False]
    lines = format_comparison(runs, compare(runs)).splitlines()
    assert lines[:3] == ["A: a", "B: b", "C: c"]
    assert words(lines[4]) == "metric A B B − A C C − A"
    assert words(lines[6]) == "mean R@1 0.500 ±0.030 0.551 ±0.040 +0.051* 0.451 ±0.040 -0.049"
    assert words(lines[10]).startswith("R@1 P → V 0.500")
    assert words(lines[16]) == "few-shot P → V 0.250 ±0.030 0.276 ±0.040 +0.026 0.226 ±0.040 -0.024"
    assert len(lines) == 6 + 4 + 6 + 6 + 1


def test_different_items_are_reported():
    runs = [EvaluatedStep("a", metrics(0.5, 0.03)), EvaluatedStep("b", metrics(0.5, 0.03, data="d2"))]
    warning = "B was evaluated on different items than A, so compare with care (data: 'd1' in A, 'd2' in B)"
    assert warning in format_comparison(runs, compare(runs)).splitlines()


def test_csv_and_json_have_the_same_rows():
    rows = compare([EvaluatedStep("a", metrics(0.5, 0.03)), EvaluatedStep("b", metrics(0.6, 0.04))])
    from_json, from_csv = json.loads(to_json(rows)), list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert len(from_json) == len(from_csv) == 2 * 16
    assert from_json[1] == {
        "metric": "mean R@1",
        "run": "b",
        "value": 0.6,
        "half": pytest.approx(0.04),
        "difference": pytest.approx(0.1),
        "exceeds": True,
    }
    assert [float(row["value"]) for row in from_csv] == [row["value"] for row in from_json]
    assert from_csv[1]["exceeds"] == "True"


def test_reading_an_evaluated_step(tmp_path):
    for step, r1 in ((0, 0.1), (4, 0.6), (10, 0.5)):
        (tmp_path / "eval" / str(step)).mkdir(parents=True)
        (tmp_path / "eval" / str(step) / "metrics.json").write_text(json.dumps(metrics(r1, 0.1, step=step)))
    assert read_step(tmp_path, "latest").metrics["step"] == 10
    assert read_step(tmp_path, "best").metrics["step"] == 4
    assert read_step(tmp_path, 0).name == f"{tmp_path} (0)"
    assert read_step(tmp_path / "eval/4/metrics.json", "latest").metrics["step"] == 4
    with pytest.raises(FileNotFoundError, match=r"at step 5, only of \[0, 4, 10\]; evaluate it with ./run.sh eval"):
        read_step(tmp_path, 5)
    with pytest.raises(FileNotFoundError, match=r"no evaluation of .*nowhere"):
        read_step(tmp_path / "nowhere", "latest")
