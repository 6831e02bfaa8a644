"""Reads and checks a release: the nine text files that describe one split.

A row is one line, its fields separated by commas; a text may itself contain commas, so only the first one of
a text row separates. Rows come in any order. Ids are unique within a domain only: page 7 and video 7 are
different items.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

DOMAINS = ("page", "video", "live")
PREFIXES = {"train": "training_", "test": "test_"}
NO_TEXT = "空"  # how the authors' files write a missing text
_INT64_MAX = 2**63 - 1
_NAME_BYTES = 255  # the longest file name that common file systems take


class ReleaseError(ValueError):
    """A release that cannot be read; the message names the file, the line, the value and what is wanted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One image of an item: `time` (frame number or ms; 0 for pages) orders it, `name` is its file name."""

    time: int
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One page, video or live clip. `text` is "" where it is missing; products and frames are sorted."""

    item_id: int
    text: str
    product_ids: tuple[int, ...]
    frames: tuple[Frame, ...]


@dataclasses.dataclass(frozen=True)
class Release:
    """One split.

    Attributes:
      split: name of the split.
      items: domain → its items, those of one product together: ordered by (smallest product id, item id).
      products: all product ids, ascending.
      unreferenced: file name → rows left aside because no product-pair row names their item. Empty when none.
    """

    split: str
    items: Mapping[str, tuple[Item, ...]]
    products: tuple[int, ...]
    unreferenced: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class DomainFiles:
    """The three files of a domain in one split."""

    pairs: Path
    texts: Path
    frames: Path


def release_files(directory: Path | str, split: str, *, prefix: str | None = None) -> dict[str, DomainFiles]:
    """Returns domain → the paths of its three files.

    Args:
      directory: folder with the text files.
      split: `train` or `test`; another name needs a `prefix`.
      prefix: what the file names start with; None takes it from `PREFIXES`.

    Raises:
      ReleaseError: unknown split, or files that do not exist (all of them are named).
    """
    directory = Path(directory)
    if prefix is None:
        if split not in PREFIXES:
            raise ReleaseError(f"unknown split {split!r}: want {', '.join(PREFIXES)} or a file prefix")
        prefix = PREFIXES[split]

    def path(name: str) -> Path:
        return directory / f"{prefix}{name}.txt"

    files = {
        "page": DomainFiles(path("product_pages_pair"), path("page_titles"), path("page_images")),
        "video": DomainFiles(path("product_videos_pair"), path("video_asrs"), path("video_frames")),
        "live": DomainFiles(path("product_lives_pair"), path("live_asrs"), path("live_clips")),
    }
    every = [file for group in files.values() for file in (group.pairs, group.texts, group.frames)]
    if missing := [file.name for file in every if not file.is_file()]:
        raise ReleaseError(
            f"split {split!r}: {', '.join(missing)} not found in {directory.absolute()}; "
            f"a split has nine files that start with {prefix!r}"
        )
    return files


def read_release(directory: Path | str, split: str, *, prefix: str | None = None) -> Release:
    """Reads one split; arguments as for `release_files`.

    Items without a text or without frames are kept (`text == ""`, `frames == ()`), and so are products that
    lack a domain. A row said twice counts once.

    Raises:
      ReleaseError: a missing file, or the first bad row.
    """
    items, unreferenced = {}, {}
    for domain, files in release_files(directory, split, prefix=prefix).items():
        products = _read_pairs(domain, files.pairs)
        texts, ignored_texts = _read_texts(domain, files.texts, products)
        frames, ignored_frames = _read_frames(domain, files.frames, products)
        items[domain] = tuple(_join(products, texts, frames))
        ignored = {files.texts.name: ignored_texts, files.frames.name: ignored_frames}
        unreferenced |= {name: rows for name, rows in ignored.items() if rows}
    products = {product for group in items.values() for item in group for product in item.product_ids}
    if not products:
        raise ReleaseError(f"split {split!r} in {Path(directory).absolute()}: no products, empty pair files")
    return Release(split, items, tuple(sorted(products)), unreferenced)


def _join(
    products: Mapping[int, set[int]], texts: Mapping[int, str], frames: Mapping[int, set[Frame]]
) -> Iterator[Item]:
    for item_id in sorted(products, key=lambda item_id: (min(products[item_id]), item_id)):
        ordered = sorted(frames.get(item_id, ()), key=lambda frame: (frame.time, frame.name))
        yield Item(item_id, texts.get(item_id, ""), tuple(sorted(products[item_id])), tuple(ordered))


def _read_pairs(domain: str, path: Path) -> dict[int, set[int]]:
    """Returns item id → its products."""
    products: dict[int, set[int]] = {}
    for line, (product, item) in _rows(path, ("product id", f"{domain} id")):
        product_id = _whole_number(path, line, "product id", product)
        products.setdefault(_whole_number(path, line, f"{domain} id", item), set()).add(product_id)
    return products


def _read_texts(domain: str, path: Path, known: Iterable[int]) -> tuple[dict[int, str], int]:
    """Returns item id → text for the items in `known`, and the number of rows of other items."""
    texts: dict[int, str] = {}
    ignored = 0
    for line, (item, text) in _rows(path, (f"{domain} id", "text"), first_comma_only=True):
        item_id = _whole_number(path, line, f"{domain} id", item)
        text = "" if text == NO_TEXT else text
        if item_id not in known:
            ignored += 1
        elif texts.setdefault(item_id, text) != text:
            # Rows have no order, so that neither text is the right one.
            raise ReleaseError(f"{path}:{line}: a second, different text for {domain} {item_id}: {text!r}; keep one")
    return texts, ignored


def _read_frames(domain: str, path: Path, known: Iterable[int]) -> tuple[dict[int, set[Frame]], int]:
    """Returns item id → frames for the items in `known`, and the number of rows of other items."""
    clock = {"page": (), "video": ("frame number",), "live": ("timestamp",)}[domain]
    frames: dict[int, set[Frame]] = {}
    ignored = 0
    for line, (item, *times, name) in _rows(path, (f"{domain} id", *clock, "image name")):
        item_id = _whole_number(path, line, f"{domain} id", item)
        time = _whole_number(path, line, clock[0], times[0]) if clock else 0
        _check_name(path, line, name)
        if item_id in known:
            frames.setdefault(item_id, set()).add(Frame(time, name))
        else:
            ignored += 1
    return frames, ignored


def _rows(path: Path, columns: tuple[str, ...], *, first_comma_only: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, fields without the blanks around them) for each line that is not blank."""
    with path.open("rb") as file:  # as bytes, lines end at \n alone; texts may hold U+2028 or U+0085
        for number, line in enumerate(file, start=1):
            try:
                row = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                seen = error.object[error.start : error.start + 8]
                raise ReleaseError(f"{path}:{number}: bytes {seen!r} are not UTF-8; save the file as UTF-8") from error
            if not row:
                continue
            fields = row.split(",", maxsplit=1 if first_comma_only else -1)
            if len(fields) != len(columns):
                raise ReleaseError(
                    f"{path}:{number}: {len(fields)} fields in {row!r}, wanted {len(columns)}: {', '.join(columns)}"
                )
            yield number, [field.strip() for field in fields]


def _whole_number(path: Path, line: int, column: str, value: str) -> int:
    # int() alone would also take signs, underscores and digits of other scripts.
    if value.isascii() and value.isdigit() and len(value) <= 19 and int(value) <= _INT64_MAX:
        return int(value)
    raise ReleaseError(f"{path}:{line}: {column} {value!r} is not a whole number from 0 to {_INT64_MAX}")


def _check_name(path: Path, line: int, name: str) -> None:
    # Names come from data and are joined to the images folder: nothing may lead out of it.
    if not name:
        raise ReleaseError(f"{path}:{line}: the image name is empty")
    if name in (".", "..") or any(character in name for character in "/\\\0"):
        raise ReleaseError(f"{path}:{line}: image name {name!r} is a path, wanted a plain file name")
    if len(name.encode()) > _NAME_BYTES:
        raise ReleaseError(f"{path}:{line}: image name {name!r} is longer than {_NAME_BYTES} bytes")
