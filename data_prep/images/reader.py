"""Reads the images of frames from where the index found them."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from data_prep.images import decoding as images
from data_prep.images.decoding import Fault
from data_prep.images.index import Place
from data_prep.images.sources import WHOLE_FILE


class ImageReader:
    """Reads places of `sources`; a tar stays open until the next one, for frames follow one another in it."""

    def __init__(self, sources: Sequence[Path]):
        self._sources = sources
        self._tar: tuple[tuple[int, str], int] | None = None  # source and path, and what it is open as

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *_) -> None:
        if self._tar is not None:
            os.close(self._tar[1])
            self._tar = None

    def read(self, place: Place) -> tuple[bytes, Fault | None]:
        """Returns the image's bytes and None, or b"" and the reason why it cannot be used.

        Raises:
          OSError: a file that cannot be read, or a tar that is gone: a fault of the machine, not of the data.
        """
        if place.source is None:
            return b"", Fault.MISSING
        if place.start == WHOLE_FILE:
            return images.read_image(self._sources[place.source] / place.path)
        if place.size > images.MAX_BYTES:
            return b"", Fault.TOO_LARGE
        data = os.pread(self._open(place), place.size, place.start)
        fault = _find_change(data, place.sha256) if place.sha256 else images.find_fault(data)
        return (data, None) if fault is None else (b"", fault)

    def _open(self, place: Place) -> int:
        tar = place.source, place.path
        if self._tar is None or self._tar[0] != tar:
            self.__exit__()
            self._tar = tar, os.open(self._sources[place.source] / place.path, os.O_RDONLY)
        return self._tar[1]


def _find_change(data: bytes, sha256: str) -> Fault | None:
    """Judges bytes that decoded when they were downloaded: the sum costs a tenth of decoding them again."""
    return None if hashlib.sha256(data).hexdigest() == sha256 else Fault.CHANGED
