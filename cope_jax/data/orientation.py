"""Which way up a photo is: cameras write pixels as their sensor lies and the turn to show them by into EXIF."""

import struct

import numpy as np

UPRIGHT = 1
_TAG, _SHORT = 0x0112, 3


def jpeg_orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 to 8; 1, upright, where it has none or a broken one."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xDA:  # the image begins
            break
        if marker == 0xE1 and data.startswith(b"Exif\0\0", place + 4):
            return exif_orientation(data[place + 4 : place + 2 + length])
        place += 2 + length
    return UPRIGHT


def exif_orientation(exif: bytes) -> int:
    """The orientation that an EXIF block tells, with or without its head `Exif`; 1 where it tells none."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
            if tag == _TAG:
                return value if kind == _SHORT and 1 <= value <= 8 else UPRIGHT
    except struct.error:  # it ends too early
        pass
    return UPRIGHT


def is_sideways(orientation: int) -> bool:
    """Whether height and width change places."""
    return orientation >= 5


def turn_upright(pixels_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as they are to be seen, [H, W, C] or, where the orientation is sideways, [W, H, C]."""
    if is_sideways(orientation):
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    # Of the turned image, which axes run backwards.
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels_HWC[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])
