"""How much of a catalog has arrived, from the ledgers of the finished shards, for all later stages to carry on."""

import collections
import json
from pathlib import Path
from typing import Any

from data_prep.catalog.files import Catalog
from data_prep.common.domains import DOMAINS
from data_prep.download import ledger
from data_prep.download.durable import replaced
from data_prep.download.failures import TRANSIENT, Failure
from data_prep.download.plan import count_frames

VERSION = 1
SUMMARY_FILE = "summary.json"


def measure(catalog: Catalog, out: Path) -> dict[str, Any]:
    """Returns what is written to summary.json.

    Returns:
      {"version", "catalog": its fingerprint, "splits": split → domain → coverage}: `ledger.cover`'s counts of the
      finished shards, with "in" of the whole catalog and "pending" for what no finished shard holds.
    """
    splits = {
        split: {domain: _measure_domain(catalog, out, split, domain) for domain in DOMAINS} for split in catalog.splits
    }
    return {"version": VERSION, "catalog": catalog.fingerprint, "splits": splits}


def _measure_domain(catalog: Catalog, out: Path, split: str, domain: str) -> dict[str, Any]:
    totals: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for path in (out / split / domain).glob("*.parquet"):
        covered = ledger.read_footer(path).coverage
        totals["items"].update(covered["items"])
        totals["frames"].update(in_=covered["frames"]["in"], ok=covered["frames"]["ok"])
        totals["failed"].update(covered["frames"]["failed"])
        totals["bytes"].update(bytes=covered["bytes"])
    items, frames = catalog.count(split, domain), count_frames(catalog, split, domain)
    kinds = ("complete", "partial", "missing", "without_frames")
    return {
        "items": {
            "in": items,
            **{kind: totals["items"][kind] for kind in kinds},
            "pending": items - totals["items"]["in"],
        },
        "frames": {
            "in": frames,
            "ok": totals["frames"]["ok"],
            "failed": dict(sorted(totals["failed"].items())),
            "pending": frames - totals["frames"]["in_"],
        },
        "bytes": totals["bytes"]["bytes"],
    }


def write(out: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json."""
    with replaced(out / SUMMARY_FILE) as file:
        file.write(json.dumps(summary, indent=2).encode() + b"\n")


def format_summary(summary: dict[str, Any]) -> str:
    """Returns the coverage as a table, a line for each domain of each split."""
    head = f"{'split':<8}{'domain':<8}{'frames':>12}{'ok':>12}{'%':>8}{'items':>12}{'complete':>12}{'partial':>10}"
    lines = [f"{head}{'missing':>10}{'MB':>12}  frames failed"]
    for split, domains in summary["splits"].items():
        for domain, counts in domains.items():
            items, frames = counts["items"], counts["frames"]
            failed = frames["failed"] | ({"pending": frames["pending"]} if frames["pending"] else {})
            share = 100 * frames["ok"] / frames["in"] if frames["in"] else 100.0
            lines.append(
                f"{split:<8}{domain:<8}{frames['in']:>12,}{frames['ok']:>12,}{share:>8.2f}{items['in']:>12,}"
                f"{items['complete']:>12,}{items['partial']:>10,}{items['missing'] + items['without_frames']:>10,}"
                f"{counts['bytes'] / 1e6:>12,.1f}  "
                + (", ".join(f"{reason} {count:,}" for reason, count in failed.items()) or "none")
            )
    return "\n".join(lines)


def retry_hint(summary: dict[str, Any]) -> str:
    """Returns a line that says which `--retry` may yet bring images, "" where none may."""
    failed: collections.Counter[str] = collections.Counter()
    for domains in summary["splits"].values():
        for counts in domains.values():
            failed.update(counts["frames"]["failed"])
    classes = [failure for failure in Failure if failure in TRANSIENT and failed[failure]]
    count = sum(failed[failure] for failure in classes)
    return f"{count:,} of these failures may pass: try again later with --retry={','.join(classes)}" if classes else ""
