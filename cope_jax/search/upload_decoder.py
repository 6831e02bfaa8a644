"""Program that decodes uploaded pictures, or a video.

Files from untrusted users are decoded in a process of their own, which can be stopped at any time and returns all of
its memory; if a decoder crashes, the server goes on.
"""

import json
import resource
import signal
import sys
from dataclasses import asdict

import numpy as np
from PIL import Image

from cope_jax.data.images import (
    JPEG_START,
    MAX_PIXELS,
    MAX_SIDE,
    RESIZES,
    WHOLE,
    Box,
    ImageProblem,
    InvalidImageError,
    crop_resize,
    open_image,
    resize,
    upright_pixels,
)
from cope_jax.data.thumbnails import data_uri, shown_frames, thumbnail_uri
from data_prep.videos.reader import FrameChoice

TOO_LARGE = f"has too many pixels: at most {MAX_PIXELS // 1_000_000} million, and {MAX_SIDE:,} on a side."
VIDEO_MEMORY = 1_500_000_000  # bytes of address space, of which libraries take 600 million
UNREADABLE = "cannot be read as a picture: choose a JPEG, PNG, or WebP."


def main(form: str, side: str, rule: str, *descriptors: str) -> None:
    """Decodes files and writes the result to standard output.

    The first line is JSON: "thumbnails", a list of data URIs, which the pixels u8[N, side, side, 3] follow; or
    "problem", with an HTTP status, the number of the invalid file, and a message.

    Args:
        form: "pictures", or "video" for a single file.
        side: Side of the squares that the model reads, in pixels.
        rule: How they become squares, a key of RESIZES.
        *descriptors: Descriptors of the open files.
    """
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # may be sent to all processes of a server that stops
        signal.signal(signal_number, signal.SIG_IGN)  # it lets requests finish
    if form == "video":
        return write_video(int(descriptors[0]), int(side), RESIZES[rule])
    squares, thumbnails = [], []
    for number, descriptor in enumerate(descriptors):
        try:
            with open(int(descriptor), "rb") as file:
                file.seek(0)
                square, thumbnail = decode(file.read(), int(side), RESIZES[rule])
        except InvalidImageError as error:
            too_large = error.problem == ImageProblem.TOO_LARGE
            return write_header(problem=(413, number, TOO_LARGE) if too_large else (415, number, UNREADABLE))
        squares.append(square)
        thumbnails.append(thumbnail)
    write_header(thumbnails=thumbnails)
    sys.stdout.buffer.write(np.stack(squares).tobytes())


def write_video(descriptor: int, side: int, box: Box | None) -> None:
    """Decodes a video in limited memory and writes its frames, with thumbnails of some of them."""
    from data_prep.videos.decode import reply  # needs the extra "video"

    resource.setrlimit(resource.RLIMIT_AS, (VIDEO_MEMORY, VIDEO_MEMORY))
    with open(descriptor, "rb") as file:
        header, frames = reply(file, {"choice": asdict(FrameChoice()), "start": None, "end": None})
    if problem := header.get("problem"):
        return write_header(problem=(415, 0, f"cannot be read as a video: {problem}."))
    write_header(thumbnails=[data_uri(frame) for frame in shown_frames(frames)])
    sys.stdout.buffer.write(np.stack([crop_resize(frame, box, side) for frame in frames]).tobytes())


def write_header(**values: object) -> None:
    """Writes the line of JSON."""
    sys.stdout.buffer.write(json.dumps(values).encode() + b"\n")


def decode(data: bytes, side: int, box: Box | None = WHOLE) -> tuple[np.ndarray, str]:
    """Returns a picture as the model reads it, u8[side, side, 3], and its thumbnail as a data URI.

    Raises:
        InvalidImageError: The picture does not decode.
    """
    if data.startswith(JPEG_START):
        return crop_resize(data, box, side), data_uri(data)
    pixels = upright_pixels(load(data))
    return resize(pixels, box, side), thumbnail_uri(pixels)


def load(data: bytes) -> Image.Image:
    """Returns a decoded picture without the buffers of its decoder, which take twice its size for a WebP."""
    with open_image(data) as image:
        return image.copy()


if __name__ == "__main__":
    main(*sys.argv[1:])
