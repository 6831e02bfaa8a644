"""Where images lie: in folders of any depth, and in the tar shards of a download, which are never unpacked.

A tar belongs to a download when its ledger, the Parquet file of the same stem, lies beside it (our downloader's
and img2dataset's do). An image in it is called as the last part of its URL. Names only ever look images up:
what is opened are the paths that were found here, and the bytes at an offset of a tar.
"""

import dataclasses
import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.images import decoding as images

MEMBER_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
COMPANION_SUFFIXES = (".tar", ".parquet", ".json", ".journal", ".tmp")  # of a download: no images, and some change
WHOLE_FILE = -1


class ImageSourceError(ValueError):
    """Images that cannot be used as they lie; the message names the file and what to change."""


@dataclasses.dataclass(frozen=True, slots=True)
class Location:
    """An image that some frame may name.

    Attributes:
      name: what a frame calls it.
      preference: of locations of one name the one with the lowest is taken. Unique for a name.
      is_alias: the name is only the last part of the path in a folder, where another file may have it too.
      path: of the file, relative to its source.
      offset: of the image in a tar; WHOLE_FILE in a folder.
      size: bytes of the image.
      sha256: of bytes already known to decode, so that they need not be decoded again; "" where not known.
    """

    name: str
    preference: int
    is_alias: bool
    path: str
    offset: int
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class _Found:
    """A file of a source: its path and folder relative to it, "" being the source itself."""

    folder: str
    name: str
    size: int

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}" if self.folder else self.name


def fingerprint(source: Path) -> str:
    """Hex digest of the names and sizes of the images of a source, and of its tars' ledgers.

    Images are not opened: that would cost as much as building. Times do not count, so that a copy is the same
    source; so an image replaced by another of the same name and of just the same size is not seen.

    Raises:
      ImageSourceError: the folder does not exist, or a tar without a ledger.
    """
    total = 0
    for file in _walk(source):
        line = f"{file.path} {file.size}"
        if file.name.endswith(".tar"):
            with _ledger_path(source, file).open("rb") as ledger:
                line += f" {hashlib.file_digest(ledger, 'sha256').hexdigest()}"
        # A sum does not depend on the order in which a folder lists its files: nothing needs to be sorted.
        total += int.from_bytes(hashlib.sha256(line.encode()).digest(), "big")
    return f"{total % 2**256:064x}"


def locate(source: Path) -> Iterator[Location]:
    """Yields the images of a source, those of a tar in the order in which they lie there.

    A file is known by its path from the source, and, with least preference, by the last part of that path.

    Raises:
      ImageSourceError: as for `fingerprint`, or a tar or a ledger that cannot be read.
    """
    folder, containers = None, 0  # folders and tars, counted: among namesakes the first container's is taken
    for file in _walk(source):
        if file.folder != folder or file.name.endswith(".tar"):
            folder, containers = file.folder, containers + 1
        preference = containers << 24
        if file.name.endswith(".tar"):
            for number, (name, offset, size, sha256) in enumerate(_members(source, file)):
                yield Location(name, preference + number, False, file.path, offset, size, sha256)
            continue
        yield Location(file.path, preference, False, file.path, WHOLE_FILE, file.size, "")
        if file.folder:
            yield Location(file.name, (1 << 56) + preference, True, file.path, WHOLE_FILE, file.size, "")


def _walk(source: Path) -> Iterator[_Found]:
    """Yields the images and tars of a source, folder after folder, the tars of each last and in order.

    Hidden files are those of desktops, and files whose names are not UTF-8 cannot be named by a frame.
    Links to folders are not followed: they may lead in a circle.
    """
    if not source.is_dir():
        raise ImageSourceError(f"images folder {source.absolute()} not found")
    waiting = [""]
    while waiting:
        folder, folders, tars, ledgers = waiting.pop(), [], [], []
        with os.scandir(source / folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not _is_utf8(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{folder}/{entry.name}" if folder else entry.name)
                elif entry.name.endswith(COMPANION_SUFFIXES):
                    if entry.name.endswith(".tar"):
                        tars.append(_Found(folder, entry.name, entry.stat().st_size))
                    elif entry.name.endswith(".parquet"):
                        ledgers.append(Path(entry.path))
                elif entry.is_file():
                    yield _Found(folder, entry.name, entry.stat().st_size)
        for path in sorted(ledgers):
            if not path.with_suffix(".tar").exists():
                _refuse_if_ledger(path)
        yield from sorted(tars, key=lambda file: file.name)
        waiting += sorted(folders, reverse=True)


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)  # how Python shows other bytes


def _refuse_if_ledger(path: Path) -> None:
    """Raises ImageSourceError where a Parquet file without a tar beside it is our downloader's, and lists images."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return
    if images.RULES_KEY not in metadata:  # another table, perhaps img2dataset's, which may write no tars
        return
    if arrived := pq.read_table(path, columns=["status"])["status"].to_pylist().count("success"):
        raise ImageSourceError(
            f"{path} lists {arrived} images, but {path.stem}.tar is not beside it: run the download again, "
            "which fetches them, or remove this file as well to do without them"
        )


def _ledger_path(source: Path, tar: _Found) -> Path:
    path = (source / tar.path).with_suffix(".parquet")
    if not path.is_file():
        raise ImageSourceError(
            f"{source / tar.path} has no {path.name} beside it: the shard of a download that was not finished? "
            "Finish the download, or take the tar away (an archive of images has to be unpacked)"
        )
    return path


def _members(source: Path, file: _Found) -> Iterator[tuple[str, int, int, str]]:
    """Yields image name, offset, size and sha256 (or "") of the images in a tar."""
    ledger = _Ledger(_ledger_path(source, file))
    path = source / file.path
    for member, name, offset, size, sha256 in ledger.members() if ledger.tells_places else _walk_tar(path, ledger):
        if offset + size > file.size:
            raise ImageSourceError(f"{path} ends within {member!r}: {_remedy(path)}")
        yield name, offset, size, sha256


def _walk_tar(path: Path, ledger: "_Ledger") -> Iterator[tuple[str, str, int, int, str]]:
    """Yields member, image name, offset, size and sha256 (or "") from the headers in a tar."""
    rows = ledger.by_key()
    try:
        with tarfile.open(path, "r:") as tar:  # headers only: contents are passed over
            for member in tar:
                key, _, suffix = member.name.rpartition("/")[2].partition(".")
                if not member.isreg() or suffix.lower() not in MEMBER_SUFFIXES:
                    continue
                if key not in rows:
                    raise ImageSourceError(f"{path} has {member.name!r}, which its ledger does not list")
                name, sha256 = rows[key]
                yield member.name, name, member.offset_data, member.size, sha256
    except tarfile.TarError as error:
        raise ImageSourceError(f"{path} is no whole tar ({error}): {_remedy(path)}") from error


class _Ledger:
    """What lies beside a tar and tells of its images."""

    def __init__(self, path: Path):
        """Reads the columns' names."""
        self._path = path
        schema = self._read(pq.read_schema)
        self._columns = set(schema.names)
        if missing := {"key", "url"} - self._columns:
            raise ImageSourceError(f"{path} has no column {' and no '.join(sorted(missing))}: no ledger of a download")
        # img2dataset's checksums are of bytes that it did not look at.
        self._vouches = (schema.metadata or {}).get(images.RULES_KEY) == images.RULES.encode()

    @property
    def tells_places(self) -> bool:
        """Whether it knows where in the tar each image is, as our downloader's does.

        Not while a journal lies beside it: a run that tries again may have been killed between tar and ledger.
        """
        return self._vouches and "start" in self._columns and not self._path.with_suffix(".journal").exists()

    def members(self) -> Iterator[tuple[str, str, int, int, str]]:
        """Yields key, image name, offset, size and sha256 of the images, in the order in which they lie there."""
        table = self._read(pq.read_table, columns=["key", "name", "start", "bytes", "sha256"])
        arrived = table.filter(pc.field("start").is_valid())
        return zip(*(column.to_pylist() for column in arrived.columns), strict=True)

    def by_key(self) -> dict[str, tuple[str, str]]:
        """Returns key → name of the image, and sha256 where the ledger vouches for it."""
        named = "name" in self._columns  # img2dataset's ledgers have the URL alone
        checked = self._vouches and "sha256" in self._columns
        columns = ["key", "name" if named else "url", *(["sha256"] if checked else [])]
        table = self._read(pq.read_table, columns=columns)
        sums = table["sha256"].to_pylist() if checked else [None] * len(table)
        names = table["name"].to_pylist() if named else [_name(url) for url in table["url"].to_pylist()]
        rows = zip(table["key"].to_pylist(), names, sums, strict=True)
        return {key: (name, sha256 or "") for key, name, sha256 in rows}

    def _read(self, function, **arguments):
        try:
            return function(self._path, **arguments)
        except (OSError, pa.ArrowInvalid) as error:
            raise ImageSourceError(f"{self._path} cannot be read ({error}): {_remedy(self._path)}") from error


def _remedy(path: Path) -> str:
    return f"remove {path} and run the download again, which fetches this shard anew"


def _name(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])
