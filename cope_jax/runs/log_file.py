"""A file that grows while a run goes on, and whose disk may be full for a while."""

import os
import sys
import threading
from pathlib import Path


class LogFile:
    """Adds to a file; what the disk refuses waits in memory and is tried again with what comes next.

    One thread adds, another one may `sync`.
    """

    def __init__(self, path: Path):
        """Will go on behind what the file has, or make it."""
        self.path = path
        self.size = path.stat().st_size if path.exists() else 0
        self.waiting = b""
        self.lock = threading.Lock()

    def add(self, content: bytes) -> None:
        """Adds to the end; tells once of a disk that refuses it."""
        with self.lock:
            told = bool(self.waiting)
            self.waiting += content
            try:
                self.write()
            except OSError as error:
                if not told:
                    print(
                        f"\n{self.path} cannot be written ({error.strerror}): what is new waits in memory",
                        file=sys.stderr,
                        flush=True,
                    )

    def write(self) -> None:
        """Gives the file what waits."""
        if not self.waiting:
            return
        with self.path.open("ab") as file:
            if file.tell() > self.size:  # by a part of what was refused
                file.truncate(self.size)
            file.write(self.waiting)
        self.size, self.waiting = self.size + len(self.waiting), b""

    def sync(self) -> None:
        """Waits until all that was added before is on the disk for good.

        Raises:
            OSError: it is not; names the file.
        """
        try:
            with self.lock:
                self.write()
            if self.size:
                with self.path.open("rb") as file:
                    os.fsync(file.fileno())
        except OSError as error:
            raise OSError(f"{self.path} cannot be written ({error.strerror})") from error
