"""Test videos whose frames show their number as twelve dark or bright blocks, written with FFmpeg's own encoders."""

import io
import struct
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import simplejpeg

ROWS, COLUMNS = 3, 4
TICK = Fraction(1, 1000)


def draw(number: int, height: int, width: int) -> np.ndarray:
    """Returns the picture of a number below 4096, u8[height, width, 3]."""
    bits = (number >> np.arange(ROWS * COLUMNS) & 1).reshape(ROWS, COLUMNS)
    rows, columns = np.arange(height) * ROWS // height, np.arange(width) * COLUMNS // width
    return np.repeat(np.where(bits, 230, 40).astype(np.uint8)[rows][:, columns, None], 3, axis=2)


def read_number(jpeg: bytes) -> int:
    """Returns the number that a frame shows."""
    pixels = simplejpeg.decode_jpeg(jpeg)
    height, width, _ = pixels.shape
    rows = (2 * np.arange(ROWS) + 1) * height // (2 * ROWS)
    columns = (2 * np.arange(COLUMNS) + 1) * width // (2 * COLUMNS)
    bits = pixels[rows][:, columns].mean(axis=-1) > 128
    return int((bits.ravel() << np.arange(ROWS * COLUMNS)).sum())


def write_clock(
    milliseconds: Sequence[int],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = (96, 128),
    group: int = 12,
    options: dict[str, str] | None = None,
    pictures: Sequence[np.ndarray] | None = None,
) -> bytes:
    """Returns a video of frames at the given times, which show 0, 1, 2, … or the given pictures of the given size."""
    height, width = size
    file = io.BytesIO()
    with av.open(file, "w", format={"mkv": "matroska"}.get(container, container)) as output:
        stream = output.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.gop_size, stream.codec_context.time_base = group, TICK
        stream.codec_context.thread_count = 1
        for number, time in enumerate(milliseconds):
            picture = draw(number, height, width) if pictures is None else pictures[number]
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = time, TICK
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def write_tone() -> bytes:
    """Returns a file with sound only."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def turn(video: bytes) -> bytes:
    """Returns an mp4 that players turn clockwise by 90°, as phones write it."""
    start = video.index(b"tkhd") + 4 + 40  # version 0: the matrix comes after 40 bytes
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    return video[:start] + matrix + video[start + 36 :]


def cut_start(video: bytes, milliseconds: int) -> bytes:
    """Returns an mp4 whose edit list skips the first milliseconds."""
    (scale,) = struct.unpack_from(">I", video, video.index(b"mdhd") + 16)
    start = video.index(b"elst") + 12  # of the first entry: its duration, in 1/1000 s, and its first time
    duration, first = struct.unpack_from(">Ii", video, start)
    entry = struct.pack(">Ii", duration - milliseconds, first + milliseconds * scale // 1000)
    return video[:start] + entry + video[start + 8 :]


def mutate(video: bytes, rng: np.random.Generator) -> bytes:
    """Returns a video with some bytes changed, removed, repeated or cut off."""
    data = bytearray(video)
    for _ in range(int(rng.integers(1, 9))):
        start = int(rng.integers(len(data))) if rng.random() < 0.5 else int(rng.integers(min(len(data), 2000)))
        stop = start + int(rng.choice([1, 4, 64]))
        match rng.choice(4, p=[0.85, 0.05, 0.05, 0.05]):
            case 0:
                data[start:stop] = rng.bytes(len(data[start:stop]))
            case 1:
                del data[start:stop]
            case 2:
                data[start:start] = data[start:stop]
            case 3:
                del data[start:]
        data = data or bytearray(b"\0")
    return bytes(data)
