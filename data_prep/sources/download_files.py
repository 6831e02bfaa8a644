"""Reads the files of a downloaded data set, unpacked or still in tar files."""

import csv
import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.common.files import atomic_write
from data_prep.images.decoding import RULES_KEY

_LEDGER = pa.schema(
    [(name, pa.string()) for name in ("key", "url", "name", "sha256")] + [("start", pa.int64()), ("bytes", pa.int64())],
    {RULES_KEY: b""},
)


def read_lines(folder: Path, pattern: str, archive: str) -> Iterator[tuple[str, str]]:
    """Yields "file, line N" and the text of each line of the gzip files that match a pattern.

    Raises:
        FileNotFoundError: Neither the folder nor its tar file `archive` has such files.
    """
    for name, lines in _open(folder, pattern, archive):
        yield from ((f"{name}, line {number}", line) for number, line in enumerate(lines, start=1))


def read_csv(folder: Path, path: str, archive: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a gzipped CSV file by column; raises as `read_lines` does."""
    for _, lines in _open(folder, path, archive):
        yield from csv.DictReader(lines)


def _open(folder: Path, pattern: str, archive: str) -> Iterator[tuple[str, Iterator[str]]]:
    """Yields the names and the lines of the files that match a pattern."""
    found = 0
    for path in sorted(folder.glob(pattern)):
        found += 1
        with gzip.open(path, "rt", encoding="utf-8", errors="replace", newline="") as lines:
            yield path.name, lines
    if not found and (folder / archive).is_file():
        with tarfile.open(folder / archive, "r:") as tar:
            for member in tar:
                if PurePosixPath(member.name).match(pattern) and (file := tar.extractfile(member)):
                    found += 1
                    yield member.name, io.TextIOWrapper(gzip.GzipFile(fileobj=file), "utf-8", "replace", newline="")
    if not found:
        raise FileNotFoundError(f"{folder} has neither {pattern} nor {archive} with it: download it, or check the path")


def index_tar(archive: Path) -> None:
    """Writes a ledger of the images in a tar next to it, unless there is one, so that builds read them in place."""
    if archive.with_suffix(".parquet").exists():
        return
    rows = []
    with tarfile.open(archive, "r:") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if member.isreg() and path.suffix.lower() in (".jpg", ".jpeg", ".png"):
                place = {"start": member.offset_data, "bytes": member.size}
                rows.append({"key": path.stem, "url": "", "name": str(path), "sha256": "", **place})
    with atomic_write(archive.with_suffix(".parquet")) as file:
        pq.write_table(pa.Table.from_pylist(rows, _LEDGER), file)
