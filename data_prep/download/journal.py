"""What has arrived of a shard that is not finished, so that a kill loses the requests under way and nothing else.

A line of JSON that says which positions are asked, then for each answer a line of JSON and the image's bytes. It is
not synced: after a power cut, checksums tell which answers reached the disk.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from data_prep.download.ledger import Row


class Journal:
    """Answers by position, kept in a file."""

    def __init__(self, path: Path, asked: Sequence[int]):
        """Goes on with the journal at `path`, or starts one for the positions `asked`."""
        self._path = path
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._places: dict[int, int] = {}  # position → where its bytes begin
        self.rows: dict[int, Row] = {}
        self.asked = frozenset(asked)
        self._end = self._read()
        self._file.truncate(self._end)
        self._file.seek(self._end)
        if not self._end:
            self._end = self._file.write(json.dumps(list(asked)).encode() + b"\n")

    def _read(self) -> int:
        """Reads what is whole, and returns where that ends."""
        with self._path.open("rb") as file:
            header = file.readline()
            if not header.endswith(b"\n"):
                return 0
            try:
                self.asked |= frozenset(json.loads(header))
            except ValueError:
                return 0
            while (line := file.readline()).endswith(b"\n"):
                place = file.tell()
                try:
                    position, fields = json.loads(line)
                    row = Row(**fields)
                except (ValueError, TypeError):
                    return place - len(line)
                body = file.read(row.bytes or 0)
                if row.ok and hashlib.sha256(body).hexdigest() != row.sha256:
                    return place - len(line)
                self.rows[position], self._places[position] = row, place
            return file.tell() - len(line)

    def append(self, position: int, row: Row, body: bytes) -> None:
        """Adds an answer; `body` is empty where no image arrived."""
        line = json.dumps([position, vars(row)]).encode() + b"\n"
        place = self._end + len(line)
        entry = memoryview(line + body)
        while entry:  # unbuffered, so that a kill loses nothing; then a write may be of a part
            entry = entry[self._file.write(entry) :]
        self._end = place + len(body)
        self.rows[position], self._places[position] = row, place

    def body(self, position: int) -> bytes:
        """Returns the bytes of an image that arrived."""
        return os.pread(self._file.fileno(), self.rows[position].bytes, self._places[position])

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Deletes the file: the shard is finished."""
        self.close()
        self._path.unlink()
