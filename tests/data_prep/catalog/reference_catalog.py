"""Reference for catalogs of releases: reads them line by line in plain Python."""

import collections
import re
from pathlib import Path

from data_prep.catalog.files import Frame, Item

DOMAINS = {  # the three files of each
    "page": ("product_pages_pair", "page_titles", "page_images"),
    "video": ("product_videos_pair", "video_asrs", "video_frames"),
    "live": ("product_lives_pair", "live_asrs", "live_clips"),
}
NUMBER = re.compile("[0-9]{1,19}")
HARMLESS = {"row said before", "item in no product pair", "item without frames, kept"}


def classify(line: bytes, numbers: int, last: str) -> tuple | str | None:
    """Returns the fields of a line, the reason why it is invalid, or None if blank; `last` is "", "text" or "name"."""
    if len(line) > 1 << 20:
        return "line too long"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    if "\x00" in text:
        return "NUL byte"
    if text.isspace() or not text:
        return None
    if last == "text":
        head, comma, tail = text.partition(",")
        fields = [head, tail] if comma else [head]
    else:
        fields = re.split(",", text)
    if len(fields) != numbers + bool(last):
        return "wrong number of fields"
    fields = [re.sub(r"^\s+|\s+$", "", field) for field in fields]
    for field in fields[:numbers]:
        if not NUMBER.fullmatch(field) or int(field) >= 2**63:
            return "no whole number"
    if (numbers, last) == (2, "") and int(fields[0]) >= 2**31:
        return "product id above 2147483647"
    if last == "name":
        name = fields[-1]
        if name == "":
            return "empty image name"
        if name in {".", ".."} or "/" in name or "\\" in name:
            return "image name leads out of its folder"
        if len(name.encode()) > 255:
            return "image name too long"
    rest = ["" if last == "text" and field == "空" else field for field in fields[numbers:]]
    return (*(int(field) for field in fields[:numbers]), *rest)


def read_file(path: Path, numbers: int, last: str) -> tuple[list[tuple[int, tuple]], list[tuple[int, str]]]:
    """Returns the rows and the rejected lines of a file, each with its line number."""
    return read_content(path.read_bytes(), numbers, last)


def read_content(content: bytes, numbers: int, last: str) -> tuple[list[tuple[int, tuple]], list[tuple[int, str]]]:
    """Does the same with the bytes of a file."""
    if content.startswith(b"\xef\xbb\xbf"):
        content = content[3:]
    rows, rejected = [], []
    for number, line in enumerate(content.split(b"\n"), start=1):
        found = classify(line, numbers, last)
        if isinstance(found, str):
            rejected.append((number, found))
        elif found is not None:
            rows.append((number, found))
    return rows, rejected


def read_release(folder: Path, prefix: str) -> tuple[dict[str, list[Item]], dict[str, set[tuple[int, str]]]]:
    """Returns domain → items in row order, and file name → (line, reason) of all lines left out or noted."""
    items, noted = {}, {}
    for domain, names in DOMAINS.items():
        pairs_file, texts_file, frames_file = (f"{prefix}{name}.txt" for name in names)
        products, lines_of = collections.defaultdict(set), {}
        rows, rejected = read_file(folder / pairs_file, 2, "")
        noted[pairs_file] = set(rejected)
        for number, (product, item) in rows:
            if product in products[item]:
                noted[pairs_file].add((number, "row said before"))
            else:
                products[item].add(product)
                lines_of[product, item] = number
        texts = {}
        rows, rejected = read_file(folder / texts_file, 1, "text")
        noted[texts_file] = set(rejected)
        for number, (item, text) in rows:
            if item not in products:
                noted[texts_file].add((number, "item in no product pair"))
            elif item not in texts:
                texts[item] = text
            else:
                same = texts[item] == text
                noted[texts_file].add((number, "row said before" if same else "another text for the same item"))
        frames = collections.defaultdict(dict)  # (time, name) → line
        rows, rejected = read_file(folder / frames_file, 1 if domain == "page" else 2, "name")
        noted[frames_file] = set(rejected)
        for number, (item, *time, name) in rows:
            frame = (*time, name) if time else (0, name)
            if item not in products:
                noted[frames_file].add((number, "item in no product pair"))
            elif frame in frames[item]:
                noted[frames_file].add((number, "row said before"))
            else:
                frames[item][frame] = number
        for item in products:
            if not frames[item]:
                noted[pairs_file].add((lines_of[min(products[item]), item], "item without frames, kept"))
        ordered = sorted(products, key=lambda item: (min(products[item]), item))
        items[domain] = [
            Item(
                item,
                texts.get(item, ""),
                tuple(sorted(products[item])),
                tuple(Frame(*frame) for frame in (frames[item] if domain == "page" else sorted(frames[item]))),
            )
            for item in ordered
        ]
    return items, noted
