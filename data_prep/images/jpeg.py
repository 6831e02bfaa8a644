"""The headers of JPEGs, read as leniently as by the programs that show them."""

import dataclasses
import re
import struct
from collections.abc import Iterator

JPEG_START, _END = b"\xff\xd8", b"\xff\xd9"
_JFIF, _EXIF, _ADOBE, _SCAN, _PROGRESSIVE = 0xE0, 0xE1, 0xEE, 0xDA, (0xC2, 0xCA)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the others are tables
_IGNORED = {*range(0xE2, 0xEE), 0xEF, 0xFE}  # comments, profiles and the like
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
_MAX_SEGMENTS = 10_000  # real headers have some dozens
_ORIENTATION_TAG, _SHORT = 0x0112, 3  # EXIF
_MARKER = re.compile(rb"\xff+([^\xff])", re.DOTALL)
# The start of a scan, which ends with its range of frequencies and of bits.
_SCAN_START = re.compile(rb"(\xff\xda\0(?:\x08\x01.{2}|\x0a\x02.{4}|\x0c\x03.{6}|\x0e\x04.{8})).{3}", re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class JpegHeader:
    """The header of a JPEG; height and width are those of the stored image, before it is turned upright."""

    height: int
    width: int
    components: int
    orientation: int  # EXIF, 1 to 8
    scans: int


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Reads the header. Raises ValueError if it ends before the pixels."""
    size = orientation = None
    progressive = False
    for marker, start, stop in _segments(data):
        if marker in _FRAMES and size is None and stop - start >= 6:
            size, progressive = struct.unpack_from(">HHB", data, start + 1), marker in _PROGRESSIVE
        elif marker == _EXIF and orientation is None and data.startswith(b"Exif\0\0", start):
            orientation = exif_orientation(data[start:stop])
        elif marker == _SCAN and size is not None:
            # Most JPEGs have one scan, and looking for more takes longer than the rest of the header.
            single = not progressive and data[start] == size[2]
            scans = 1 if single else len(_SCAN_START.findall(data, start - 4))
            return JpegHeader(*size, orientation or 1, scans)
    raise ValueError("its header is truncated")


def tidy_jpeg(data: bytes) -> bytes:
    """Returns a JPEG without the oddities of its header that decoders warn of, although the picture is whole.

    These are bytes between the segments, unknown versions of JFIF and of Adobe's marker, broken color profiles, and, in
    sequential JPEGs, scans that do not claim all frequencies, as on some phones, and a missing end marker.
    """
    parts, end, sequential, components = [JPEG_START], len(data), True, 3
    for marker, start, stop in _segments(data):
        payload = data[start:stop]
        if marker == _SCAN:
            end = start - 4
            break
        if marker in _FRAMES:
            sequential, components = marker not in _PROGRESSIVE, payload[5] if len(payload) > 5 else 3
        elif marker == _JFIF and payload.startswith(b"JFIF\0"):
            payload = payload[:5] + b"\1\1" + payload[7:]
        elif marker == _ADOBE and payload.startswith(b"Adobe") and len(payload) >= 12 and payload[11] > 2:
            payload = payload[:11] + bytes([2 if components == 4 else 1]) + payload[12:]
        if marker not in _IGNORED:
            parts.append(struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload)
    pixels = data[end:]
    if sequential:
        pixels = _SCAN_START.sub(lambda match: match[1] + b"\0\x3f\0", pixels)
        pixels += _END  # of truncated pixels, decoders still miss some
    return b"".join([*parts, pixels])


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields marker, start and stop of the payload of each segment up to the first scan, as libjpeg finds them."""
    position, end = len(JPEG_START), len(data)
    for _ in range(_MAX_SEGMENTS):
        if position + 1 < end and data[position] == 0xFF and data[position + 1] != 0xFF:
            position += 2
        elif found := _MARKER.search(data, position):  # skips bytes between segments
            position = found.end()
        else:
            return
        marker, start = data[position - 1], position + 2
        if marker == 0 or marker in _WITHOUT_LENGTH:
            continue
        stop = position + int.from_bytes(data[position:start], "big")
        if marker in (0xD8, 0xD9) or stop < start or stop > len(data):
            return
        yield marker, start, stop
        if marker == _SCAN:
            return
        position = stop


def exif_orientation(exif: bytes) -> int:
    """Returns the orientation in an EXIF block, with or without its prefix `Exif`; 1 if it is missing or invalid."""
    for tag, kind, _, value in tiff_entries(exif.removeprefix(b"Exif\0\0")):
        if tag == _ORIENTATION_TAG:
            return value if kind == _SHORT and 1 <= value <= 8 else 1
    return 1


def tiff_entries(tiff: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yields tag, kind, count and the first half of the value of each entry of a TIFF's first directory."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(entries):
            yield struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
    except struct.error:  # the block is truncated
        return
