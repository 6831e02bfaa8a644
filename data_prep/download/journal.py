"""Keeps the answers of an unfinished shard, so that a killed process loses only the requests in flight.

The first line is the JSON list of requested positions; each answer is a line of JSON followed by the image's bytes. The
file is not synced: after a power failure, hashes tell which answers are complete.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from data_prep.download.ledger import Row


class Journal:
    """Answers by position, stored in a file."""

    def __init__(self, path: Path, requested: Sequence[int]) -> None:
        """Resumes the journal at `path`, or starts one, and adds to the requested positions."""
        self._path = path
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._starts: dict[int, int] = {}  # position → offset of the image's bytes
        self.rows: dict[int, Row] = {}  # position → answer
        self.requested = frozenset(requested)  # positions to fetch
        self._end = self._read()
        self._file.truncate(self._end)
        self._file.seek(self._end)
        if not self._end:
            self._write(json.dumps(list(requested)).encode() + b"\n")

    def _read(self) -> int:
        """Reads the complete answers and returns where they end."""
        with self._path.open("rb") as file:
            header = file.readline()
            if not header.endswith(b"\n"):
                return 0
            try:
                self.requested |= frozenset(json.loads(header))
            except ValueError:
                return 0
            while (line := file.readline()).endswith(b"\n"):
                start = file.tell()
                try:
                    position, fields = json.loads(line)
                    row = Row(**fields)
                except (ValueError, TypeError):
                    return start - len(line)
                body = file.read(row.bytes or 0)
                if row.ok and hashlib.sha256(body).hexdigest() != row.sha256:
                    return start - len(line)
                self.rows[position], self._starts[position] = row, start
            return file.tell() - len(line)

    def append(self, position: int, row: Row, body: bytes) -> None:
        """Adds an answer; `body` is empty if no image arrived."""
        line = json.dumps([position, vars(row)]).encode() + b"\n"
        start = self._end + len(line)
        self._write(line + body)
        self.rows[position], self._starts[position] = row, start

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:  # the file is unbuffered, so that a killed process loses nothing, and writes may be partial
                left = left[self._file.write(left) :]
        except OSError as error:  # of a full disk, for example, which does not name the file
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._end += len(data)

    def body(self, position: int) -> bytes:
        """Returns the bytes of an image that arrived."""
        return os.pread(self._file.fileno(), self.rows[position].bytes or 0, self._starts[position])

    def close(self) -> None:
        """Closes the file and keeps it for a later run."""
        self._file.close()

    def remove(self) -> None:
        """Deletes the file, because the shard is finished."""
        self.close()
        self._path.unlink()
