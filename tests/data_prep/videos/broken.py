"""Broken and hostile files, and the problem that each must be reported as."""

import struct
from collections.abc import Iterator

import simplejpeg

from data_prep.videos.reader import VideoProblem
from tests.data_prep.videos.clocks import draw, write_clock, write_tone

TIMES = [40 * i for i in range(60)]


def broken_files() -> Iterator[tuple[str, bytes, set[VideoProblem]]]:
    """Yields the name, the bytes and the possible problems of each file."""
    no_video, corrupt, large = {VideoProblem.NOT_A_VIDEO}, {VideoProblem.CORRUPT}, {VideoProblem.TOO_LARGE}
    damaged = corrupt | no_video | {VideoProblem.NO_PICTURES}
    mp4 = write_clock(TIMES)
    front = write_clock(TIMES, options={"movflags": "faststart"})
    webm = write_clock(TIMES, container="webm", codec="libvpx")
    gif = write_clock([100 * i for i in range(20)], container="gif", codec="gif", pixels="rgb8")
    jpeg = simplejpeg.encode_jpeg(draw(5, 96, 128))
    mdat = mp4.index(b"mdat")
    yield "empty", b"", no_video
    yield "zeros", bytes(10_000), no_video
    yield "text", b"Hello, this is no video.\n" * 100, no_video
    yield "photo", jpeg, no_video
    yield "archive", b"PK\x03\x04" + mp4, no_video
    yield "sound only", write_tone(), {VideoProblem.NO_PICTURES}
    yield "playlist", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", no_video
    yield "list of files", b"ffconcat version 1.0\nfile '/etc/hostname'\n", no_video
    yield "session description", b"v=0\r\nc=IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n", no_video
    yield "manifest", b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/hostname</BaseURL></MPD>', no_video
    yield "mp4 cut in half, index at the end", mp4[: len(mp4) // 2], no_video
    yield "mp4 cut in half, index at the start", front[:-400], {VideoProblem.CUT_OFF} | corrupt
    yield "webm cut in half", webm[: len(webm) // 2], {VideoProblem.CUT_OFF} | corrupt
    yield "gif cut in its header", gif[:600], damaged
    yield "mp4 header only", mp4[:mdat], damaged
    yield "mp4 with zeros as frames", mp4[: mdat + 4] + bytes(len(mp4) - mdat - 4 - 2500) + mp4[-2500:], damaged
    yield "gif of 65,535 × 65,535 pixels", gif[:6] + b"\xff\xff\xff\xff" + gif[10:], large | corrupt
    yield "unknown codec", webm.replace(b"V_VP8", b"V_XY9"), damaged
    yield "nested boxes", b"".join(struct.pack(">I4s", 8 * (20_000 - i), b"moov") for i in range(20_000)), damaged
    yield "more than a day", write_clock([0, 90_000_000], container="mkv", codec="mjpeg", pixels="yuvj420p"), large
    yield "four billion frames", patched(mp4, b"stsz", 12, 0xFFFFFFFF), damaged


def patched(video: bytes, box: bytes, offset: int, value: int) -> bytes:
    """Returns a video with another number at an offset from the name of a box."""
    start = video.index(box) + offset
    return video[:start] + struct.pack(">I", value) + video[start + 4 :]
