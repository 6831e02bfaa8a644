"""The comparison of evaluated runs, as text, file and page."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from cope_jax.evaluation.comparison import EvaluatedStep, compare, format_comparison, read_step, to_csv, to_json
from cope_jax.evaluation.query_outcomes import Outcomes, write_outcomes
from cope_jax.evaluation.report.comparison_page import comparison_page

NAMES = ("p2v", "v2p", "p2l", "l2p", "v2l", "l2v")
KEYS = ("r1", "r5", "r10", "map")


def words(line: str) -> str:
    return " ".join(line.split())


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


def test_random_products_of_another_seed_are_different_items():
    runs = [EvaluatedStep(name, metrics(0.5, 0.03)) for name in "abc"]
    for run, seed in zip(runs, (0, 1, 0), strict=True):
        run.metrics["evaluated"].update(subset=200, seed=seed)
    warnings = [line for line in format_comparison(runs, compare(runs)).splitlines() if "different" in line]
    assert warnings == ["B was evaluated on different items than A, so compare with care (seed: 0 in A, 1 in B)"]


def test_few_shot_accuracies_are_compared_only_for_the_same_tasks():
    runs = [EvaluatedStep(name, metrics(0.5, 0.03)) for name in "ab"]
    for run, ways in zip(runs, (5, 10), strict=True):
        run.metrics["evaluated"].update(ways=ways, shots=1, queries=2)
    rows = compare(runs)
    assert len(rows) == 2 * (4 + 6)
    assert not any("few-shot" in row.metric for row in rows)
    warning = "B has different few-shot tasks than A, so few-shot accuracies are left out (ways: 5 in A, 10 in B)"
    assert warning in format_comparison(runs, rows).splitlines()
    assert warning in comparison_page(runs, rows)


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
        "low": None,
        "high": None,
    }
    assert [float(row["value"]) for row in from_csv] == [row["value"] for row in from_json]
    assert from_csv[1]["exceeds"] == "True"


@pytest.mark.parametrize(
    ("text", "message"), [("", "not valid JSON"), ("{}", "has no step, retrieval, "), ("[]", "object")]
)
def test_error_for_a_file_without_metrics(tmp_path, text, message):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_step(tmp_path / "metrics.json", "latest")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1"])
def test_names_in_csv_files_are_not_formulas(name):
    rows = compare([EvaluatedStep(name, metrics(0.6, 0.03)), EvaluatedStep("b", metrics(0.5, 0.04))])
    first, second = list(csv.DictReader(io.StringIO(to_csv(rows))))[:2]
    assert (first["run"], second["run"]) == (f"'{name}", "b")
    assert float(second["difference"]) == pytest.approx(-0.1)


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


def outcomes(rng: np.random.Generator, ranks: np.ndarray, products: np.ndarray) -> Outcomes:
    rows = np.arange(len(ranks))
    return Outcomes(rows, products, ranks, rng.random(len(ranks)), rows, rows, products, rows / 9, rows > 0)


@pytest.fixture
def paired(tmp_path):
    """Two runs with the same 40 queries of ten products in each direction, in which b ranks many items better."""
    rng, made = np.random.default_rng(3), {}
    products = {name: rng.integers(0, 10, 40) for name in NAMES}
    for run, highest in (("<b>a", 5), ("b", 3)):
        found = {name: outcomes(rng, rng.integers(1, highest, 40), own) for name, own in products.items()}
        (tmp_path / run / "eval/6").mkdir(parents=True)
        own = metrics(0.0, 0.03)
        for name, each in found.items():
            means = dict(zip(KEYS, each.metrics.mean(axis=0).tolist(), strict=True))
            own["retrieval"][name] = means
        (tmp_path / run / "eval/6/metrics.json").write_text(json.dumps(own))
        write_outcomes(found, tmp_path / run / "eval/6/queries.parquet")
        made[run] = (read_step(tmp_path / run, "latest"), found)
    return made


def test_differences_over_the_same_queries_have_intervals(paired):
    """They match those of products drawn one by one."""
    (a, found_a), (b, found_b) = paired.values()
    rows = {row.metric: row for row in compare([a, b]) if row.run == b.name}
    differences = [(found_b[name].rank == 1).astype(float) - (found_a[name].rank == 1) for name in NAMES]
    owners, rng, drawn = [found_a[name].product for name in NAMES], np.random.default_rng(5), []
    for _ in range(2000):
        sample = rng.integers(0, 10, 10)
        means = [np.concatenate([d[o == p] for p in sample]).mean() for d, o in zip(differences, owners, strict=True)]
        drawn.append([means[0], np.mean(means)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    row = rows["mean R@1"]
    assert (row.low, row.high) == pytest.approx((low[1], high[1]), abs=0.02)
    assert row.exceeds
    worse = next(row for row in compare([b, a]) if row.metric == "mean R@1" and row.run == a.name)
    assert (worse.low, worse.high, worse.exceeds) == pytest.approx((-row.high, -row.low, True))
    assert (rows["R@1 P → V"].low, rows["R@1 P → V"].high) == pytest.approx((low[0], high[0]), abs=0.04)
    assert rows["few-shot P → V"].low is None
    assert "the same queries excludes 0" in format_comparison([a, b], compare([a, b]))


def test_queries_are_paired_only_if_they_are_the_same(paired, tmp_path):
    (a, found), (b, _) = paired.values()
    shifted = {name: replace(own, query=own.query + 1) for name, own in found.items()}
    write_outcomes(shifted, tmp_path / "b/eval/6/queries.parquet")
    assert {row.low for row in compare([a, read_step(tmp_path / "b", 6)])} == {None}
    other = EvaluatedStep(b.name, b.metrics | {"evaluated": {"data": "d2"}}, b.file)
    assert {row.low for row in compare([a, other])} == {None}


def test_the_page_counts_queries_won_and_lost(paired):
    (a, found_a), (b, found_b) = paired.values()
    page = comparison_page([a, b], compare([a, b]))
    right = {name: (found_a[name].rank == 1, found_b[name].rank == 1) for name in NAMES}
    won = [(~one & two).sum() for one, two in right.values()]
    lost = [(one & ~two).sum() for one, two in right.values()]
    assert f'<td class="better">{won[0]}</td><td class="worse">{lost[0]}</td>' in page
    assert f"<td>{sum(won)}</td><td>{sum(lost)}</td>" in page
    assert "queries cannot be shown" in page  # without the records
    assert "&lt;b&gt;a" in page
    assert "<b>a" not in page
    assert "cannot be paired" in comparison_page([a, replace(b, file=None)], compare([a, replace(b, file=None)]))
