"""Decodes frames of one video with PyAV, in a worker process.

Frames are shown from their time to that of the next one, also at a variable rate. They are turned as the file says,
have square pixels, and are converted to RGB as their color space says; without one, frames of 720 lines or more count
as BT.709 and others as BT.601. Samples of more than 8 bits are rounded to 8; those of the HDR curves PQ and HLG are
mapped to BT.709 by FFmpeg first.
"""

import io
import itertools
import json
import math
import resource
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import numpy as np
import simplejpeg
from av.logging import set_level

from data_prep.videos.reader import MAX_FRAMES, FrameChoice, InvalidVideoError, VideoProblem
from data_prep.videos.video_file import UnsteadyError, VideoFile

_SCENE_RATE = 2.0  # frames per second that are compared
_SCENE_DISTANCE = 0.4  # fraction of the pixels that change color
_SAMPLES = 64  # pixels per side that are compared
_BLACK_LUMA, _BLACK_FRACTION, _SAME_LUMA = 25.5, 0.98, 1.0


def serve(descriptor: int, memory_bytes: int) -> None:
    """Answers requests until the pipe is closed."""
    set_level(None)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe = Connection(descriptor)
    pipe.send_bytes(b"ready")
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
            content = pipe.recv_bytes() if request["path"] is None else None
        except EOFError:
            return
        with io.BytesIO(content) if content is not None else Path(request["path"]).open("rb") as file:
            header, frames = reply(file, request)
        pipe.send_bytes(json.dumps(header).encode())
        for frame in frames:
            pipe.send_bytes(frame)


def reply(file: IO[bytes], request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Returns the header and frames of an answer; any exception is a fault of the file."""
    try:
        try:
            return answer(VideoFile(file), request)
        except UnsteadyError:
            return answer(VideoFile(file, thorough=True), request)
    except InvalidVideoError as error:
        problem, detail = error.problem, error.detail
    except MemoryError as error:
        problem, detail = VideoProblem.MEMORY, str(error)
    except Exception as error:  # of PyAV, which raises many kinds
        problem, detail = VideoProblem.CORRUPT, getattr(error, "strerror", "") or f"{type(error).__name__}: {error}"
    return {"problem": problem, "detail": detail}, []


def answer(video: VideoFile, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Returns the duration of a video, its scenes or its frames, as the request says."""
    header: dict[str, Any] = {"duration": video.duration}
    if "start" not in request:
        return header, []
    start, end = max(request["start"] or 0.0, 0.0), min(request["end"] or video.duration, video.duration)
    if not start < end:
        raise InvalidVideoError(VideoProblem.RANGE, f"from {start:g} to {end:g} s of {video.duration:g} s")
    if request.get("scenes"):
        return header | {"scenes": _scene_starts(video, start, end)}, []
    choice = FrameChoice(**request["choice"])
    counts, times, frames = _pick(video, _times(video, choice, start, end), choice)
    return header | counts | {"times": times, "frames": len(frames)}, frames


def _times(video: VideoFile, choice: FrameChoice, start: float, end: float) -> list[float]:
    """Returns the times of which the shown frames are taken."""
    if choice.scenes:
        bounds = [start, *_scene_starts(video, start, end), end]
        scenes = sorted(itertools.pairwise(bounds), key=lambda scene: scene[0] - scene[1])
        return sorted((first + last) / 2 for first, last in scenes[: choice.frames_per_clip])
    if choice.fps is None:
        count = choice.frames_per_clip
        return [start + (i + 0.5) * (end - start) / count for i in range(count)]
    count = math.ceil((end - start) * choice.fps)
    if count > MAX_FRAMES:
        raise InvalidVideoError(VideoProblem.TOO_LARGE, f"{count} frames, of at most {MAX_FRAMES}")
    return [start + i / choice.fps for i in range(count)]


def _pick(
    video: VideoFile, times: Sequence[float], choice: FrameChoice
) -> tuple[dict[str, int], list[float], list[bytes]]:
    """Returns the numbers of frames that are skipped, and the times and JPEGs of the others."""
    counts, kept, encoded, last = {"black": 0, "duplicates": 0}, [], [], None
    for time, frame in video.frames_at(times):
        pixels = video.to_pixels(frame, choice.max_side)
        luma = _samples(pixels) @ np.array([0.299, 0.587, 0.114], np.float32)
        if choice.skip_black and (luma < _BLACK_LUMA).mean() >= _BLACK_FRACTION:
            counts["black"] += 1
        elif choice.skip_duplicates and last is not None and last.shape == luma.shape and _is_same(luma, last):
            counts["duplicates"] += 1
        else:
            kept.append(round(time, 6))
            encoded.append(simplejpeg.encode_jpeg(pixels, choice.quality, colorsubsampling="420"))
            last = luma
    if not kept:
        raise InvalidVideoError(VideoProblem.BLACK, f"{counts['black']} frames")
    return counts, kept, encoded


def _is_same(luma: np.ndarray, other: np.ndarray) -> bool:
    return float(np.abs(luma - other).mean()) < _SAME_LUMA


def _scene_starts(video: VideoFile, start: float, end: float) -> list[float]:
    """Returns when the colors change, as seen in two frames per second."""
    starts, last = [], None
    for time, frame in video.frames_at(np.arange(start, end, 1 / _SCENE_RATE).tolist()):
        bins = (video.to_pixels(frame, _SAMPLES) >> 6).reshape(-1, 3) @ np.array([16, 4, 1])
        colors = np.bincount(bins, minlength=64) / len(bins)
        if last is not None and np.abs(colors - last).sum() / 2 > _SCENE_DISTANCE:
            starts.append(round(max(time, start), 6))
        last = colors
    return starts


def _samples(pixels: np.ndarray) -> np.ndarray:
    height, width, _ = pixels.shape
    return pixels[:: max(1, height // _SAMPLES), :: max(1, width // _SAMPLES)].astype(np.float32)
