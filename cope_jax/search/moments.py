"""Where an item is in its recording, and the recording's file, from the columns `video`, `start` and `end`."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from data_prep.videos.segments import clock

# Files that are served, with their types; a table may name any file.
VIDEO_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
}
WEB = ("https://", "http://")


@dataclass(frozen=True)
class Moment:
    """A video, or the part of it from `start` to `end`, in seconds."""

    video: str  # path or URL, as in the table
    start: float | None = None
    end: float | None = None

    @property
    def span(self) -> str:
        """The part as text, "12:04–12:12"; "" for a whole video."""
        return "–".join(clock(time) for time in (self.start, self.end) if time is not None)

    @property
    def fragment(self) -> str:
        """The end of a URL with which browsers play the part: "#t=724,732"."""
        return "#t=" + ",".join(f"{time:g}" for time in (self.start or 0, self.end) if time is not None)

    def overlaps(self, other: "Moment") -> bool:
        """Returns whether both are parts of the same video with a time in common."""
        if self.video != other.video or not (self.end and other.end):
            return False
        return max(self.start or 0, other.start or 0) < min(self.end, other.end)


def read_moment(columns: Mapping[str, Any]) -> Moment | None:
    """Returns the moment in the columns of an item, None if it is not from a video."""
    if not columns.get("video"):
        return None
    return Moment(str(columns["video"]), _seconds(columns.get("start")), _seconds(columns.get("end")))


def _seconds(value: Any) -> float | None:
    """Returns a time in a column, None if it is missing or no time."""
    try:
        time = float(value)
    except (TypeError, ValueError):
        return None
    return time if 0 <= time < math.inf else None


def find_video(folder: Path | None, name: str) -> Path | None:
    """Returns the file of a video that a data set names, None if it is not a video file inside `folder`."""
    if folder is None or ".." in PurePath(name).parts:
        return None
    path = folder.absolute() / name
    inside = path.is_relative_to(folder.absolute()) and path.suffix.lower() in VIDEO_TYPES
    return path if inside and os.path.isfile(path) else None
