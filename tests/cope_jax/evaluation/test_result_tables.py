"""Tables of results."""

import pytest

from cope_jax.evaluation.metrics.retrieval import direction_means
from cope_jax.evaluation.result_tables import format_tables

NAMES = ("p2v", "v2p", "p2l", "l2p", "v2l", "l2v")


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
