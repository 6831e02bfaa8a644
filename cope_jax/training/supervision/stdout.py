"""What a run prints, often into a file on the disk that it fills itself."""

import errno
import io
import sys

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Lossy(io.FileIO):
    """A standard stream that drops what a full disk refuses."""

    def write(self, content: bytes) -> int:
        """As of any file."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return len(content)


def outlive_a_full_disk() -> None:
    """Lets the process print where that is in vain."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.flush()
        raw = io.BufferedWriter(Lossy(stream.fileno(), "w", closefd=False))
        lossy = io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)
        setattr(sys, name, lossy)
