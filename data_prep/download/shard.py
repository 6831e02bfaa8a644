"""A shard: some items of a domain, and the tar of their images. The tar's bytes depend on the images alone."""

import contextlib
import dataclasses
import io
import json
import math
import tarfile
import urllib.parse
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from data_prep.catalog.files import Item
from data_prep.download import ledger
from data_prep.download.durable import replaced
from data_prep.download.fetch import Answer
from data_prep.download.journal import Journal
from data_prep.download.ledger import Row

_TOLD = ("key", "url", "status", "name", "sha256", "width", "height", "original_width", "original_height")


def tar_path(folder: Path, number: int) -> Path:
    """Returns the path of a shard's tar."""
    return folder / f"{number:05d}.tar"


def ledger_path(folder: Path, number: int) -> Path:
    """Returns the path of a shard's ledger."""
    return folder / f"{number:05d}.parquet"


def journal_path(folder: Path, number: int) -> Path:
    """Returns the path of the journal that a shard has while it is not finished."""
    return folder / f"{number:05d}.journal"


def names_of(items: Sequence[Item]) -> list[str]:
    """Returns the names of the items' frames in row order, each once: the positions of a shard."""
    return list(dict.fromkeys(frame.name for item in items for frame in item.frames))


class Shard:
    """A shard that is being fetched: takes answers in any order, and is written when the last one is there."""

    def __init__(
        self,
        folder: Path,
        number: int,
        *,
        start: int,
        items: Sequence[Item],
        rows: Mapping[int, Row],
        asked: Sequence[int],
        url_prefix: str,
    ):
        """
        Args:
          folder: where the files go.
          number: of the shard in its domain, from 0.
          start: row of the first item.
          items: the items.
          rows: position → what an earlier run wrote to the ledger; empty at the first time.
          asked: positions to fetch, beside those that a journal names.
          url_prefix: what makes a URL of a quoted name.
        """
        self._folder = folder
        self._number = number
        self._start = start
        self._items = items
        self._earlier = rows
        self._url_prefix = url_prefix
        self._asked = asked
        self._names = names_of(items)
        self._journal: Journal | None = None  # until opened
        self._left = 0

    def open(self) -> list[int]:
        """Starts the shard, or goes on with it; returns the positions that have no answer yet, in order."""
        self._journal = Journal(journal_path(self._folder, self._number), self._asked)
        todo = sorted(self._journal.asked - self._journal.rows.keys())
        self._left = len(todo)
        return todo

    @property
    def path(self) -> Path:
        """The tar."""
        return tar_path(self._folder, self._number)

    @property
    def frames(self) -> int:
        """Number of frames of the items."""
        return sum(len(item.frames) for item in self._items)

    @property
    def complete(self) -> bool:
        """Whether every position has its answer."""
        return not self._left

    def url(self, position: int) -> str:
        """Returns where the image of a position is."""
        return make_url(self._url_prefix, self._names[position])

    def arrived(self) -> list[int]:
        """Returns the positions of images that have arrived, in order."""
        rows = {**self._earlier, **self._journal.rows}
        return sorted(position for position, row in rows.items() if row.ok)

    def add(self, position: int, answer: Answer) -> None:
        """Takes the answer for a position."""
        common = {
            "key": f"{self._number:05d}{position:05d}",
            "url": self.url(position),
            "name": self._names[position],
            "tries": answer.tries + (self._earlier[position].tries if position in self._earlier else 0),
            "http_status": answer.http_status,
        }
        if answer.failure:
            row = Row(**common, status=ledger.FAILED, failure=answer.failure.value, error_message=str(answer.result))
            self._journal.append(position, row, b"")
        else:
            told = {key: value for key, value in vars(answer.result).items() if key != "data"}
            row = Row(**common, status=ledger.SUCCESS, bytes=len(answer.result.data), **told)
            self._journal.append(position, row, answer.result.data)
        self._left -= 1

    def write(self) -> list[Row]:
        """Writes tar and ledger, the ledger last: it makes the shard a finished one. Then removes the journal.

        Returns:
          The ledger.
        """
        rows = {**self._earlier, **self._journal.rows}
        in_order = [rows[position] for position in range(len(self._names))]
        changed = [position for position in self._journal.rows if rows[position].ok or self._was_ok(position)]
        if changed or not self.path.exists() or any(row.ok and row.start is None for row in in_order):
            in_order = self._write_tar(in_order)
        footer = ledger.Footer(self._start, self._start + len(self._items), ledger.cover(self._items, in_order))
        ledger.write(ledger_path(self._folder, self._number), in_order, footer)
        self._journal.remove()
        return in_order

    def close(self) -> None:
        """Leaves the shard to a later run."""
        if self._journal is not None:
            self._journal.close()

    def _was_ok(self, position: int) -> bool:
        return position in self._earlier and self._earlier[position].ok

    def _write_tar(self, rows: Sequence[Row]) -> list[Row]:
        """Writes the images and returns the rows with where each one's bytes start."""
        placed = []
        with contextlib.ExitStack() as stack:
            old = stack.enter_context(tarfile.open(self.path)) if self._earlier else ()
            members = {member.name: member for member in old}
            file = stack.enter_context(replaced(self.path))
            tar = stack.enter_context(tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT))
            for position, row in enumerate(rows):
                if row.ok:
                    image = f"{row.key}.{row.extension}"
                    if position in self._journal.rows:
                        body = self._journal.body(position)
                    else:
                        body = old.extractfile(members[image]).read()
                    row = dataclasses.replace(row, start=add_image(tar, row, body))
                placed.append(row)
        return placed


def make_url(url_prefix: str, name: str) -> str:
    """Returns the URL of an image: the prefix and the percent-quoted name, whose `/` stay."""
    return url_prefix + urllib.parse.quote(name)


def add_image(tar: tarfile.TarFile, row: Row, body: bytes) -> int:
    """Adds an image and what is known of it; returns where the image's bytes start in the tar."""
    start = _add(tar, f"{row.key}.{row.extension}", body)
    told = {key: getattr(row, key) for key in _TOLD}
    _add(tar, f"{row.key}.json", json.dumps(told, ensure_ascii=False).encode())
    return start


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    info = tarfile.TarInfo(name)  # owner, time and mode are constants: same images, same bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return tar.offset - tarfile.BLOCKSIZE * math.ceil(len(data) / tarfile.BLOCKSIZE)


def rows_to_retry(rows: Mapping[int, Row], classes: Set[str], refused: Set[str]) -> list[int]:
    """Returns positions that failed for one of the reasons `classes`, or whose image is now refused by its sha256."""
    return [position for position, row in rows.items() if row.failure in classes or row.sha256 in refused]
