"""Finds images in folders of any depth and in the tar shards of a download, which are read in place.

A tar belongs to a download if its ledger, the Parquet file of the same stem, is next to it (as for our downloader and
img2dataset). Its images are named by the last part of their URLs. Names are only looked up, never opened as paths.
"""

import contextlib
import dataclasses
import hashlib
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.common.files import TEMPORARY, file_sha256
from data_prep.images.decoding import RULES, RULES_KEY

MEMBER_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
COMPANION_SUFFIXES = (".tar", ".parquet", ".json", ".journal", TEMPORARY)  # of a download: no images, and some change
WHOLE_FILE = -1


@dataclasses.dataclass(frozen=True, slots=True)
class Location:
    """An image of a source, under one of the names by which a frame may refer to it."""

    name: str
    preference: int  # the lowest one among those of a name is used; unique per name
    is_alias: bool  # the name is only the last part of the path, which other files may share
    path: str  # of the file, relative to its source
    start: int  # offset of the image in a tar; WHOLE_FILE if the file is the image
    size: int  # in bytes
    sha256: str  # of bytes that are known to decode, so that they need not be decoded again; "" if unknown


@dataclasses.dataclass(frozen=True)
class _File:
    folder: str  # relative to the source, "" for the source itself
    name: str
    size: int

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}" if self.folder else self.name


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

    A file is named by its path from the source and, with lower priority, by the last part of that path.

    Raises:
        ValueError: As for `fingerprint`, or a tar or a ledger is invalid.
    """
    folder, containers = None, 0  # folders and tars; of several images of a name, the first container's is used
    for file in _walk(source):
        if file.folder != folder or file.name.endswith(".tar"):
            folder, containers = file.folder, containers + 1
        preference = containers << 24
        if file.name.endswith(".tar"):
            for number, (name, start, size, sha256) in enumerate(_members(source, file)):
                yield Location(name, preference + number, False, file.path, start, size, sha256)
            continue
        yield Location(file.path, preference, False, file.path, WHOLE_FILE, file.size, "")
        if file.folder:
            yield Location(file.name, (1 << 56) + preference, True, file.path, WHOLE_FILE, file.size, "")


def _walk(source: Path) -> Iterator[_File]:
    """Yields the images and tars of a source, folder by folder, the tars of a folder last and sorted.

    Hidden files belong to desktops, files whose names are not UTF-8 cannot be named by a frame, and links to folders
    may form a circle: all of these are skipped.
    """
    if not source.is_dir():
        raise ValueError(f"images folder {source.absolute()} not found")
    waiting = [""]
    while waiting:
        folder, folders, tars, tables = waiting.pop(), [], [], []
        with os.scandir(source / folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not _is_utf8(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{folder}/{entry.name}" if folder else entry.name)
                elif entry.name.endswith(COMPANION_SUFFIXES):
                    if entry.name.endswith(".tar"):
                        tars.append(_File(folder, entry.name, entry.stat().st_size))
                    elif entry.name.endswith(".parquet"):
                        tables.append(Path(entry.path))
                elif entry.is_file():
                    yield _File(folder, entry.name, entry.stat().st_size)
        for path in sorted(tables):
            if not path.with_suffix(".tar").exists():
                _check_lists_no_images(path)
        yield from sorted(tars, key=lambda file: file.name)
        waiting += sorted(folders, reverse=True)


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)  # Python's substitutes for other bytes


def _check_lists_no_images(path: Path) -> None:
    """Raises ValueError if a Parquet file without a tar is a ledger of our downloader that lists images."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return
    if RULES_KEY not in metadata:  # another table, or a ledger of img2dataset, which may write no tars
        return
    if count := pq.read_table(path, columns=["status"])["status"].to_pylist().count("success"):
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


def _members(source: Path, file: _File) -> Iterator[tuple[str, int, int, str]]:
    """Yields image name, offset, size and sha256 (or "") of the images in a tar."""
    path, ledger = source / file.path, _ledger_path(source, file)
    with _explain_errors(ledger):
        schema = pq.read_schema(ledger)
    if missing := {"key", "url"} - set(schema.names):
        columns = " and no ".join(sorted(missing))
        raise ValueError(f"{ledger} has no column {columns}: it is not the ledger of a download")
    # img2dataset's hashes are of bytes that it did not check.
    checked = (schema.metadata or {}).get(RULES_KEY) == RULES.encode()
    # Offsets do not count while there is a journal: a killed retry may have written the tar but not the ledger.
    if checked and "start" in schema.names and not ledger.with_suffix(".journal").exists():
        members = _listed_members(ledger)
    else:
        members = _walk_tar(path, _read_names(ledger, schema.names, checked))
    for member, name, start, size, sha256 in members:
        if start + size > file.size:
            raise ValueError(f"{path} is truncated in {member!r}: {_remedy(path)}")
        yield name, start, size, sha256


def _listed_members(ledger: Path) -> Iterator[tuple[str, str, int, int, str]]:
    """Yields key, image name, offset, size and sha256 from the ledger, in the order of the tar."""
    with _explain_errors(ledger):
        table = pq.read_table(ledger, columns=["key", "name", "start", "bytes", "sha256"])
    arrived = table.filter(pc.field("start").is_valid())
    return zip(*(column.to_pylist() for column in arrived.columns), strict=True)


def _read_names(ledger: Path, columns: Sequence[str], checked: bool) -> dict[str, tuple[str, str]]:
    """Returns key → image name, and sha256 of checked bytes or ""."""
    wanted = ["key", "name" if "name" in columns else "url"]  # img2dataset's ledgers have no names
    wanted += ["sha256"] if checked and "sha256" in columns else []
    with _explain_errors(ledger):
        table = pq.read_table(ledger, columns=wanted)
    keys, names, *hashes = (column.to_pylist() for column in table.columns)
    if "url" in wanted:
        names = [unquote(urlsplit(url).path.rpartition("/")[2]) for url in names]
    rows = zip(keys, names, *(hashes or [[None] * len(keys)]), strict=True)
    return {key: (name, sha256 or "") for key, name, sha256 in rows}


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


@contextlib.contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} cannot be read ({error}): {_remedy(path)}") from error


def _remedy(path: Path) -> str:
    return f"remove {path} and run the download again to fetch this shard"
