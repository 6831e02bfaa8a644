"""Finds and decodes the frames of a video file that are shown at some times, with as little work as possible.

Only groups of pictures that contain such a frame are decoded, each from its keyframe on and without the frames that no
other frame refers to. Long gaps between the times are skipped by a seek, if seeks turn out to lead forward.
"""

import collections
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import IO, Any

import av
import numpy as np
from av.error import ArgumentError, InvalidDataError
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, Interpolation
from av.video.stream import VideoStream

from data_prep.videos.reader import InvalidVideoError, VideoProblem

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,gif"  # none of which opens other files
MAX_PIXELS = 36_000_000  # 8K
MAX_DURATION = 86_400.0  # seconds
_BUFFER_BYTES = 1 << 18
_SEEK_SECONDS = 5.0  # a longer gap is skipped by a seek
_SEEK_MARGIN = 1.0  # seconds; keyframes are found by the times of decoding, which differ from those of showing
_LOST_SECONDS, _LOST_FRACTION = 1.0, 0.1  # a video that ends earlier than its header says by both of these is cut off
_NO_VIDEO = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
_HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)  # PQ and HLG
_UNSPECIFIED = 2  # color space
_ROUNDING = 1e-6  # seconds; a time may be rounded to less than that of its frame


class UnsteadyError(Exception):
    """The packets do not say which frames are shown when, so that all must be decoded."""


class VideoFile:
    """An open video.

    Args:
        file: The file, which may be read from any position.
        thorough: Decode all frames up to the last one that is needed.

    Attributes:
        duration: Seconds from the start, which is 0, to the end of the last frame.
    """

    def __init__(self, file: IO[bytes], *, thorough: bool = False) -> None:
        self._file, self._thorough = file, thorough
        self._open()
        self._known_end = self._header_end()
        self.duration = self._known_end or self._container_end() or self._last_end()
        if not 0 < self.duration <= MAX_DURATION:
            raise InvalidVideoError(VideoProblem.TOO_LARGE, f"it lasts {self.duration:g} s, and at most a day is read")

    def _open(self) -> None:
        self._is_read = False  # opening decodes some frames, which takes a few percent of reading a short clip
        self._file.seek(0)
        try:
            self._container = av.open(
                self._file,
                "r",
                options={"format_whitelist": FORMATS, "protocol_whitelist": "none"},
                metadata_errors="replace",
                buffer_size=_BUFFER_BYTES,
                io_open=_refuse,
            )
        except (InvalidDataError, ArgumentError, EOFError, OSError) as error:
            raise InvalidVideoError(VideoProblem.NOT_A_VIDEO, getattr(error, "strerror", "") or str(error)) from error
        streams = [stream for stream in self._container.streams.video if not stream.disposition & _NO_VIDEO]
        if not streams:
            raise InvalidVideoError(VideoProblem.NO_PICTURES, "only sound, pictures or texts")
        self._stream: VideoStream = streams[0]
        self._decoder = self._stream.codec_context
        if self._decoder is None:
            raise InvalidVideoError(VideoProblem.NOT_A_VIDEO, "its codec is unknown")
        for stream in self._container.streams:
            if stream is not self._stream:
                stream.discard = Discard.all
        width, height = self._decoder.width, self._decoder.height
        if width * height > MAX_PIXELS:
            raise InvalidVideoError(VideoProblem.TOO_LARGE, f"{width}×{height} pixels, of at most {MAX_PIXELS:,}")
        self._decoder.options = {"max_pixels": str(MAX_PIXELS)}  # the size may change later
        self._decoder.thread_count = int(os.environ.get("VIDEO_THREADS", "1"))
        self._decoder.thread_type = "AUTO"
        if self._stream.time_base is None:
            raise InvalidVideoError(VideoProblem.CORRUPT, "it has no time base")
        self._tick = self._stream.time_base
        # A recording that was cut from a longer one may start late. Sound may start a little early.
        self._zero = max(0.0, (self._container.start_time or 0) / av.time_base)

    def _header_end(self) -> float | None:
        """Returns the end of the pictures according to the header, if it says."""
        if self._stream.duration is not None:
            return float(((self._stream.start_time or 0) + self._stream.duration) * self._tick) - self._zero
        hours, _, rest = self._stream.metadata.get("DURATION", "").partition(":")  # of Matroska: 00:12:04.040000000
        minutes, _, seconds = rest.partition(":")
        try:
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - self._zero
        except ValueError:
            return None

    def _container_end(self) -> float | None:
        """Returns the end of the longest stream, if the header says."""
        if self._container.duration is None:
            return None
        return (self._container.duration + (self._container.start_time or 0)) / av.time_base - self._zero

    def _last_end(self) -> float:
        """Returns the end of the last packet."""
        ends = [self._time(_pts(packet) + (packet.duration or 0)) for packet in self._packets() if packet.size]
        if not ends:
            raise InvalidVideoError(VideoProblem.NO_PICTURES, "it has no frames")
        self._open()
        return max(max(ends), float(self._tick))

    def _time(self, pts: int) -> float:
        return float(pts * self._tick) - self._zero

    def _packets(self) -> Iterator[Packet]:
        return (packet for packet in self._container.demux(self._stream) if packet.size)

    def frames_at(self, times: Sequence[float]) -> Iterator[tuple[float, VideoFrame]]:
        """Yields the time and the frame shown at each of some ascending times; each frame once.

        Raises:
            UnsteadyError: The file must be read thoroughly.
            InvalidVideoError: The file is damaged or cut off.
        """
        if self._is_read:
            self._open()
        self._is_read = True
        find = self._all_frames_at if self._thorough or self._container.format.name == "gif" else self._some_frames_at
        for frame in find(times):
            if frame.is_corrupt:
                raise InvalidVideoError(VideoProblem.CORRUPT, f"at {self._time(frame.pts or 0):.3f} s")
            yield max(0.0, self._time(frame.pts or 0)), frame

    def to_pixels(self, frame: VideoFrame, max_side: int | None) -> np.ndarray:
        """Returns a frame as upright RGB with square pixels, u8[H, W, 3], shrunk to a longer side of `max_side`."""
        width, height = frame.width * float(self._stream.sample_aspect_ratio or 1), frame.height
        scale = min(1.0, max_side / max(width, height)) if max_side else 1.0
        options: dict[str, Any] = {"format": "rgb24", "interpolation": Interpolation.AREA, "threads": 1}
        options |= {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}
        if frame.colorspace == _UNSPECIFIED and frame.height >= 720:
            options["src_colorspace"] = Colorspace.ITU709
        if frame.color_trc in _HDR:
            options |= {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}
        pixels = frame.reformat(**options).to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))

    def _all_frames_at(self, times: Sequence[float]) -> Iterator[VideoFrame]:
        """Decodes all frames up to the last time."""
        waiting, shown = collections.deque(times), None
        for frame in self._container.decode(self._stream):
            if frame.pts is None:
                continue
            count = len(waiting)
            while shown is not None and waiting and waiting[0] + _ROUNDING < self._time(frame.pts):
                waiting.popleft()
            if shown is not None and len(waiting) < count:
                yield shown
            if not waiting:
                return
            shown = frame
        if shown is None:
            raise InvalidVideoError(VideoProblem.NO_PICTURES, "no frame decodes")
        self._check_end(shown.pts or 0, shown.duration or 0)
        yield shown

    def _check_end(self, pts: int, duration: int) -> None:
        """Raises InvalidVideoError if the last frame of the file ends much earlier than the header says."""
        end = self._time(pts + duration)
        lost = (self._known_end or end) - end
        if lost > _LOST_SECONDS and lost > _LOST_FRACTION * self.duration:
            raise InvalidVideoError(VideoProblem.CUT_OFF, f"at {end:.1f} s of {self.duration:.1f} s")

    def _some_frames_at(self, times: Sequence[float]) -> Iterator[VideoFrame]:
        """Decodes only what the shown frames need."""
        group = _Group(self._decoder)
        packets, position = self._packets(), int(self._zero / self._tick)
        may_seek, at_end = True, False
        for time in times:
            wanted = math.floor((time + _ROUNDING + self._zero) / self._tick)
            if may_seek and not at_end and wanted - position > _SEEK_SECONDS / self._tick:
                yield from group.finish()
                start = self._seek(wanted)
                may_seek = start.dts is not None and start.dts > position  # otherwise, keyframes are far apart
                position, packets = start.dts or position, itertools.chain([start], self._packets())
            yield from group.restart(wanted)
            while not at_end and (position <= wanted or not group.packets):
                packet = next(packets, None)
                if packet is None:
                    at_end = True
                    self._check_end(*group.last)
                    break
                position = position if packet.dts is None else packet.dts
                group.add(packet)
                if packet.is_keyframe:
                    yield from group.restart(wanted)
            group.choose(wanted)
            yield from group.decode()
        yield from group.finish()
        if group.missing:
            raise UnsteadyError

    def _seek(self, wanted: int) -> Packet:
        """Returns the first packet after a seek to the keyframe of a time in ticks."""
        self._container.seek(max(0, wanted - int(_SEEK_MARGIN / self._tick)), stream=self._stream)
        start = next(self._packets(), None)
        if start is None or not start.is_keyframe or _pts(start) > wanted:
            raise UnsteadyError
        return start


class _Group:
    """A group of pictures that depend on each other, in the order of decoding. Times are in ticks of the stream."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.packets: list[Packet] = []  # that are not decoded yet
        self.last = (0, 0)  # time and duration of the last frame of the file so far
        self.missing: set[int] = set()  # times of frames that are chosen but not decoded yet
        self._chosen = -math.inf  # time of the latest one
        self._sent: list[int] = []  # times of frames that the decoder was given
        self._frames: list[VideoFrame] = []  # that may still be chosen

    def add(self, packet: Packet) -> None:
        """Adds the next packet of the file."""
        self.packets.append(packet)
        self.last = max(self.last, (_pts(packet), packet.duration or 0))

    def restart(self, wanted: int) -> Iterator[VideoFrame]:
        """Forgets what precedes the last keyframe that is shown before the wanted time; yields chosen frames."""
        for number in reversed(range(len(self.packets))):
            if self.packets[number].is_keyframe and _pts(self.packets[number]) <= wanted:
                rest = self.packets[number:]
                yield from self.finish()
                self.packets = rest
                return

    def finish(self) -> Iterator[VideoFrame]:
        """Yields the chosen frames that the decoder still has, and forgets all packets."""
        if self._sent:
            self._keep(self._decoder.decode(None))
            self._decoder.flush_buffers()
        yield from self._take()
        self.packets, self._sent, self._frames = [], [], []

    def choose(self, wanted: int) -> None:
        """Chooses the frame that is shown at a time, or the first one before it is shown."""
        times = self._sent + [_pts(packet) for packet in self.packets if not packet.is_discard]
        if not times:
            raise UnsteadyError
        chosen = max((time for time in times if time <= wanted), default=min(times))
        if chosen > self._chosen:
            self._chosen = chosen
            self.missing.add(chosen)

    def decode(self) -> Iterator[VideoFrame]:
        """Decodes the packets up to that of the chosen frame; yields chosen frames."""
        numbers = [number for number, packet in enumerate(self.packets) if _pts(packet) == self._chosen]
        for packet in self.packets[: numbers[-1] + 1] if numbers else []:
            time = _pts(packet)
            is_needed = time >= self._chosen or time in self.missing
            self._decoder.skip_frame = "DEFAULT" if is_needed else "NONREF"
            self._keep(packet.decode())
            self._sent.append(time)
        self.packets = self.packets[numbers[-1] + 1 :] if numbers else self.packets
        self._sent = [time for time in self._sent if time >= self._chosen] or self._sent[-1:]
        yield from self._take()

    def _keep(self, frames: Sequence[VideoFrame]) -> None:
        """Keeps the frames that are or may be chosen; all frames of a group would take hundreds of MB."""
        times = [-math.inf if frame.pts is None else frame.pts for frame in frames]
        pairs = zip(frames, times, strict=True)
        self._frames += [frame for frame, time in pairs if time in self.missing or time > self._chosen]

    def _take(self) -> Iterator[VideoFrame]:
        frames, self._frames = self._frames, []
        for frame in frames:
            if frame.pts in self.missing:
                self.missing.remove(frame.pts)
                yield frame
            elif (frame.pts or 0) > self._chosen:
                self._frames.append(frame)


def _pts(packet: Packet) -> int:
    pts = packet.dts if packet.pts is None else packet.pts
    if pts is None:
        raise UnsteadyError
    return pts


def _refuse(url: str, flags: int, options: Any) -> Any:
    """Opens no file or address that a video names."""
    raise PermissionError(f"the video refers to {url!r}")
