"""Reads frames of video files in worker processes, because FFmpeg parses files of strangers.

A worker that crashes, hangs or takes too much memory is replaced; its file is reported as a `VideoError`.
"""

import collections
import contextlib
import dataclasses
import enum
import importlib.util
import json
import os
import queue
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, TypeVar

from data_prep.common.process_pool import usable_cores

SECONDS = 60.0  # to read one clip
MEMORY_BYTES = 2 << 30  # address space of a worker, of which about a fifth is used
MAX_FRAMES = 1000  # of one clip
_START_SECONDS = 60.0  # to start a worker on a busy machine
_MAX_REPLY = 64 << 20  # bytes of a part of a reply
_WORKER = "import sys; sys.path[:] = {path!r}; from data_prep.videos.decode import serve; serve({fd}, {memory})"


class VideoProblem(enum.StrEnum):
    """Why a video is skipped. The values are keys of the build's summary."""

    MISSING = "missing file"
    URL = "is a URL"
    NOT_A_VIDEO = "not a video"
    NO_PICTURES = "no moving pictures"
    CORRUPT = "does not decode"
    CUT_OFF = "cut off"
    TOO_LARGE = "too large"
    TOO_SLOW = "takes too long to decode"
    MEMORY = "takes too much memory to decode"
    CRASH = "crashes the decoder"
    RANGE = "has no frames in this range"
    BLACK = "has only black frames"


_AGAIN = "fetch or export it again"
_SMALLER = "convert it to H.264 in mp4 with at most 1080 lines"
_REMEDIES = {
    VideoProblem.MISSING: "check its path",
    VideoProblem.URL: "download the file first, and give its path",
    VideoProblem.NOT_A_VIDEO: "mp4, mov, webm, mkv and gif are read; convert other formats, such as with ffmpeg",
    VideoProblem.NO_PICTURES: "choose a file with a video stream",
    VideoProblem.CORRUPT: _AGAIN,
    VideoProblem.CUT_OFF: _AGAIN + ", or end the clip earlier",
    VideoProblem.TOO_LARGE: _SMALLER + ", or choose fewer frames",
    VideoProblem.TOO_SLOW: _SMALLER + ", or allow a reader more seconds",
    VideoProblem.MEMORY: _SMALLER,
    VideoProblem.CRASH: _AGAIN + ", or " + _SMALLER,
    VideoProblem.RANGE: "choose start and end within the video",
    VideoProblem.BLACK: "choose another range, or skip_black=False",
}


class VideoError(ValueError):
    """A video that cannot be read: its name, the problem, its details and a remedy."""

    def __init__(self, name: str, problem: VideoProblem, detail: str = "") -> None:
        super().__init__(f"{name}: {problem}{f' ({detail})' if detail else ''}; {_REMEDIES[problem]}")
        self.problem = problem


@dataclasses.dataclass(frozen=True)
class FrameChoice:
    """Which frames of a clip are taken, and how they are encoded.

    Without `fps` and `scenes`, a clip is divided into `frames_per_clip` equal parts, and the frame shown in the middle
    of each part is taken. A frame is taken once, even if it is shown for several parts.
    """

    frames_per_clip: int = 16
    fps: float | None = None  # frames per second instead of `frames_per_clip`
    scenes: bool = False  # the middle of each scene instead, of the longest `frames_per_clip` scenes
    max_side: int | None = 384  # longer side in pixels, to which larger frames are shrunk; None keeps all
    quality: int = 90  # of the JPEGs, 1 to 100
    skip_black: bool = True  # frames of which 98% of the pixels are darker than a tenth of white
    skip_duplicates: bool = True  # frames that differ from the last one by less than 1 of 255 gray levels on average

    def __post_init__(self) -> None:
        """Raises ValueError if a value is out of its range."""
        if not 1 <= self.frames_per_clip <= MAX_FRAMES:
            raise ValueError(f"frames_per_clip is {self.frames_per_clip}; it must be from 1 to {MAX_FRAMES}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"fps is {self.fps}; it must be above 0 and at most 1000")
        if self.fps is not None and self.scenes:
            raise ValueError("fps and scenes are both given; choose one of them")
        if self.max_side is not None and self.max_side < 1:
            raise ValueError(f"max_side is {self.max_side}; it must be at least 1")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; it must be from 1 to 100")


ALL_DEFAULTS = FrameChoice()


@dataclasses.dataclass(frozen=True)
class VideoFrames:
    """Frames of a clip, in order."""

    frames: tuple[bytes, ...]  # JPEGs, upright
    times: tuple[float, ...]  # when each frame begins to be shown, in seconds from the start of the video
    duration: float  # seconds of the whole video
    black: int = 0  # number of black frames that were skipped
    duplicates: int = 0  # number of frames that were skipped because they equal the one before


Argument = TypeVar("Argument")
Result = TypeVar("Result")
Source = str | Path | bytes
Clip = tuple[Source, float | None, float | None]  # a video, start and end in seconds


class InvalidVideoError(Exception):
    """A fault of a video, without the name of its file."""

    def __init__(self, problem: VideoProblem, detail: str) -> None:
        super().__init__(detail)
        self.problem, self.detail = problem, detail


class _Worker:
    """A process that reads one video at a time. Its answers are JSON and JPEGs, so that it cannot run code here."""

    def __init__(self, memory_bytes: int, threads: int) -> None:
        self._pipe, child = Pipe()
        code = _WORKER.format(path=sys.path, fd=child.fileno(), memory=memory_bytes)
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "VIDEO_THREADS": str(threads)}
        # Not `multiprocessing`, whose processes import the main module of their parent: a script, or all of JAX.
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            pass_fds=[child.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        child.close()
        try:
            self.receive(_START_SECONDS)
        except InvalidVideoError as error:
            self.close()
            raise RuntimeError(
                f"a process that reads videos does not start ({error.detail}); "
                "see what `python -c 'import data_prep.videos.decode'` reports"
            ) from error

    def send(self, message: bytes) -> None:
        try:
            self._pipe.send_bytes(message)
        except OSError as error:
            raise self._crash() from error

    def receive(self, seconds: float) -> bytes:
        try:
            if not self._pipe.poll(seconds):
                raise InvalidVideoError(VideoProblem.TOO_SLOW, f"more than {seconds:g} s")
            return self._pipe.recv_bytes(_MAX_REPLY)
        except (OSError, EOFError) as error:
            raise self._crash() from error

    def _crash(self) -> InvalidVideoError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return InvalidVideoError(VideoProblem.CRASH, f"exit code {self._process.wait(1)}")
        return InvalidVideoError(VideoProblem.CRASH, "its answer is invalid")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._pipe.close()


class VideoReader:
    """A pool of processes that read videos. It may be shared by threads. Use it as a context manager.

    Args:
        processes: Number of processes, by default one per core. They start when they are needed.
        seconds: Limit of the time for one clip.
        memory_bytes: Limit of the address space of each process.
    """

    def __init__(
        self, processes: int | None = None, *, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        if importlib.util.find_spec("av") is None:
            raise ModuleNotFoundError("videos need the package av: pip install 'cope-jax[video]'", name="av")
        self.processes = processes or usable_cores()
        self._seconds, self._memory_bytes = seconds, memory_bytes
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.processes):
            self._idle.put(None)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the processes, after those that are reading."""
        for _ in range(self.processes):
            if worker := self._idle.get():
                worker.close()
        for _ in range(self.processes):
            self._idle.put(None)

    def read(
        self, source: Source, choice: FrameChoice = ALL_DEFAULTS, start: float | None = None, end: float | None = None
    ) -> VideoFrames:
        """Reads the chosen frames of a video, or of its part from `start` to `end` in seconds.

        Args:
            source: Path of the file, or its bytes.
            choice: Choice of frames; by default, 16 of them.
            start: Seconds from the start of the video; None is its start.
            end: Seconds from the start of the video; None, or a time after its end, is its end.

        Raises:
            VideoError: The file is missing, invalid, or more than the limits allow.
            OSError: The file exists but cannot be read, which is a problem of the machine.
        """
        request = {"choice": dataclasses.asdict(choice), "start": start, "end": end}
        header, frames = self._ask(source, request)
        return VideoFrames(frames, tuple(header["times"]), header["duration"], header["black"], header["duplicates"])

    def duration(self, source: Source) -> float:
        """Returns the seconds that a video lasts; raises like `read`."""
        return self._ask(source, {})[0]["duration"]

    def scenes(self, source: Source, start: float | None = None, end: float | None = None) -> tuple[float, ...]:
        """Returns when the scenes of a video begin, in seconds, except for the first one; raises like `read`."""
        return tuple(self._ask(source, {"scenes": True, "start": start, "end": end})[0]["scenes"])

    def map(self, clips: Iterable[Clip], choice: FrameChoice = ALL_DEFAULTS) -> Iterator[VideoFrames | VideoError]:
        """Yields the frames of each clip in order, or the error of a clip, while the pool reads the next ones."""

        def read(clip: Clip) -> VideoFrames | VideoError:
            try:
                return self.read(clip[0], choice, clip[1], clip[2])
            except VideoError as error:
                return error

        return self.run(read, clips)

    def run(self, function: Callable[[Argument], Result], arguments: Iterable[Argument]) -> Iterator[Result]:
        """Yields the result of a function, which uses this reader, for each argument in order, from many threads."""
        waiting: collections.deque[Future[Result]] = collections.deque()
        with ThreadPoolExecutor(self.processes) as pool:
            try:
                for argument in arguments:
                    waiting.append(pool.submit(function, argument))
                    if len(waiting) > 2 * self.processes:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _ask(self, source: Source, request: dict[str, Any]) -> tuple[dict[str, Any], tuple[bytes, ...]]:
        """Returns the header and the frames of an answer."""
        if isinstance(source, bytes):
            name, request = f"video of {len(source):,} bytes", request | {"path": None}
        else:
            name, request = str(source), request | {"path": str(_checked(source))}
        worker = self._idle.get()
        try:
            worker = worker or _Worker(self._memory_bytes, max(1, usable_cores() // self.processes))
            worker.send(json.dumps(request).encode())
            if isinstance(source, bytes):
                worker.send(source)
            header = json.loads(worker.receive(self._seconds))
            frames = tuple(worker.receive(self._seconds) for _ in range(min(header.get("frames", 0), MAX_FRAMES)))
        except BaseException as error:
            if worker:
                worker.close()
            worker = None
            if isinstance(error, InvalidVideoError):
                raise VideoError(name, error.problem, error.detail) from error
            raise
        finally:
            self._idle.put(worker)
        if "problem" in header:
            raise VideoError(name, VideoProblem(header["problem"]), header["detail"])
        return header, frames


def _checked(source: str | Path) -> Path:
    """Returns the path of a regular file."""
    if "://" in str(source):
        raise VideoError(str(source), VideoProblem.URL)
    path = Path(source).absolute()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise VideoError(str(source), VideoProblem.NOT_A_VIDEO, "a folder or a device")
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VideoError(str(source), VideoProblem.MISSING) from error
    return path
