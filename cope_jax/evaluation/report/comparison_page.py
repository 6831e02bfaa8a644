"""The page of a comparison: metrics of runs side by side, and the queries that a run won and lost against the first."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from cope_jax.data.records import Records, fingerprint, open_records
from cope_jax.data.thumbnails import Card, read_card
from cope_jax.evaluation.comparison import ComparisonRow, EvaluatedStep, different_items, different_tasks, run_letters
from cope_jax.evaluation.query_outcomes import Outcomes, same_queries
from cope_jax.evaluation.report.query_gallery import interleave
from cope_jax.evaluation.report.report import PAGES
from cope_jax.evaluation.result_tables import arrow, format_half
from data_prep.common.domains import directions
from data_prep.common.html_pages import page_environment, render_page

SHOWN = 12  # queries won, and as many lost, of each run
SIDE = 128  # pixels of a picture


def comparison_page(runs: Sequence[EvaluatedStep], rows: Sequence[ComparisonRow]) -> str:
    """Renders the page of a comparison.

    Pictures and texts of queries are shown if the records that the first run was evaluated on are still there.
    """
    letters, warnings = run_letters(len(runs)), [*different_items(runs), *different_tasks(runs)]
    records = _records(runs[0])
    paired = [same_queries(runs[0].outcomes, run.outcomes) and not different_items([runs[0], run]) for run in runs]
    others = [
        {"letter": letter, "name": run.name, **(_won_and_lost(runs[0].outcomes, run.outcomes, records) if pair else {})}
        for letter, run, pair in list(zip(letters, runs, paired, strict=True))[1:]
    ]
    environment = page_environment(PAGES)
    environment.filters["half"] = format_half
    return render_page(
        environment,
        "comparison.html.jinja",
        styles=[PAGES / "report.css"],
        names=dict(zip(letters, (run.name for run in runs), strict=True)),
        warnings=warnings,
        metrics=[(metric, list(group)) for metric, group in groupby(rows, key=lambda row: row.metric)],
        scale=max([0.01, *(abs(value) for row in rows for value in (row.difference, row.low, row.high) if value)]),
        others=others,
        arrow=arrow,
        has_records=records is not None,
    )


def _records(run: EvaluatedStep) -> Records | None:
    """Opens the records that a run was evaluated on; None if they are gone or have changed."""
    evaluated = run.metrics["evaluated"]
    try:
        where = evaluated["data_dir"], evaluated["split"]
        return open_records(*where) if fingerprint(*where) == evaluated["data"] else None
    except (FileNotFoundError, ValueError):
        return None


def _won_and_lost(
    first: Mapping[str, Outcomes], other: Mapping[str, Outcomes], records: Records | None
) -> dict[str, Any]:
    """Counts the queries with a right first item in one run, and shows some: those that the other run ranks worst."""
    counts, shown = [], {"won": [], "lost": []}
    for name, a in first.items():
        right_a, right_b = a.rank == 1, other[name].rank == 1
        won, lost = ~right_a & right_b, right_a & ~right_b
        counts.append((name, won.sum(), lost.sum(), (right_a & right_b).sum(), (~right_a & ~right_b).sum()))
        for kind, mask, ranks in (("won", won, a.rank), ("lost", lost, other[name].rank)):
            numbers = np.flatnonzero(mask)
            shown[kind].append([(name, number) for number in numbers[np.argsort(-ranks[numbers], kind="stable")]])
    chosen = {kind: interleave(*lists)[:SHOWN] for kind, lists in shown.items()}
    if records is None:
        return {"counts": counts}
    cards = {
        kind: [_cards(records, name, number, first[name], other[name]) for name, number in own]
        for kind, own in chosen.items()
    }
    return {"counts": counts, **cards}


def _cards(records: Records, direction: str, number: int, first: Outcomes, other: Outcomes) -> dict[str, Any]:
    """The query, its right answer in the run that finds it, and what both runs find first."""
    source, target = directions(records.items)[direction]
    winner = first if first.rank[number] == 1 else other

    def card(domain: str, row: int) -> Card:
        return read_card(records, domain, int(row), frames=1, side=SIDE)

    return {
        "direction": direction,
        "query": card(source, first.query[number]),
        "right": card(target, winner.best[number]),
        "wrong": card(target, (other if winner is first else first).nearest[number]),
        "ranks": (int(first.rank[number]), int(other.rank[number])),
    }
