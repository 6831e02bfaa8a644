"""Log files of a run: lines of JSON, appended even if the disk is full for a while."""

import errno
import io
import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

EVALUATIONS = "evaluations.jsonl"  # in a work directory: results of the evaluations during training
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LogFile:
    """Appends to a file. If the disk is full, the content waits in memory for the next call.

    One thread may append while another one syncs.
    """

    def __init__(self, path: Path):
        self.path = path
        self.size = path.stat().st_size if path.exists() else 0
        self.pending = b""
        self.lock = threading.Lock()

    def append(self, content: bytes) -> None:
        """Appends to the file; prints a warning if it has to wait."""
        with self.lock:
            warned = bool(self.pending)
            self.pending += content
            try:
                self.write_pending()
            except OSError as error:
                if not warned:
                    message = f"{self.path} cannot be written ({error.strerror}); new entries wait in memory"
                    print(f"\n{message}", file=sys.stderr, flush=True)

    def write_pending(self) -> None:
        """Writes what waits in memory."""
        if not self.pending:
            return
        with self.path.open("ab") as file:
            if file.tell() > self.size:  # part of an earlier attempt
                file.truncate(self.size)
            file.write(self.pending)
        self.size, self.pending = self.size + len(self.pending), b""

    def sync(self) -> None:
        """Waits until everything appended before is on the disk; raises OSError, naming the file, if it is not."""
        try:
            with self.lock:
                self.write_pending()
            if self.size:
                with self.path.open("rb") as file:
                    os.fsync(file.fileno())
        except OSError as error:
            raise OSError(f"{self.path} cannot be written ({error.strerror})") from error


def json_line(entry: Mapping[str, Any]) -> bytes:
    """Returns a line of JSON."""
    return json.dumps(entry).encode() + b"\n"


def round_values(values: Mapping[str, float]) -> dict[str, float | None]:
    """Rounds to six digits; values that are not finite become None."""
    return {name: float(f"{value:.6g}") if np.isfinite(value) else None for name, value in values.items()}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of a log; none if the file is missing."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [_parse_line(path, i, line) for i, line in enumerate(lines, start=1) if line.endswith("\n")]


def _parse_line(path: Path, number: int, line: str | bytes) -> dict[str, Any]:
    """Returns the entry in a line; raises ValueError naming the line if it is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or "step" not in entry:
        raise ValueError(f"line {number} of {path} is damaged; restore the file or remove the line")
    return entry


def drop_lines_after(path: Path, step: float) -> None:
    """Cuts a log before the first line of a later step or the first incomplete line; works on a full disk."""
    if not path.exists():
        return
    size = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n") or _parse_line(path, number, line)["step"] > step:
                break
            size += len(line)
    os.truncate(path, size)


class LossyFile(io.FileIO):
    """A file that silently drops what a full disk does not take."""

    def write(self, content: Any) -> int:
        """Writes bytes."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            return len(content)


def ignore_full_disk_when_printing() -> None:
    """Makes stdout and stderr, which may be files, drop output instead of failing if their disk is full."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.flush()
        raw = io.BufferedWriter(LossyFile(stream.fileno(), "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True))
