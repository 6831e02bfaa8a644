"""Writes the tables of results in README and docs from files of results: `./run.sh results`.

A page marks the place of a table by the comments `<!-- results: NAME -->` and `<!-- end of results -->`. The table is
`benchmarks/results/tables/NAME.json`:

    {"columns": ["config", "result"], "labels": ["config"],
     "rows": [{"cells": ["demo.py", "mean R@1 {mean_r1:.2f}"], "values": {"mean_r1": 0.7223}, "run": {…}}]}

Cells are format strings of Python: numbers are written as {…}, by the names in `values` and `run`, or by position if
`values` is a list. A column whose numbers are not results, such as goals, is listed in `labels`. `run` has the `FACTS`
of what was run. A fact that is no longer known is null, and `source` then says where the values come from.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app

from data_prep.common.files import atomic_write

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "benchmarks/results/tables"
PAGES = ("README.md", "docs/*.md")
FACTS = ("config", "commit", "date", "seeds", "data", "hardware")
NO_RESULT = re.compile(r"`[^`]*`|\{[^{}]*\}|\]\([^)]*\)|[A-Za-z][\w@/-]*")  # code, values, links, words such as R@1
PLACE = re.compile(r"<!-- results: (?P<name>[\w-]+) -->\n.*?<!-- end of results -->", re.DOTALL)


def read_table(name: str) -> dict[str, Any]:
    """Returns the content of a file of results.

    Raises:
        ValueError: A row has no provenance, a column is missing, or a number of a result is not among its values.
    """
    path = TABLES / f"{name}.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    for number, row in enumerate(table["rows"], start=1):
        run = row["run"]
        missing = [fact for fact in FACTS if not run.get(fact) and run.get(fact) != 0]
        if missing and not run.get("source"):
            raise ValueError(f"{path}, row {number}: no {', '.join(missing)}; add them, or a source that explains why")
        if len(row["cells"]) != len(table["columns"]):
            raise ValueError(f"{path}, row {number}: {len(row['cells'])} cells of {len(table['columns'])} columns")
        for column, cell in zip(table["columns"], row["cells"], strict=True):
            literal = NO_RESULT.sub("", cell)
            if column not in table.get("labels", ()) and re.search(r"\d", literal):
                raise ValueError(f"{path}, row {number}: {column!r} has a number outside of {{…}}: {cell!r}")
    return table


def render(table: Mapping[str, Any]) -> str:
    """Returns a table as Markdown."""
    rows = [table["columns"]]
    for row in table["rows"]:
        values = row["values"]
        positions, names = (values, {}) if isinstance(values, list) else ((), values)
        rows.append([cell.format(*positions, **row["run"] | names) for cell in row["cells"]])
    header, *lines = (re.sub(" +", " ", f"| {' | '.join(cells)} |\n") for cells in rows)
    return header + "|" + "---|" * len(table["columns"]) + "\n" + "".join(lines)


def update_page(text: str) -> str:
    """Returns a page with the tables that its comments name."""

    def replace(place: re.Match[str]) -> str:
        name = place["name"]
        return f"<!-- results: {name} -->\n\n{render(read_table(name))}\n<!-- end of results -->"

    return PLACE.sub(replace, text)


def unmarked_tables(text: str) -> list[str]:
    """Returns the headers of the tables of a page that have numbers but no file of results."""
    tables = re.findall(r"^(\|.*)\n\|[-|: ]+\|\n((?:\|.*\n)*)", PLACE.sub("", text), re.MULTILINE)
    return [header for header, rows in tables if re.search(r"\d", NO_RESULT.sub("", rows))]


def describe_run(workdir: Path, config: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns `values` and `run` of a row, from an evaluated run.

    Args:
        workdir: Work directory of the run; its newest evaluation is taken.
        config: The config file, with the flags that differ from it.
    """
    start = json.loads((workdir / "starts.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    files = sorted((workdir / "eval").glob("*/metrics.json"), key=lambda path: int(path.parent.name))
    metrics = json.loads(files[-1].read_text(encoding="utf-8"))
    values = dict(metrics["retrieval_mean"])
    for direction, own in metrics["retrieval"].items():
        values |= {f"{direction}_{key}": own[key] for key in ("r1", "map", "queries")}
    low, high = metrics["intervals"]["retrieval_mean"]["mean_r1"]
    run = {
        "config": config,
        "commit": start["code"][:7],
        "date": None,
        "seeds": [start["config"]["seed"]],
        "data": metrics["evaluated"]["data"],
        "hardware": ", ".join(f"{count} {kind}" for kind, count in start["devices"].items()),
    }
    return {key: round(value, 4) for key, value in (values | {"low": low, "high": high}).items()}, run


def record(name: str, cells: Sequence[str], values: Mapping[str, float], run: Mapping[str, Any]) -> None:
    """Adds a row to a table, in place of the row with the same first cell if there is one."""
    path = TABLES / f"{name}.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    row = {"cells": list(cells), "values": dict(values), "run": dict(run)}
    firsts = [own["cells"][0] for own in table["rows"]]
    place = firsts.index(cells[0]) if cells[0] in firsts else len(firsts)
    table["rows"][place : place + 1] = [row]
    with atomic_write(path, "w") as file:
        file.write(json.dumps(table, indent=1, ensure_ascii=False) + "\n")


def main(_: list[str]) -> None:
    """Writes the tables of all pages, and names the pages that changed."""
    for pattern in PAGES:
        for page in sorted(ROOT.glob(pattern)):
            text = page.read_text(encoding="utf-8")
            if (updated := update_page(text)) != text:
                with atomic_write(page, "w") as file:
                    file.write(updated)
                print(f"updated {page.relative_to(ROOT)}")


if __name__ == "__main__":
    app.run(main)
