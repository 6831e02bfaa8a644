"""A catalog's counts as a table, and beside those of ROPE."""

from collections.abc import Mapping
from typing import Any

from data_prep.common.domains import DOMAINS

# Products, pages, videos and lives of the real release, by split, as its authors count them.
ROPE = {
    "train": {"product": 187_431, "page": 3_025_236, "video": 5_837_716, "live": 3_464_116},
    "test": {"product": 2_527, "page": 31_388, "video": 29_810, "live": 30_981},
}
_NEAR = 0.02


def format_summary(summary: Mapping[str, Any]) -> str:
    """Returns the summary as a table, a line for each domain, and one for each file that has anything to note."""
    lines = [
        f"{'split':<8}{'domain':<9}{'items':>12}{'with text':>12}{'frames':>14}{'no frames':>11}{'2+ products':>13}"
    ]
    lines += [line for name, file in summary.get("files", {}).items() if (line := _note(name, file))]
    for split, parts in summary["splits"].items():
        for domain in DOMAINS:
            counts = parts["domains"][domain]
            lines.append(
                f"{split:<8}{domain:<9}{counts['items']:>12,}{counts['texts']:>12,}{counts['frames']:>14,}"
                f"{counts['items_without_frames']:>11,}{counts['items_of_several_products']:>13,}"
            )
        lines.append(f"{split:<8}{'product':<9}{parts['domains']['product']['products']:>12,}")
        if lacking := [domain for domain in DOMAINS if not parts["domains"][domain]["items"]]:
            lines.append(
                f"{split:<8}has no {' and no '.join(lacking)} items: it cannot be built, nor trained or judged on"
            )
        lines += [f"{split:<8}{line}" for name, file in parts["files"].items() if (line := _note(name, file))]
        if comparison := compare_with_rope(split, parts["domains"]):
            lines.append(f"{split:<8}{comparison}")
    return "\n".join(lines)


def _note(name: str, file: Mapping[str, Any]) -> str:
    notes = [f"{count:,} {reason}" for reason, count in file["reasons"].items()]
    notes += [f"{file['blank']:,} blank"] if file["blank"] else []
    notes += [f"{file['crlf']:,} with CRLF"] if file["crlf"] else []
    notes += ["a byte order mark"] if file["bom"] else []
    return f"{name}: of {file['lines']:,} lines {', '.join(notes)}" if notes else ""


def compare_with_rope(split: str, domains: Mapping[str, Mapping[str, int]]) -> str:
    """Returns whether the counts are those of ROPE's split; "" where they are not even near."""
    wanted = ROPE.get(split, {})
    found = {name: domains[name]["products" if name == "product" else "items"] for name in wanted}
    if not wanted or any(abs(found[name] - count) > _NEAR * count for name, count in wanted.items()):
        return ""
    differing = [f"{found[name]:,} {name}s, not {count:,}" for name, count in wanted.items() if found[name] != count]
    return (
        f"like ROPE's {split} split, but {'; '.join(differing)}" if differing else f"the counts of ROPE's {split} split"
    )
