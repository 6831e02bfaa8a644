"""Lines that are left out of a catalog: counted by reason, the first of each kept to be shown."""

import collections
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from data_prep.catalog.files import CatalogError
from data_prep.catalog.lines import HARMLESS, Reason

SHOWN = 1000  # of each file and reason
EXAMPLES = 3


class Rejects:
    """Those of one file. `lines`, `blank` and `crlf` count all its lines, the blank ones, and ends in "\\r\\n"."""

    def __init__(self, split: str, file: str, read_lines: Callable[[np.ndarray], dict[int, str]], *, bom: bool = False):
        """Makes an empty collection.

        Args:
          split: the file's split.
          file: its name.
          read_lines: gives the starts of lines by number, for those that are noted without one.
          bom: whether the file begins with a byte order mark.
        """
        self.split, self.file, self.bom = split, file, bom
        self.lines = self.blank = self.crlf = 0
        self.counts: collections.Counter[Reason] = collections.Counter()
        self._read_lines = read_lines
        self._numbers: dict[Reason, np.ndarray] = collections.defaultdict(lambda: np.empty(0, np.int64))
        self._starts: dict[int, str] = {}

    def add(self, number: int, reason: Reason, start: str) -> None:
        """Notes a line; those of one reason come in the order of their numbers."""
        self.counts[reason] += 1
        if self.counts[reason] <= SHOWN:
            self._numbers[reason] = np.append(self._numbers[reason], number)
            self._starts[number] = start

    def add_lines(self, reason: Reason, numbers: np.ndarray) -> None:
        """Notes lines by their numbers, in any order."""
        if len(numbers):
            self.counts[reason] += len(numbers)
            self._numbers[reason] = np.sort(np.concatenate((self._numbers[reason], numbers)))[:SHOWN]

    @property
    def broken(self) -> int:
        """Number of lines that count towards the limit."""
        return sum(count for reason, count in self.counts.items() if reason not in HARMLESS)

    def check(self, limit: float) -> None:
        """Raises CatalogError where more than the fraction `limit` of the lines is broken."""
        if self.broken <= limit * self.lines:
            return
        examples = [entry for entry in self.entries() if entry["reason"] not in HARMLESS][:EXAMPLES]
        raise CatalogError(
            f"{self.file}: {self.broken} of {self.lines} lines are broken, more than --max_rejected={limit:g} allows "
            f"({', '.join(f'{reason}: {count}' for reason, count in self._broken_counts())}), e.g.\n"
            + "\n".join(f"  line {entry['line']}, {entry['reason']}: {entry['start']!r}" for entry in examples)
        )

    def _broken_counts(self) -> list[tuple[Reason, int]]:
        return [(reason, count) for reason, count in self.counts.most_common() if reason not in HARMLESS]

    def entries(self) -> list[dict[str, str | int]]:
        """Returns what rejected.jsonl says, by line: the first `SHOWN` of each reason."""
        wanted = np.unique(np.concatenate([np.empty(0, np.int64), *self._numbers.values()]))
        unread = np.array([number for number in wanted.tolist() if number not in self._starts], np.int64)
        if len(unread):
            self._starts |= self._read_lines(unread)
        entries = [
            {"split": self.split, "file": self.file, "line": line, "reason": reason, "start": self._starts[line]}
            for reason, numbers in self._numbers.items()
            for line in numbers.tolist()
        ]
        return sorted(entries, key=lambda entry: (entry["line"], entry["reason"]))

    def summary(self) -> dict[str, int | dict[str, int]]:
        """Returns the counts for summary.json."""
        return {
            "lines": self.lines,
            "blank": self.blank,
            "crlf": self.crlf,
            "bom": self.bom,
            "broken": self.broken,
            "reasons": dict(sorted(self.counts.items())),
        }


def write_rejects(path: Path, rejects: Iterable[Rejects]) -> None:
    """Adds the files' entries to rejected.jsonl."""
    with path.open("a", encoding="utf-8") as file:
        for each in rejects:
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in each.entries())
