"""Tables of results, and the comparison of evaluated runs."""

import csv
import io
import json

import pytest

from cope_jax.evaluation.metrics.retrieval import direction_means
from cope_jax.evaluation.result_tables import (
    EvaluatedStep,
    compare,
    format_comparison,
    format_tables,
    read_step,
    to_csv,
    to_json,
)

NAMES = ("p2v", "v2p", "p2l", "l2p", "v2l", "l2v")
KEYS = ("r1", "r5", "r10", "map")


def result(scale: float) -> dict:
    """R@1 of the six directions is scale × 0.1, 0.2, …, 0.6; their mean is scale × 0.35."""
    retrieval, few_shot = {}, {}
    for number, name in enumerate(NAMES, start=1):
        share = scale * number / 10
        retrieval[name] = {"r1": share, "r5": share + 0.1, "r10": share + 0.2, "map": share + 0.05}
        retrieval[name] |= {
            "ndcg10": share + 0.15,
            "median_rank": 1.5,
            "queries": 1000 + number,
            "gallery": 20 + number,
        }
        few_shot[name] = {"accuracy": share, "ci95": 0.0123, "ways": 20, "shots": 5, "episodes": 100}
    bounds = {f"mean_{key}": [scale * 0.1, scale * 0.2 + i * 0.02] for i, key in enumerate(("r1", "r5", "r10", "map"))}
    return {
        "retrieval": retrieval,
        "retrieval_mean": direction_means(retrieval),
        "few_shot": few_shot,
        "intervals": {"retrieval_mean": bounds},
    }


def words(line: str) -> str:
    return " ".join(line.split())


def test_means_over_directions():
    expected = {"mean_r1": 0.35, "mean_r5": 0.45, "mean_r10": 0.55, "mean_map": 0.40, "mean_ndcg10": 0.5}
    assert result(1)["retrieval_mean"] == pytest.approx(expected)


def test_categories_are_listed_by_their_number_of_queries():
    parts = {"hat": {"r1": 0.5, "queries": 2}, "": {"r1": 1.0, "queries": 1}}
    metrics = result(1) | {"by_category": {"p2v": parts, "v2p": {"bag": {"r1": 0.25, "queries": 4}}}}
    *_, title, header, _, bag, hat, none = format_tables(metrics).splitlines()
    assert title == "R@1 by category of the query (number of queries)"
    assert words(header) == "category P → V V → P"
    assert [words(line) for line in (bag, hat, none)] == ["bag – 0.250 (4)", "hat 0.500 (2) –", "(none) 1.000 (1) –"]
    assert "category" not in format_tables(result(1))


def test_tables():
    lines = format_tables(result(1)).splitlines()
    assert lines[0] == "Cross-domain retrieval"
    assert words(lines[1]) == "direction queries gallery R@1 R@5 R@10 mAP median rank"
    assert words(lines[3]) == "P → V 1001 21 0.100 0.200 0.300 0.150 1.5"
    assert words(lines[8]) == "L → V 1006 26 0.600 0.700 0.800 0.650 1.5"
    assert words(lines[9]) == "mean 0.350 0.450 0.550 0.400"
    assert words(lines[10]) == "95% interval ±0.050 ±0.060 ±0.070 ±0.080"
    assert lines[12] == "Few-shot classification"
    assert words(lines[13]) == "direction ways shots episodes accuracy"
    assert words(lines[16]) == "V → P 20 5 100 0.200 ± 0.012"
    assert len(lines) == 21


def test_retrieval_within_several_domains_is_shown():
    metrics = result(1)
    within = metrics["retrieval"]["p2v"] | {"r1": 0.123, "queries": 7}
    metrics["same_domain"] = {"page": within, "video": None}
    lines = format_tables(metrics, metrics).splitlines()
    assert lines[-5:-3] == ["", "Retrieval among the other items of the domain (trained / untrained)"]
    assert words(lines[-1]).startswith("page 7 21 0.123 / 0.123 0.200 / 0.200")
    metrics["same_domain"] = {"page": within}  # of a single domain, this is the direction above
    assert format_tables(metrics) == format_tables(result(1))


def test_retrieval_by_text_is_shown():
    metrics = result(1)
    metrics["text"] = {"page": metrics["retrieval"]["p2v"] | {"r1": 0.123, "queries": 7}}
    lines = format_tables(metrics, metrics).splitlines()
    assert lines[-4] == "Typed queries: retrieval by the texts of all items (trained / untrained)"
    assert words(lines[-1]).startswith("text → page 7 21 0.123 / 0.123 0.200 / 0.200")
    assert format_tables(metrics, result(1)) == format_tables(result(1), result(1))  # of an earlier version


def test_results_of_few_products_start_with_their_interval():
    metrics = result(1)
    metrics["intervals"] |= {"products": 19}
    metrics["intervals"]["retrieval_mean"]["mean_r1"] = [0.3, 0.6]
    metrics["chance"] = {"p2v": 0.01, "v2p": 0.03}
    assert format_tables(metrics).splitlines()[0] == (
        "19 products only: mean R@1 is 0.300 to 0.600 (95% interval) in galleries of 21 to 26 items; a random order "
        "has 0.020. About 171 products would narrow it to ±0.05."  # 19 · (0.15 / 0.05)²
    )
    metrics["intervals"] |= {"products": 100}
    assert format_tables(metrics).splitlines()[0] == "Cross-domain retrieval"


def test_intervals_without_width_are_unknown():
    metrics = result(1)
    metrics["intervals"] |= {"products": 3}
    metrics["intervals"]["retrieval_mean"]["mean_r1"] = [1.0, 1.0]
    metrics["few_shot"]["v2p"]["ci95"] = 0.0
    text = format_tables(metrics)
    assert "All products have the same result" in text.splitlines()[0]
    assert "0.200 ± ?\n" in text
    assert "± ?: all episodes have the same accuracy" in text
    assert "±?" in next(line for line in text.splitlines() if line.startswith("95% interval"))
    assert "0.000" not in text


def test_tables_are_aligned():
    lines = format_tables(result(1), result(0.01)).splitlines()
    for table in (lines[1:9], lines[13:21]):
        assert len({len(line) for line in table}) == 1
    assert lines[9].index("0.350 / 0.003") == lines[3].index("0.100 / 0.001")
    assert lines[3].index("1001") + 4 == lines[1].index("queries") + len("queries")


def test_baseline_is_shown_after_a_slash():
    lines = format_tables(result(1), result(0.1)).splitlines()
    assert lines[0] == "Cross-domain retrieval (trained / untrained)"
    assert "0.100 / 0.010    0.200 / 0.110    0.300 / 0.210    0.150 / 0.060    1.5 / 1.5" in lines[3]
    assert words(lines[9]) == "mean 0.350 / 0.035 0.450 / 0.135 0.550 / 0.235 0.400 / 0.085"
    assert words(lines[10]).startswith("95% interval ±0.050 / ±0.005")
    assert lines[15].endswith("0.100 ± 0.012 / 0.010 ± 0.012")


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
