"""Counts of a catalog: the contents of summary.json, printed as a table and compared with those of ROPE."""

from collections.abc import Mapping
from typing import TypedDict

# Products, pages, videos and lives in each split of ROPE, as counted by its authors.
ROPE = {
    "train": {"product": 187_431, "page": 3_025_236, "video": 5_837_716, "live": 3_464_116},
    "test": {"product": 2_527, "page": 31_388, "video": 29_810, "live": 30_981},
}
ROPE_TOLERANCE = 0.02  # counts that differ by more are not compared with ROPE's

Counts = Mapping[str, Mapping[str, int]]  # domain → its counts, and "product" → {"products": …}


class FileSummary(TypedDict):
    """Numbers of lines in an input file: invalid ones are `broken`, all rejected ones are in `reasons`."""

    lines: int
    blank: int
    crlf: int
    bom: bool
    broken: int
    reasons: dict[str, int]


class SplitSummary(TypedDict):
    """Counts of a split and of its input files."""

    domains: Counts
    files: dict[str, FileSummary]


class Summary(TypedDict):
    """Contents of summary.json: `source` identifies the input, `files` are the input files shared by all splits."""

    version: int
    fingerprint: str
    source: Mapping[str, str | float]
    files: dict[str, FileSummary]
    splits: dict[str, SplitSummary]


def format_summary(summary: Summary) -> str:
    """Returns a table with a line for each domain, followed by notes on the input files."""
    lines = [
        f"{'split':<8}{'domain':<9}{'items':>12}{'with text':>12}{'frames':>14}{'no frames':>11}{'2+ products':>13}"
    ]
    lines += _notes(summary["files"])
    for split, content in summary["splits"].items():
        domains = [name for name in content["domains"] if name != "product"]
        for domain in domains:
            counts = content["domains"][domain]
            lines.append(
                f"{split:<8}{domain:<9}{counts['items']:>12,}{counts['texts']:>12,}{counts['frames']:>14,}"
                f"{counts['items_without_frames']:>11,}{counts['items_of_several_products']:>13,}"
            )
        lines.append(f"{split:<8}{'product':<9}{content['domains']['product']['products']:>12,}")
        if empty := [domain for domain in domains if not content["domains"][domain]["items"]]:
            lines.append(f"{split:<8}has no {' and no '.join(empty)} items, so it cannot be built")
        lines += [f"{split:<8}{note}" for note in _notes(content["files"])]
        if comparison := compare_with_rope(split, content["domains"]):
            lines.append(f"{split:<8}{comparison}")
    return "\n".join(lines)


def _notes(files: Mapping[str, FileSummary]) -> list[str]:
    """Returns a line for each file that has anything unusual."""
    lines = []
    for name, file in files.items():
        notes = [f"{count:,} {reason}" for reason, count in file["reasons"].items()]
        notes += [f"{file['blank']:,} blank"] if file["blank"] else []
        notes += [f"{file['crlf']:,} with CRLF"] if file["crlf"] else []
        notes += ["a byte order mark"] if file["bom"] else []
        if notes:
            lines.append(f"{name}: of {file['lines']:,} lines {', '.join(notes)}")
    return lines


def compare_with_rope(split: str, counts: Counts) -> str:
    """Returns a comparison with the counts of ROPE's split, or "" if they are not close."""
    expected = ROPE.get(split, {})
    found = {name: counts[name]["products" if name == "product" else "items"] for name in expected}
    if not expected or any(abs(found[name] - count) > ROPE_TOLERANCE * count for name, count in expected.items()):
        return ""
    differing = [f"{found[name]:,} {name}s, not {count:,}" for name, count in expected.items() if found[name] != count]
    if differing:
        return f"like ROPE's {split} split, but {'; '.join(differing)}"
    return f"the counts of ROPE's {split} split"
