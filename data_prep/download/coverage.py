"""Counts how much of a catalog has arrived, from the ledgers of the finished shards."""

import collections
import json
from pathlib import Path
from typing import Any

from data_prep.catalog.files import Catalog
from data_prep.common.differences import flatten_keys
from data_prep.common.files import atomic_write
from data_prep.common.text_table import text_table
from data_prep.download.failures import TRANSIENT, Failure
from data_prep.download.ledger import ITEM_STATES, read_footer
from data_prep.download.plan import count_frames

VERSION = 1
SUMMARY_FILE = "summary.json"


def write_summary(catalog: Catalog, out: Path) -> dict[str, Any]:
    """Writes summary.json and returns its content.

    Returns:
        {"version", "catalog": its fingerprint, "splits": split → domain → coverage}. A coverage sums up those of the
        finished shards (`ledger.count_coverage`), with "in" for the whole catalog and "pending" for the rest of it.
    """
    splits = {
        split: {domain: _count_domain(catalog, out, split, domain) for domain in catalog.domains}
        for split in catalog.splits
    }
    summary = {"version": VERSION, "catalog": catalog.fingerprint, "splits": splits}
    with atomic_write(out / SUMMARY_FILE, "w", durable=True) as file:
        file.write(json.dumps(summary, indent=2) + "\n")
    return summary


def _count_domain(catalog: Catalog, out: Path, split: str, domain: str) -> dict[str, Any]:
    counts: collections.Counter[str] = collections.Counter()
    for path in (out / split / domain).glob("*.parquet"):
        counts.update(flatten_keys(read_footer(path).coverage))
    failed = {name: counts[f"frames.failed.{name}"] for name in sorted(Failure) if counts[f"frames.failed.{name}"]}
    all_items, all_frames = catalog.count(split, domain), count_frames(catalog, split, domain)
    states = {state: counts[f"items.{state}"] for state in ITEM_STATES}
    return {
        "items": {"in": all_items, **states, "pending": all_items - counts["items.in"]},
        "frames": {
            "in": all_frames,
            "ok": counts["frames.ok"],
            "failed": failed,
            "pending": all_frames - counts["frames.in"],
        },
        "bytes": counts["bytes"],
    }


def format_summary(summary: dict[str, Any]) -> str:
    """Returns the coverage as a table with a line per domain of each split."""
    rows = [["split", "domain", "frames", "ok", "%", "items", "complete", "partial", "missing", "MB", "failed frames"]]
    for split, domains in summary["splits"].items():
        for domain, counts in domains.items():
            items, frames = counts["items"], counts["frames"]
            failed = frames["failed"] | ({"pending": frames["pending"]} if frames["pending"] else {})
            missing = items["missing"] + items["without_frames"]
            rows.append(
                [split, domain, f"{frames['in']:,}", f"{frames['ok']:,}"]
                + [f"{100 * frames['ok'] / frames['in'] if frames['in'] else 100:.2f}"]
                + [f"{number:,}" for number in (items["in"], items["complete"], items["partial"], missing)]
                + [f"{counts['bytes'] / 1e6:,.1f}"]
                + [", ".join(f"{reason} {count:,}" for reason, count in failed.items()) or "none"]
            )
    return text_table(rows, left=(0, 1, 10))


def retry_hint(summary: dict[str, Any]) -> str:
    """Returns a line that suggests a `--retry` if some failures may be temporary, "" otherwise."""
    failed: collections.Counter[str] = collections.Counter()
    for domains in summary["splits"].values():
        for counts in domains.values():
            failed.update(counts["frames"]["failed"])
    names = [failure for failure in Failure if failure in TRANSIENT and failed[failure]]
    count = sum(failed[name] for name in names)
    return f"{count:,} failures may be temporary: try them again with --retry={','.join(names)}" if names else ""
