"""Rejected lines: limits, counts and examples."""

import pytest

from data_prep.catalog import rejected_lines, release_parser
from data_prep.catalog.files import Catalog
from data_prep.catalog.rejected_lines import HARMLESS
from tests.data_prep.catalog.sample_releases import build, read_rejected


def test_too_many_invalid_lines_raise_an_error_with_counts_and_examples(tmp_path):
    titles = "".join(f"{i}, a\n" for i in range(7)) + "x, a\nno\nno 2\n"
    with pytest.raises(ValueError, match="3 of 10 lines are invalid") as error:
        build(tmp_path, page_titles=titles, max_rejected=0.29)
    writing = tmp_path / "catalog.writing"
    assert str(error.value) == (
        "training_page_titles.txt: 3 of 10 lines are invalid, more than --max_rejected=0.29 allows "
        "(wrong number of fields: 2, no whole number: 1), for example\n"
        "  line 8, no whole number: 'x, a'\n"
        "  line 9, wrong number of fields: 'no'\n"
        "  line 10, wrong number of fields: 'no 2'\n"
        f"All lines rejected so far: {writing / 'rejected.jsonl'}"
    )
    assert len([entry for entry in read_rejected(Catalog(writing)) if entry["reason"] not in HARMLESS]) == 3
    assert build(tmp_path, page_titles=titles, max_rejected=0.3).count("train", "page") == 2
    assert not writing.exists()


def test_contradictions_are_invalid_but_repetitions_are_not(tmp_path):
    repeated = "7, a\n7, a\n70, b\n"
    assert build(tmp_path / "x", page_titles=repeated, max_rejected=0).count("train", "page") == 2
    with pytest.raises(ValueError, match=r"titles\.txt: 1 of 4 lines .*another text for the same item: 1"):
        build(tmp_path / "y", page_titles=repeated + "7, c\n", max_rejected=0.1)


def test_the_first_lines_of_each_reason_are_listed_and_all_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(rejected_lines, "LISTED", 3)
    monkeypatch.setattr(release_parser, "BLOCK_BYTES", 16)
    titles = "7, a\n" + "".join(f"{'x' if i % 2 else 70}, {i}\n" for i in range(20)) + "7, a\n" * 5
    catalog = build(tmp_path, page_titles=titles)
    shown = [(entry["line"], entry["start"]) for entry in read_rejected(catalog)]
    assert shown == [
        *((2, "70, 0"), (3, "x, 1"), (4, "70, 2"), (5, "x, 3"), (6, "70, 4"), (7, "x, 5")),
        *((22, "7, a"), (23, "7, a"), (24, "7, a")),
    ]
    reasons = catalog.summary["splits"]["train"]["files"]["training_page_titles.txt"]["reasons"]
    assert reasons == {"item in no product pair": 10, "no whole number": 10, "row said before": 5}
