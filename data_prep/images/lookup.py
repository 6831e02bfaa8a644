"""Looks for images by name as the build does, and says why a name is not found."""

import collections
import contextlib
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from data_prep.images import sources

_SEPARATORS = re.compile("[,;|\n]+")


class Hint(NamedTuple):
    """Why an image is probably not found."""

    cause: str  # "" if nothing similar exists
    found: str  # name or path of the file that is probably meant, "" if there is none


def find_missing(names: Collection[str], folders: Sequence[Path]) -> dict[str, Hint]:
    """Returns the names that `build` would not find in the folders, with a hint each.

    Args:
        names: Names of images; they are kept in memory.
        folders: Sources of images, as for `sources.locate`.

    Raises:
        ValueError: A source is invalid.
    """
    missing = dict.fromkeys(names)
    for folder in folders:
        for at in sources.locate(folder):
            missing.pop(at.name, None)
            if not missing:
                return {}
    return explain_missing(missing, (at.whole for folder in folders for at in sources.locate(folder)), folders)


def explain_missing(names: Collection[str], available: Iterable[str], folders: Sequence[Path]) -> dict[str, Hint]:
    """Returns a hint for each name that is not found.

    Args:
        names: Names of images; they are kept in memory.
        available: Whole names of all images that can be found.
        folders: Sources of images.
    """
    wanted: dict[str, list[tuple[int, str]]] = collections.defaultdict(list)  # key → its rank, name
    for name in names:
        for part in {name, *_SEPARATORS.split(name)} - {""}:
            for rank, key in enumerate(_keys(part)):
                wanted[key].append((rank, name))
    similar: dict[str, tuple[int, str]] = {}
    for whole in available:
        for rank, key in enumerate(_keys(whole)):
            for other, name in wanted.get(key, ()):
                found = (max(rank, other), whole)
                similar[name] = min(similar.get(name, found), found)
    return {name: _explain(name, similar[name][1] if name in similar else "", folders) for name in names}


def format_hints(hints: Mapping[str, Hint]) -> str:
    """Returns the causes of missing images with counts and an example each, "" if none is known."""
    causes = collections.Counter(hint.cause for hint in hints.values() if hint.cause)
    examples: dict[str, tuple[str, str]] = {}
    for name, hint in hints.items():
        examples.setdefault(hint.cause, (name, hint.found))
    return "; ".join(
        f"{count:,} of {len(hints):,} {cause}, such as {examples[cause][0]!r}"
        + (f" ({examples[cause][1]!r} exists)" if examples[cause][1] else "")
        for cause, count in causes.most_common()
    )


def _explain(name: str, found: str, folders: Sequence[Path]) -> Hint:
    parts = Path(name).parts
    if name.startswith("/") or ".." in parts:
        return Hint("are not paths from --images", found)
    for folder in folders:
        if os.path.isfile(folder / name):
            if any(part.startswith(".") for part in parts):
                return Hint("are hidden files or in a hidden folder, whose name begins with a dot", "")
            return Hint("are reached through a link to a folder, whose images have the names of that folder", found)
        if not found and (encoding := _other_encoding(folder / name)):
            return Hint(f"have a file name in {encoding} instead of UTF-8, which convmv can change", "")
    if not found and re.match("https?://", name):
        return Hint("are URLs; fetch them with ./run.sh download, and name its folder", "")
    if not found:
        return Hint("", "")
    if _SEPARATORS.search(name) and not _SEPARATORS.search(found):
        return Hint("are lists of names; separate the names with '|'", found)
    changes = {
        "in their Unicode normal form": lambda text: unicodedata.normalize("NFC", text),
        "in lower and upper case": str.casefold,
        "in percent-encoding": unquote,
        "in backslashes": lambda text: text.replace("\\", "/"),
        "in spaces": str.strip,
        "in the extension": lambda text: os.path.splitext(text)[0],
    }
    for cause, change in changes.items():
        if change(name) == change(found):
            return Hint(f"differ only {cause}", found)
    if _spelling(name) == _spelling(found):
        return Hint("are spelled differently", found)
    if _last_part(name) == _last_part(found):
        return Hint("are in another folder", found)
    return Hint("have another extension or are in another folder", found)


def _spelling(name: str) -> str:
    """Returns what names have in common that differ in spelling only."""
    return unicodedata.normalize("NFC", unquote(name)).casefold().replace("\\", "/").strip()


def _keys(name: str) -> list[str]:
    """Returns what similar names have in common, that of the most similar ones first."""
    whole, last = _spelling(name), _spelling(_last_part(name))
    return [whole, last, *(f"{os.path.splitext(key)[0]}.*" for key in (whole, last))]


def _last_part(name: str) -> str:
    return re.split(r"[?#]", name, maxsplit=1)[0].replace("\\", "/").rpartition("/")[2]


def _other_encoding(path: Path) -> str:
    """Returns the encoding in which the folder has a file of this name, "" if there is none."""
    for encoding in ("gb18030", "big5", "shift_jis", "euc_kr", "cp1252"):
        with contextlib.suppress(UnicodeEncodeError):
            name = path.name.encode(encoding)
            if name != os.fsencode(path.name) and os.path.isfile(os.fsencode(path.parent) + b"/" + name):
                return encoding
    return ""
