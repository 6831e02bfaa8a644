"""A shard: some items of a domain and the tar of their images, whose bytes depend only on the images."""

import contextlib
import dataclasses
import io
import json
import tarfile
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.catalog.files import Item
from data_prep.common.files import atomic_write
from data_prep.download import ledger
from data_prep.download.journal import Journal
from data_prep.download.ledger import Row
from data_prep.videos.clip_names import parse_clip, strip_fragment

if TYPE_CHECKING:
    from data_prep.download.fetch import Answer

_JSON_FIELDS = ("key", "url", "status", "name", "sha256", "width", "height", "original_width", "original_height")


def shard_path(folder: Path, number: int, suffix: str) -> Path:
    """Returns the path of a shard's tar, ledger (".parquet") or, until it is finished, journal (".journal")."""
    return folder / f"{number:05d}{suffix}"


def image_names(items: Sequence[Item]) -> list[str]:
    """Returns the distinct names of the items' images and videos in row order, which are the positions of a shard."""
    return list(dict.fromkeys(strip_fragment(frame.name) for item in items for frame in item.frames))


@dataclasses.dataclass(eq=False)
class Shard:
    """Collects the answers of a shard in any order after `open`, and writes it after the last one."""

    folder: Path  # of its files
    number: int  # in its domain, from 0
    url_prefix: str
    start: int  # row of the first item
    items: Sequence[Item]
    rows: Mapping[int, Row]  # position → row of the ledger of an earlier run; empty if there is none
    requested: Sequence[int]  # positions to fetch, in addition to those of a journal

    def open(self) -> None:
        """Starts or resumes the shard."""
        self._names = image_names(self.items)
        clips = (parse_clip(frame.name) for item in self.items for frame in item.frames)
        self._videos = {clip.video for clip in clips if clip}
        self._journal = Journal(shard_path(self.folder, self.number, ".journal"), self.requested)
        self.path = shard_path(self.folder, self.number, ".tar")
        self.frames = sum(len(item.frames) for item in self.items)
        self.todo = sorted(self._journal.requested - self._journal.rows.keys())  # positions without an answer
        self._left = len(self.todo)

    @property
    def complete(self) -> bool:
        """Whether every position has an answer."""
        return not self._left

    def url(self, position: int) -> str:
        """Returns the URL of the image at a position."""
        return make_url(self.url_prefix, self._names[position])

    def is_video(self, position: int) -> bool:
        """Returns whether the file at a position is a video, of which items are clips."""
        return self._names[position] in self._videos

    def arrived(self) -> list[int]:
        """Returns the positions of images that have arrived, in order."""
        rows = {**self.rows, **self._journal.rows}
        return sorted(position for position, row in rows.items() if row.ok)

    def add(self, position: int, answer: "Answer") -> None:
        """Records the answer for a position."""
        earlier = self.rows.get(position)
        row = Row(
            key=f"{self.number:05d}{position:05d}",
            url=self.url(position),
            status=ledger.SUCCESS if answer.picture else ledger.FAILED,
            name=self._names[position],
            tries=answer.tries + (earlier.tries if earlier else 0),
            http_status=answer.http_status,
            failure=answer.failure and answer.failure.value,
            error_message=answer.error_message,
        )
        if (picture := answer.picture) is None:
            self._journal.append(position, row, b"")
        else:
            fields = {name: value for name, value in vars(picture).items() if name != "data"}
            row = dataclasses.replace(row, bytes=len(picture.data), **fields)
            self._journal.append(position, row, picture.data)
        self._left -= 1

    def write(self) -> list[Row]:
        """Writes the tar and then the ledger, which makes the shard a finished one; removes the journal.

        Returns:
            The rows of the ledger.
        """
        rows = {**self.rows, **self._journal.rows}
        in_order = [rows[position] for position in range(len(self._names))]
        before = {position for position, row in self.rows.items() if row.ok}
        changed = any(row.ok or position in before for position, row in self._journal.rows.items())
        if changed or not self.path.exists() or any(row.ok and row.start is None for row in in_order):
            in_order = self._write_tar(in_order)
        coverage = ledger.count_coverage(self.items, in_order)
        footer = ledger.Footer(self.start, self.start + len(self.items), coverage)
        ledger.write_ledger(shard_path(self.folder, self.number, ".parquet"), in_order, footer)
        self._journal.remove()
        return in_order

    def close(self) -> None:
        """Leaves an unfinished shard to a later run."""
        self._journal.close()

    def _write_tar(self, rows: Sequence[Row]) -> list[Row]:
        """Writes the images and returns the rows with their offsets."""
        written = []
        with contextlib.ExitStack() as stack:
            earlier = stack.enter_context(tarfile.open(self.path)) if self.rows else None
            members = {member.name: member for member in earlier or ()}
            file = stack.enter_context(atomic_write(self.path, durable=True))
            tar = stack.enter_context(tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT))
            for position, row in enumerate(rows):
                if row.ok:
                    if position in self._journal.rows or earlier is None:
                        body = self._journal.body(position)
                    else:
                        image = earlier.extractfile(members[_member_name(row)])
                        assert image is not None  # as for folders
                        body = image.read()
                    row = dataclasses.replace(row, start=add_image(tar, row, body))
                written.append(row)
        return written


def make_url(url_prefix: str, name: str) -> str:
    """Returns the URL of an image: its name if that is one, or the prefix and the percent-encoded name."""
    return name if name.startswith(("http://", "https://")) else url_prefix + urllib.parse.quote(name)


def add_image(tar: tarfile.TarFile, row: Row, body: bytes) -> int:
    """Adds an image and its JSON to a tar; returns the offset of the image's bytes."""
    start = _add(tar, _member_name(row), body)
    fields = {name: getattr(row, name) for name in _JSON_FIELDS}
    _add(tar, f"{row.key}.json", json.dumps(fields, ensure_ascii=False).encode())
    return start


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    info = tarfile.TarInfo(name)  # owner, time and mode are constants, so that the same images give the same bytes
    info.size = len(data)
    start = tar.offset + tarfile.BLOCKSIZE  # after the header, which has one block in this format
    tar.addfile(info, io.BytesIO(data))
    return start


def _member_name(row: Row) -> str:
    return f"{row.key}.{row.extension}"
