"""What a line of a release's text file may say: `parse_line` reads one, and tells why another is none.

Lines end at "\n" alone (texts hold U+2028 and its like), blanks around fields do not count, blank lines do not either.
"""

import dataclasses
import enum
import re

from data_prep.catalog.release import NO_TEXT

MAX_LINE_BYTES = 1 << 20  # hours of speech; what is longer is no row but a file without line ends
MAX_NAME_BYTES = 255  # the longest file name that common file systems take
INT64_MAX = 2**63 - 1
PRODUCT_MAX = 2**31 - 1  # the largest product id: batches of training hold them in 32 bits
_WHOLE_NUMBER = re.compile(r"[0-9]{1,19}")  # int() alone would also take signs, underscores, digits of other scripts


class Reason(enum.StrEnum):
    """Why a row is left out, or why it is noted. The values are the keys of the summary."""

    LONG_LINE = "line too long"
    NOT_UTF8 = "not UTF-8"
    NUL = "NUL byte"
    FIELDS = "wrong number of fields"
    NUMBER = "no whole number"
    LARGE_PRODUCT = f"product id above {PRODUCT_MAX}"
    EMPTY_NAME = "empty image name"
    PATH = "image name leads out of its folder"
    LONG_NAME = "image name too long"
    NOT_JSON = "no JSON object"
    QUOTES = "quotes that do not match"
    KIND = "value of a wrong kind"
    EMPTY_ID = "empty product or item id"
    DOMAIN = "unknown domain"
    SPLIT = "unknown split"
    CONFLICT = "another text for the same item"
    DUPLICATE = "row said before"
    NO_PAIR = "item in no product pair"
    NO_FRAMES = "item without frames, kept"
    OTHER_SPLIT = "item of a test product too, left to test"


# Real releases are full of these, and nothing is lost by them: they do not count as broken lines.
HARMLESS = frozenset({Reason.DUPLICATE, Reason.NO_PAIR, Reason.NO_FRAMES, Reason.OTHER_SPLIT})


class Last(enum.Enum):
    """What the last field of a row is, after the numbers."""

    NUMBER = enum.auto()
    TEXT = enum.auto()
    NAME = enum.auto()


@dataclasses.dataclass(frozen=True)
class Layout:
    """The fields of a file's rows: `numbers` names the whole numbers, after which comes `last` unless NUMBER."""

    numbers: tuple[str, ...]
    last: Last = Last.NUMBER

    @property
    def fields(self) -> int:
        return len(self.numbers) + (self.last is not Last.NUMBER)

    @property
    def largest(self) -> tuple[int, ...]:
        """The largest value of each of `numbers`."""
        return tuple(PRODUCT_MAX if name == "product_id" else INT64_MAX for name in self.numbers)

    @property
    def max_splits(self) -> int:
        """How many commas separate, −1 for all: after the first a text may hold its own."""
        return 1 if self.last is Last.TEXT else -1


PAIRS = Layout(("product_id", "item_id"))
TEXTS = Layout(("item_id",), Last.TEXT)
PAGE_FRAMES = Layout(("item_id",), Last.NAME)
CLIP_FRAMES = Layout(("item_id", "time"), Last.NAME)


def parse_line(layout: Layout, line: bytes) -> tuple[int | str, ...] | Reason | None:
    """Returns the fields of a row, why the line is none, or None for a blank line.

    `parse_line(CLIP_FRAMES, b"7, 240, a.jpg \\r\\n")` is `(7, 240, "a.jpg")`, and of `b"7, a.jpg\\n"` it is
    `Reason.FIELDS`. A missing text is "".
    """
    if len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
        return Reason.LONG_LINE
    try:
        row = line.decode()
    except UnicodeDecodeError:
        return Reason.NOT_UTF8
    if "\0" in row:
        return Reason.NUL
    if not row.strip():
        return None
    fields = [field.strip() for field in row.split(",", maxsplit=layout.max_splits)]
    if len(fields) != layout.fields:
        return Reason.FIELDS
    numbers, rest = fields[: len(layout.numbers)], fields[len(layout.numbers) :]
    if any(_WHOLE_NUMBER.fullmatch(number) is None or int(number) > INT64_MAX for number in numbers):
        return Reason.NUMBER
    if any(int(number) > largest for number, largest in zip(numbers, layout.largest, strict=True)):
        return Reason.LARGE_PRODUCT
    if layout.last is Last.NAME and (fault := name_fault(rest[0])):
        return fault
    if layout.last is Last.TEXT and rest[0] == NO_TEXT:
        rest = [""]
    return *map(int, numbers), *rest


def name_fault(name: str) -> Reason | None:
    """Returns why `name` is no plain file name, or None. Names come from data and are joined to a folder."""
    if not name:
        return Reason.EMPTY_NAME
    if name in (".", "..") or any(character in name for character in "/\\\0"):
        return Reason.PATH
    if len(name.encode()) > MAX_NAME_BYTES:
        return Reason.LONG_NAME
    return None
