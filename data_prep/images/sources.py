"""Finds images in folders of any depth and in the tar shards of a download, which are read in place.

A tar belongs to a download if its ledger, the Parquet file of the same stem, is next to it (as for our downloader and
img2dataset). Names are only looked up, never opened as paths.
"""

import collections
import dataclasses
import errno
import hashlib
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.common.files import TEMPORARY, file_sha256
from data_prep.common.parquet import open_parquet
from data_prep.images.decoding import RULES, RULES_KEY

MEMBER_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "avif", "tif", "tiff", "heic", "heif", "jxl", "jp2")
MEMBER_SUFFIXES += ("mp4", "mov", "webm", "mkv")
COMPANION_SUFFIXES = (".tar", ".parquet", ".json", ".journal", TEMPORARY)  # of a download: no images, and some change
WHOLE_FILE = -1
ALIAS = 1 << 56  # added to the preference of names that are only the last part
_UNREACHABLE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # of a link that leads nowhere


@dataclasses.dataclass(frozen=True, slots=True)
class Location:
    """An image of a source, under one of the names by which a frame may refer to it."""

    name: str  # `whole`, or its last part, which other images may share
    whole: str  # path from the source, name in the catalog of a download, or URL in a shard of img2dataset
    preference: int  # the lowest one among those of a name is used; unique per name
    path: str  # of the file, relative to its source
    start: int  # offset of the image in a tar; WHOLE_FILE if the file is the image
    size: int  # in bytes
    sha256: str  # of the bytes that were downloaded, "" if unknown


@dataclasses.dataclass(frozen=True)
class _File:
    folder: str  # relative to the source, "" for the source itself
    name: str
    size: int

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}" if self.folder else self.name


def split_folders(values: Sequence[str]) -> list[Path]:
    """Returns the folders of a flag that may be repeated: each value is one, or several separated by commas.

    A value that exists is one folder, whatever its name.
    """
    return [
        Path(folder)
        for value in values
        for folder in ([value] if os.path.lexists(value) else value.split(","))
        if folder
    ]


def fingerprint(source: Path) -> str:
    """Returns a hash of the names and sizes of a source's images and of the ledgers of its tars, as hex digits.

    Images are not opened, which would take as long as building, and times are ignored, so that a copy is the same
    source. An image that is replaced by one of the same name and size is therefore not noticed.

    Raises:
        ValueError: The folder does not exist, or a tar has no ledger.
    """
    total = 0
    for file in _walk(source):
        line = f"{file.path} {file.size}"
        if file.name.endswith(".tar"):
            line += f" {file_sha256(_ledger_path(source, file))}"
        # A sum does not depend on the order in which a folder lists its files, so nothing needs sorting.
        total += int.from_bytes(hashlib.sha256(line.encode()).digest(), "big")
    return f"{total % 2**256:064x}"


def locate(source: Path) -> Iterator[Location]:
    """Yields the images of a source; those of a tar in their order in it.

    An image of a folder is named by its path from the source, one of our downloads as in the catalog, and one of
    img2dataset by its whole URL. With lower priority, the last part of a path or URL is a name as well.

    Raises:
        ValueError: As for `fingerprint`, or a tar or a ledger is invalid.
    """
    folder, containers = None, 0  # folders and tars; of several images of a name, the first container's is used
    for file in _walk(source):
        if file.folder != folder or file.name.endswith(".tar"):
            folder, containers = file.folder, containers + 1
        preference = containers << 24
        if file.name.endswith(".tar"):
            images = _members(source, file)
        else:
            images = [(file.path, file.name, WHOLE_FILE, file.size, "")]
        for number, (whole, last, start, size, sha256) in enumerate(images, preference):
            yield Location(whole, whole, number, file.path, start, size, sha256)
            if last != whole:
                yield Location(last, whole, ALIAS + number, file.path, start, size, sha256)


def _walk(source: Path) -> Iterator[_File]:
    """Yields the images and tars of a source, folder by folder, the tars of a folder last and sorted.

    Hidden files belong to desktops, and files whose names are not UTF-8 cannot be named by a frame: they are skipped.
    Links to folders are followed, but each folder is visited once: by its own path if it has one.
    """
    if not source.is_dir():
        raise ValueError(f"images folder {source.absolute()} not found")
    waiting, links = [""], collections.deque[str]()
    visited = set()
    while waiting or links:
        folder = waiting.pop() if waiting else links.popleft()
        status = os.stat(source / folder)
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        folders, linked, tars, tables = [], [], [], []
        with os.scandir(source / folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not _is_utf8(entry.name) or not (found := _stat(entry)):
                    continue
                file = _File(folder, entry.name, found.st_size)
                if stat.S_ISDIR(found.st_mode):
                    (linked if entry.is_symlink() else folders).append(file.path)
                elif not stat.S_ISREG(found.st_mode):
                    continue
                elif entry.name.endswith(".tar"):
                    tars.append(file)
                elif entry.name.endswith(".parquet"):
                    tables.append(Path(entry.path))
                elif not entry.name.endswith(COMPANION_SUFFIXES):
                    yield file
        for path in sorted(tables):
            if not path.with_suffix(".tar").exists():
                _check_lists_no_images(path)
        yield from sorted(tars, key=lambda file: file.name)
        waiting += sorted(folders, reverse=True)
        links += sorted(linked)


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Returns the status of a file or of the target of a link, None if there is none."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno not in _UNREACHABLE:
            raise
        return None


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)  # Python's substitutes for other bytes


def _check_lists_no_images(path: Path) -> None:
    """Raises ValueError if a Parquet file without a tar is a ledger of our downloader that lists images."""
    try:
        with open_parquet(path) as file:
            if RULES_KEY not in (file.metadata.metadata or {}):
                return  # another table, or a ledger of img2dataset, which may write no tars
            count = file.read(["status"])["status"].to_pylist().count("success")
    except (OSError, ValueError):
        return
    if count:
        raise ValueError(
            f"{path} lists {count} images, but {path.stem}.tar is missing: run the download again to fetch them, or "
            "remove this file as well to build without them"
        )


def _ledger_path(source: Path, tar: _File) -> Path:
    path = (source / tar.path).with_suffix(".parquet")
    if not path.is_file():
        raise ValueError(
            f"{source / tar.path} has no ledger {path.name} next to it: if it is a shard of a download, finish the "
            "download; an archive of images must be unpacked"
        )
    return path


def _members(source: Path, file: _File) -> Iterator[tuple[str, str, int, int, str]]:
    """Yields whole name, its last part, offset, size and sha256 (or "") of the images in a tar."""
    path, ledger = source / file.path, _ledger_path(source, file)
    rows = _read_ledger(ledger)
    # Offsets do not count while there is a journal: a killed retry may have written the tar but not the ledger.
    if "start" in rows.column_names and not ledger.with_suffix(".journal").exists():
        arrived = rows.filter(pc.field("start").is_valid()).select(["key", "name", "start", "bytes", "sha256"])
        members = zip(*(column.to_pylist() for column in arrived.columns), strict=True)
    else:
        members = _walk_tar(path, _names(rows))
    for member, name, start, size, sha256 in members:
        if start + size > file.size:
            raise ValueError(f"{path} is truncated in {member!r}: {_remedy(path)}")
        if name:
            yield name, name if "name" in rows.column_names else _last_part(name), start, size, sha256


def _read_ledger(path: Path) -> pa.Table:
    """Returns the columns of a ledger that matter; `name`, `start`, `bytes` and `sha256` only of our downloader's."""
    with open_parquet(path, remedy=_remedy(path)) as file:
        names, metadata = file.schema_arrow.names, file.metadata.metadata or {}
        if missing := {"key", "url"} - set(names):
            columns = " and no ".join(sorted(missing))
            raise ValueError(f"{path} has no column {columns}: it is not the ledger of a download")
        # Other columns of img2dataset's ledgers are the user's, whatever their names, and its hashes are of bytes that
        # it may have changed since.
        ours = {"name", "start", "bytes", "sha256"} if RULES_KEY in metadata else set()
        is_current = metadata.get(RULES_KEY) == RULES.encode()  # otherwise, images were not checked by today's rules
        wanted = [name for name in names if name in {"key", "url"} | ours]
        if len(set(wanted)) < len(wanted):
            raise ValueError(f"{path} has columns {', '.join(wanted)}: each may occur once in the ledger of a download")
        table = file.read(wanted)
        for number, name in enumerate(table.column_names):
            if name not in ("start", "bytes"):
                texts = _texts(table[name]) if name != "sha256" or is_current else [""] * len(table)
                table = table.set_column(number, name, pa.array(texts, pa.string()))
        return table


def _texts(column: pa.ChunkedArray) -> list[str]:
    """Returns the texts of a column, "" for null; bytes that are no UTF-8 are replaced."""
    values = column.cast(pa.string(), safe=False).cast(pa.binary()).to_pylist()
    return [(value or b"").decode("utf-8", "replace") for value in values]


def _names(rows: pa.Table) -> dict[str, tuple[str, str]]:
    """Returns key → whole name and sha256 of an image; "" if the ledger has none."""
    names = rows["name" if "name" in rows.column_names else "url"].to_pylist()
    hashes = rows["sha256"].to_pylist() if "sha256" in rows.column_names else [""] * len(names)
    return dict(zip(rows["key"].to_pylist(), zip(names, hashes, strict=True), strict=True))


def _last_part(url: str) -> str:
    """Returns the file name in a URL; `urlsplit` raises ValueError for some of those in the wild."""
    return unquote(re.split("[?#]", url, maxsplit=1)[0].rpartition("/")[2])


def _walk_tar(path: Path, names: Mapping[str, tuple[str, str]]) -> Iterator[tuple[str, str, int, int, str]]:
    """Yields member, image name, offset, size and sha256 (or "") from the headers in a tar."""
    try:
        with tarfile.open(path, "r:") as tar:  # reads headers and seeks over contents
            for member in tar:
                key, _, suffix = member.name.rpartition("/")[2].partition(".")
                if not member.isreg() or suffix.lower() not in MEMBER_SUFFIXES:
                    continue
                if key not in names:
                    raise ValueError(f"{path} has {member.name!r}, which its ledger does not list")
                name, sha256 = names[key]
                yield member.name, name, member.offset_data, member.size, sha256
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a complete tar ({error}): {_remedy(path)}") from error


def _remedy(path: Path) -> str:
    return f"remove {path} and run the download again to fetch this shard"
