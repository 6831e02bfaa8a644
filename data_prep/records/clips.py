"""Reads the frames of a catalog's clips from their places, in a process of its own."""

import collections
import hashlib
from collections.abc import Sequence
from pathlib import Path

from data_prep.images.decoding import ImageProblem
from data_prep.images.index import Place
from data_prep.images.sources import WHOLE_FILE
from data_prep.videos.clip_names import ClipName
from data_prep.videos.reader import FrameChoice, VideoError, VideoReader


class ClipReader:
    """Reads clips of videos and counts their frames.

    Args:
        sources: Sources of videos and images.
        choice: Choice of frames.

    Attributes:
        counts: Numbers of `clips` that were read, their `frames`, and the `black` and `duplicate` ones not kept.
    """

    def __init__(self, sources: Sequence[Path], choice: FrameChoice) -> None:
        self._sources, self._choice = sources, choice
        self._reader: VideoReader | None = None
        self.counts: collections.Counter[str] = collections.Counter()

    def close(self) -> None:
        """Ends the process."""
        if self._reader:
            self._reader.__exit__()

    def read(self, clip: ClipName, place: Place) -> tuple[list[bytes], list[int], str | None]:
        """Returns the frames as JPEGs, their times in ms from the start of the video and None; or a problem.

        Raises:
            OSError: The file cannot be read, which is a problem of the machine and not of the data.
        """
        if place.source is None:
            return [], [], ImageProblem.MISSING
        source: Path | bytes = self._sources[place.source] / place.path
        if place.start != WHOLE_FILE:
            with source.open("rb") as file:
                file.seek(place.start)
                source = file.read(place.size)
            if place.sha256 and hashlib.sha256(source).hexdigest() != place.sha256:
                return [], [], ImageProblem.CHANGED
        self._reader = self._reader or VideoReader(1)
        try:
            found = self._reader.read(source, self._choice, clip.start, clip.end)
        except VideoError as error:
            return [], [], error.problem
        self.counts.update(clips=1, frames=len(found.frames), black=found.black, duplicate=found.duplicates)
        return list(found.frames), [round(1000 * time) for time in found.times], None
