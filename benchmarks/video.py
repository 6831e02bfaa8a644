"""Measures how fast frames of videos are read, next to plain PyAV and to OpenCV: `python -m benchmarks.video`.

All three decode the same frames of the same clips, shrunk to the same size, in as many processes of one thread each, in
turns. PyAV and OpenCV decode short clips from start to end, and seek to each frame of the recording; OpenCV does not
convert the frames that it skips. Only ours also encodes JPEGs. The videos are H.264 with the defaults of x264. Per
workload, the JSON has frames and clips per second, ratio_to_pyav and ratio_to_opencv (above 1, ours is faster), and
peak_rss_bytes, the most memory that a worker has held.
"""

import contextlib
import functools
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import simplejpeg
from absl import app, flags

from benchmarks.measuring import summarize_ratio, time_call
from data_prep.common.process_pool import usable_cores
from data_prep.videos.reader import FrameChoice, VideoError, VideoReader

FLAGS = flags.FLAGS
SIDE, RATE, PART_SECONDS = 384, 30, 30
LARGEST_DIFFERENCE = 6.0  # gray levels of 255, between frames of different decoders, one of them as JPEG


def define_flags() -> None:
    flags.DEFINE_integer("seconds", 15, "Seconds of a short clip.")
    flags.DEFINE_integer("minutes", 10, "Minutes of the recording.")
    flags.DEFINE_integer("clips", 8, "Short clips per round; of the recording, a quarter of them.")
    flags.DEFINE_integer("rounds", 3, "Rounds.")
    flags.DEFINE_list("frames", ["8", "16"], "Frames per clip.")
    flags.DEFINE_integer("processes", usable_cores(), "Processes.")


def write_video(path: Path, seconds: int, height: int, width: int) -> None:
    """Writes moving shapes and noise; of more than PART_SECONDS, the same part again and again."""
    rng, part = np.random.default_rng(0), min(seconds, PART_SECONDS)
    noise = rng.integers(0, 40, (height, width, 3), np.uint8)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        packets = []
        for number in range(part * RATE):
            picture = np.roll(noise, 3 * number, axis=1)
            top, left = number * 5 % (height // 2), number * 11 % (width // 2)
            picture[top : top + height // 3, left : left + width // 3] += np.array([150, 90, 20], np.uint8)
            packets += stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24"))
        packets += stream.encode(None)
        copies = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
        tick = packets[0].time_base
        for start in range(0, seconds, part):
            for data, pts, dts, is_keyframe in copies:
                packet = av.Packet(data)
                shift = int(Fraction(start) / tick)
                packet.stream, packet.time_base = stream, tick
                packet.pts, packet.dts, packet.is_keyframe = pts + shift, dts + shift, is_keyframe
                output.mux(packet)


def size_of(height: int, width: int) -> tuple[int, int]:
    return round(height * SIDE / max(height, width)), round(width * SIDE / max(height, width))


def read_with_pyav(path: str, times: list[float], seeks: bool) -> list[np.ndarray]:
    """Returns the frames shown at some times, u8[H, W, 3]."""
    found = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        assert stream.time_base
        height, width = size_of(stream.height, stream.width)
        frames = container.decode(stream)
        for time in times:
            if seeks:
                container.seek(int(time / stream.time_base), stream=stream)
                frames = container.decode(stream)
            # The frame that is shown at a time starts at most a frame earlier.
            frame = next(frame for frame in frames if frame.time > time - 1 / RATE + 1e-6)
            found.append(frame.to_ndarray(format="rgb24", height=height, width=width))
    return found


def read_with_opencv(path: str, times: list[float], seeks: bool) -> list[np.ndarray]:
    """Returns the frames shown at some times, u8[H, W, 3]."""
    found, position = [], 0
    video = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    for number in (int(time * RATE + 1e-6) for time in times):
        if seeks:
            video.set(cv2.CAP_PROP_POS_FRAMES, number)
            position = number
        while position < number:
            video.grab()
            position += 1
        _, frame = video.read()
        position += 1
        height, width = size_of(*frame.shape[:2])
        found.append(cv2.cvtColor(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB))
    return found


def worker_memory() -> int:
    """Returns the most memory in bytes that a child of this process has held so far."""
    peaks = [0]
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            status = path.read_text()
            if re.search(rf"^PPid:\s*{os.getpid()}$", status, re.M) and (peak := re.search(r"VmHWM:\s*(\d+)", status)):
                peaks.append(1024 * int(peak[1]))
    return max(peaks)


def measure(path: Path, seconds: int, count: int, clips: int) -> dict[str, Any]:
    """Measures one workload."""
    times = [(i + 0.5) * seconds / count for i in range(count)]
    choice = FrameChoice(count, max_side=SIDE, skip_black=False, skip_duplicates=False)
    seeks = seconds > 60

    def read_ours(reader: VideoReader) -> list[list[np.ndarray]]:
        results = list(reader.map([(path, None, None)] * clips, choice))
        for result in results:
            if isinstance(result, VideoError):
                raise result
            assert len(result.frames) == count
        return [[simplejpeg.decode_jpeg(frame) for frame in results[0].frames]]  # pyright: ignore

    def read_other(pool: ProcessPoolExecutor, function: Callable) -> list[list[np.ndarray]]:
        jobs = [pool.submit(function, str(path), times, seeks) for _ in range(clips)]
        return [job.result() for job in jobs]

    with VideoReader(FLAGS.processes) as reader, _pool() as pool:
        ours, pyav, opencv = (
            functools.partial(read_ours, reader),
            functools.partial(read_other, pool, read_with_pyav),
            functools.partial(read_other, pool, read_with_opencv),
        )
        wanted = ours()
        memory = worker_memory()  # before the other processes start
        differences = {}
        for name, read in (("pyav", pyav), ("opencv", opencv)):
            differences[name] = float(
                np.mean([np.abs(a - b.astype(float)).mean() for a, b in zip(wanted[0], read()[0], strict=True)])
            )
        rounds = [[time_call(call) for call in (ours, pyav, opencv)] for _ in range(FLAGS.rounds)]
    own, plain, other = zip(*rounds, strict=True)
    if differences["pyav"] > LARGEST_DIFFERENCE:
        raise RuntimeError(f"the frames differ: {differences} gray levels on average")
    return {
        "clips_per_s": round(clips / min(own), 2),
        "frames_per_s": round(clips * count / min(own), 1),
        **summarize_ratio("ratio_to_pyav", plain, own),
        **summarize_ratio("ratio_to_opencv", other, own),
        "differences": {name: round(value, 2) for name, value in differences.items()},
        "peak_rss_bytes": memory,
    }


@contextlib.contextmanager
def _pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(FLAGS.processes, mp_context=get_context("spawn")) as pool:
        yield pool


def main(_: list[str]) -> None:
    results: dict[str, Any] = {"cores": usable_cores(), "load": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds, size, clips in (
            ("short_720p", FLAGS.seconds, (720, 1280), FLAGS.clips),
            ("recording_1080p", 60 * FLAGS.minutes, (1080, 1920), max(1, FLAGS.clips // 4)),
        ):
            path = Path(folder) / f"{name}.mp4"
            write_video(path, seconds, *size)
            print(f"{name}: {path.stat().st_size / 1e6:.1f} MB")
            for count in map(int, FLAGS.frames):
                results[f"{name}_{count}"] = measure(path, seconds, count, clips)
                print(f"{name}, {count} frames: {results[f'{name}_{count}']}")
    print(json.dumps(results))


if __name__ == "__main__":
    define_flags()
    app.run(main)
