"""Files that are whole or not there, also after a power cut."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Gives a file to write; at the end, what was written is on the disk under `path`, before anything later is.

    One process alone may write to the folder: an unfinished file's name is always the same, and so written over.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    with unfinished.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
