"""Lines that are left out of a catalog: counted by reason, with the first of each reason as examples."""

import collections
import dataclasses
import enum
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from data_prep.catalog.files import FileSummary

MAX_PRODUCT_ID = 2**31 - 1  # training batches hold product ids in 32 bits
LISTED = 1000  # lines in rejected.jsonl, per file and reason
EXAMPLES = 3  # lines in an error message


class Reason(enum.StrEnum):
    """Why a line is left out or noted. The values are keys of summary.json."""

    LONG_LINE = "line too long"
    NOT_UTF8 = "not UTF-8"
    NUL = "NUL byte"
    FIELDS = "wrong number of fields"
    NUMBER = "no whole number"
    LARGE_PRODUCT = f"product id above {MAX_PRODUCT_ID}"
    EMPTY_NAME = "empty image name"
    PATH = "image name leads out of its folder"
    LONG_NAME = "image name too long"
    NOT_JSON = "no JSON object"
    QUOTES = "quotes that do not match"
    TYPE = "value of a wrong kind"
    EMPTY_ID = "empty product or item id"
    LOST_DIGITS = "number that may have lost digits, store it as text"
    REPEATED = "column given twice"
    DOMAIN = "unknown domain"
    SPLIT = "unknown split"
    TIMES = "start and end that are no ascending seconds"
    CONFLICT = "another text for the same item"
    DUPLICATE = "row said before"
    NO_PAIR = "item in no product pair"
    NO_FRAMES = "item without frames, kept"
    OTHER_SPLIT = "item of another split"


# Common in real releases, and nothing is lost: these lines do not count as invalid.
HARMLESS = frozenset({Reason.DUPLICATE, Reason.NO_PAIR, Reason.NO_FRAMES, Reason.OTHER_SPLIT})


@dataclasses.dataclass(eq=False)
class RejectedLines:
    """Rejected lines of one file."""

    split: str
    file: str
    limit: float  # fraction of the lines that may be invalid
    read_lines: Callable[[np.ndarray], dict[int, str]]  # returns the beginnings of lines by number
    allowed: int = 0  # number of invalid lines that are no error in any case
    bom: bool = False  # whether the file starts with a byte order mark
    lines: int = 0  # number of all lines; of these, `blank` are blank and `crlf` end with "\r\n"
    blank: int = 0
    crlf: int = 0
    counts: collections.Counter[Reason] = dataclasses.field(default_factory=collections.Counter)

    def __post_init__(self):
        self._numbers: dict[Reason, np.ndarray] = collections.defaultdict(lambda: np.empty(0, np.int64))

    def add(self, reason: Reason, numbers: Sequence[int] | np.ndarray) -> None:
        """Adds lines by their numbers, in any order."""
        if len(numbers):
            self.counts[reason] += len(numbers)
            self._numbers[reason] = np.sort(np.concatenate((self._numbers[reason], numbers)))[:LISTED]

    @property
    def invalid(self) -> int:
        """Number of rejected lines that are not harmless."""
        return sum(count for reason, count in self.counts.items() if reason not in HARMLESS)

    def check(self) -> None:
        """Raises ValueError if too many lines are invalid."""
        if self.invalid <= max(self.limit * self.lines, self.allowed):
            return
        reasons = [f"{reason}: {count}" for reason, count in self.counts.most_common() if reason not in HARMLESS]
        examples = [entry for entry in self.entries() if entry["reason"] not in HARMLESS][:EXAMPLES]
        raise ValueError(
            f"{self.file}: {self.invalid} of {self.lines} lines are invalid, more than --max_rejected={self.limit:g} "
            f"allows ({', '.join(reasons)}), for example\n"
            + "\n".join(f"  line {entry['line']}, {entry['reason']}: {entry['start']!r}" for entry in examples)
        )

    def entries(self) -> list[dict[str, str | int]]:
        """Returns the entries for rejected.jsonl by line: the first `LISTED` of each reason."""
        numbers = np.unique(np.concatenate([np.empty(0, np.int64), *self._numbers.values()]))
        starts = self.read_lines(numbers) if len(numbers) else {}
        entries = [
            {"split": self.split, "file": self.file, "line": line, "reason": reason, "start": starts[line]}
            for reason, numbers in self._numbers.items()
            for line in numbers.tolist()
        ]
        return sorted(entries, key=lambda entry: (entry["line"], entry["reason"]))

    def summary(self) -> FileSummary:
        """Returns the counts for summary.json."""
        reasons = {str(reason): count for reason, count in sorted(self.counts.items())}
        lines, blank, crlf, invalid = self.lines, self.blank, self.crlf, self.invalid
        return FileSummary(lines=lines, blank=blank, crlf=crlf, bom=self.bom, broken=invalid, reasons=reasons)


def write_rejected(path: Path, files: Iterable[RejectedLines]) -> None:
    """Appends the entries of files to rejected.jsonl."""
    with path.open("a", encoding="utf-8") as output:
        for file in files:
            output.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in file.entries())
