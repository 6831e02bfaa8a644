"""Names of clips in catalogs: the video and its times as a media fragment, show.mp4#t=724 or show.mp4#t=724,732.5."""

import re
from typing import NamedTuple

FRAGMENT = r"#t=\d+(?:\.\d+)?(?:,\d+(?:\.\d+)?)?$"
_CLIP = re.compile(r"(.+)#t=(\d+(?:\.\d+)?)(?:,(\d+(?:\.\d+)?))?", re.DOTALL)


class ClipName(NamedTuple):
    """A part of a video, in seconds; it ends with the video if `end` is None."""

    video: str  # path or URL
    start: float
    end: float | None

    def __str__(self) -> str:
        return f"{self.video}#t={_decimal(self.start)}" + (f",{_decimal(self.end)}" if self.end is not None else "")


def parse_clip(name: str) -> ClipName | None:
    """Returns the parts of a clip's name, None for the name of an image."""
    match = _CLIP.fullmatch(name)
    return ClipName(match[1], float(match[2]), float(match[3]) if match[3] else None) if match else None


def strip_fragment(name: str) -> str:
    """Returns the name of the file of an image or a clip."""
    clip = parse_clip(name)
    return clip.video if clip else name


def _decimal(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
