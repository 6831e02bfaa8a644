"""Cuts a long recording into overlapping clips."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

from data_prep.videos.reader import Source, VideoReader

LENGTH, STRIDE = 8.0, 4.0  # seconds
_WINDOW = 60.0  # seconds of which a process looks for scenes at once


@dataclasses.dataclass(frozen=True)
class Segment:
    """A clip of a recording, from `start` to `end` in seconds."""

    start: float
    end: float

    @property
    def label(self) -> str:
        """Its times for readers: "12:04–12:12"."""
        return f"{clock(self.start)}–{clock(self.end)}"


def clock(seconds: float) -> str:
    """Returns "12:04", or "1:12:04" from an hour on."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def cut(
    duration: float, *, length: float = LENGTH, stride: float = STRIDE, scenes: Sequence[float] = ()
) -> list[Segment]:
    """Returns the clips of a recording.

    A clip starts every `stride` seconds and lasts `length` seconds; the last one ends with the recording. A start or
    end moves to the next scene change if that is less than half a stride away, unless the clip would be shorter than
    half its length.

    Args:
        duration: Seconds of the recording.
        length: Seconds of a clip.
        stride: Seconds between the starts of two clips.
        scenes: Ascending times of scene changes.
    """
    if not 0 < stride <= length:
        raise ValueError(f"length is {length} and stride {stride}; a stride must be above 0 and at most the length")
    count = max(0, -int(-(duration - length) // stride)) + 1
    starts = [min(i * stride, max(0.0, duration - length)) for i in range(count)]
    segments = []
    for start in starts:
        end = min(start + length, duration)
        moved = Segment(_near(start, scenes, stride / 2), _near(end, scenes, stride / 2))
        segments.append(moved if moved.end - moved.start >= (end - start) / 2 else Segment(start, end))
    return list(dict.fromkeys(segments))


def _near(time: float, scenes: Sequence[float], distance: float) -> float:
    place = bisect.bisect(scenes, time)
    nearest = min(scenes[max(0, place - 1) : place + 1], key=lambda scene: abs(scene - time), default=time)
    return nearest if abs(nearest - time) < distance else time


def find_scenes(reader: VideoReader, source: Source, duration: float) -> list[float]:
    """Returns when the scenes of a recording begin, except for the first one, found by all processes of a reader."""
    starts = [i * _WINDOW for i in range(int(duration // _WINDOW) + 1) if i * _WINDOW < duration]
    windows = [(start, min(start + _WINDOW + 1.0, duration)) for start in starts]  # a change between two is in both
    found = reader.run(lambda window: reader.scenes(source, *window), windows)
    return sorted(set(itertools.chain.from_iterable(found)))


def find_segments(
    reader: VideoReader, source: Source, *, length: float = LENGTH, stride: float = STRIDE, by_scenes: bool = False
) -> list[Segment]:
    """Returns the clips of a recording, see `cut`; raises like `VideoReader.read`."""
    duration = reader.duration(source)
    scenes = find_scenes(reader, source, duration) if by_scenes else ()
    return cut(duration, length=length, stride=stride, scenes=scenes)
