"""Every table of results in README and docs is written from a file of results."""

import json

import pytest

from benchmarks import tables
from benchmarks.tables import ROOT, describe_run, read_table, record, render, unmarked_tables, update_page

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
LOG = "docs/experiments.md"  # what was tried, in the order of time
# First columns of tables with numbers that are no results.
OTHER_TABLES = {
    "device",  # written by benchmarks.hardware from its own file
    "method | trained",
    "target | devices",
    *("I want to …", "code", "domain", "encoder", "key", "setting", "| `cope_rope.py`"),
}


@pytest.mark.parametrize("page", PAGES)
def test_tables_equal_what_their_files_give(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert update_page(text) == text, "run ./run.sh results"


def test_every_other_table_with_numbers_is_known():
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES if page != LOG]
    headers = [header.removeprefix("| ") for text in texts for header in unmarked_tables(text)]
    unknown = [header for header in headers if not header.startswith(tuple(OTHER_TABLES))]
    assert not unknown, "write these tables from files: see CONTRIBUTING.md"
    assert len(headers) == len(OTHER_TABLES), "a table of OTHER_TABLES is gone"


def test_every_file_is_shown():
    shown = {match["name"] for page in PAGES for match in tables.PLACE.finditer((ROOT / page).read_text("utf-8"))}
    assert shown == {path.stem for path in tables.TABLES.glob("*.json")}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes the rows of the table `t`."""
    monkeypatch.setattr(tables, "TABLES", tmp_path)

    def write(*rows, **fields):
        content = {"columns": ["a", "b"], "rows": rows} | fields
        (tmp_path / "t.json").write_text(json.dumps(content), encoding="utf-8")

    return write


def test_a_table_is_formatted_from_values(write):
    facts = {"config": "c.py", "commit": "abc", "date": "2026-11-28", "seeds": [0], "data": "d", "hardware": "h"}
    write(
        {"cells": ["{commit}", "{r1:.2f} of {n:,}"], "values": {"r1": 0.126, "n": 1234}, "run": facts},
        {"cells": ["{source}", "{0} and {1:.1f}"], "values": [7, 0.25], "run": {"source": "a paper"}},
    )
    page = "x\n<!-- results: t -->\nold 5\n<!-- end of results -->\ny\n"
    table = "| a | b |\n|---|---|\n| abc | 0.13 of 1,234 |\n| a paper | 7 and 0.2 |\n"
    assert update_page(page) == f"x\n<!-- results: t -->\n\n{table}\n<!-- end of results -->\ny\n"
    assert unmarked_tables(update_page(page)) == []
    assert unmarked_tables(table + "\n| c | d |\n|---|---|\n| `1` | R@1 |\n") == ["| a | b |"]


def test_a_number_that_is_no_value_is_an_error(write):
    row = {"cells": ["5 `--x=2` R@1", "0.7"], "values": {}, "run": {"source": "s"}}
    write(row, labels=["a"])
    with pytest.raises(ValueError, match=r"t\.json, row 1: 'b' has a number outside of \{…\}: '0\.7'"):
        read_table("t")
    write(row, labels=["a", "b"])
    assert render(read_table("t")).endswith("| 5 `--x=2` R@1 | 0.7 |\n")


def test_rows_need_provenance(write):
    write({"cells": ["x", "y"], "values": {}, "run": {"config": "c.py", "seeds": [0], "hardware": "h"}})
    with pytest.raises(ValueError, match=r"t\.json, row 1: no commit, date, data; add them, or a source that explains"):
        read_table("t")


def test_a_run_is_recorded_with_its_provenance(write, tmp_path):
    run = tmp_path / "run"
    for step, r1 in ((0, 0.1), (20, 0.25), (100, 0.5)):
        (run / f"eval/{step}").mkdir(parents=True)
        metrics = {
            "retrieval_mean": {"mean_r1": r1},
            "retrieval": {"p2v": {"r1": r1, "map": 0.3, "queries": 7}},
            "intervals": {"retrieval_mean": {"mean_r1": [0.4, 0.6]}},
            "evaluated": {"data": "aa7e"},
        }
        (run / f"eval/{step}/metrics.json").write_text(json.dumps(metrics))
    start = {"code": "f6b6b7815262", "devices": {"cpu": 1}, "config": {"seed": 3}}
    (run / "starts.jsonl").write_text(json.dumps({"code": "old"}) + "\n" + json.dumps(start) + "\n")
    values, facts = describe_run(run, "configs/demo.py --config.seed=3")
    assert values == {"mean_r1": 0.5, "p2v_r1": 0.5, "p2v_map": 0.3, "p2v_queries": 7, "low": 0.4, "high": 0.6}
    assert (facts["commit"], facts["seeds"], facts["data"], facts["hardware"]) == ("f6b6b78", [3], "aa7e", "1 cpu")
    write({"cells": ["x", "y"], "values": {}, "run": {"source": "s"}})
    record("t", ["x", "R@1 {mean_r1:.2f}"], values, facts | {"date": "2026-11-28"})
    record("t", ["z", "mAP {p2v_map}"], values, facts | {"date": "2026-11-28"})
    assert render(read_table("t")).splitlines()[2:] == ["| x | R@1 0.50 |", "| z | mAP 0.3 |"]
