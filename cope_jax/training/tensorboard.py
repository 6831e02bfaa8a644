"""What TensorBoard shows of a run: one file of events a start.

tensorboardX is imported where it is used: wherever torch is installed it takes that along, for seconds.
"""

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cope_jax.runs.log_file import LogFile

BINS = 64  # of histograms


class Board:
    """Writes events. tensorboardX's own writer ends with a full disk, and then blocks whoever has more for it."""

    def __init__(self, folder: Path, *, step: int):
        """Continues a run at `step`: what earlier files tell of later ones is hidden."""
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(exist_ok=True)
        self.file = LogFile(folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}")
        self.add(step + 1, file_version="brain.Event:2")
        self.add(step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, **what: Any) -> None:
        """Adds an event: a record of its length, the length's checksum, its content and the content's checksum."""
        from tensorboardX.proto.event_pb2 import Event

        content = Event(step=step, wall_time=time.time(), **what).SerializeToString()
        length = struct.pack("<Q", len(content))
        parts = (length, checksum(length), content, checksum(content))
        self.file.add(b"".join(parts))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by name."""
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import scalar

        summaries = [scalar(name, value) for name, value in values.items()]
        self.add(step, summary=Summary(value=[value for summary in summaries for value in summary.value]))

    def add_histogram(self, step: int, name: str, sample: np.ndarray) -> None:
        """Adds how a sample is distributed."""
        from tensorboardX.summary import histogram

        self.add(step, summary=histogram(name, sample, BINS))

    def add_image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds a picture, u8[H,W,3]."""
        from tensorboardX.summary import image

        self.add(step, summary=image(name, pixels, dataformats="HWC"))


def checksum(content: bytes) -> bytes:
    """As TFRecord files have it."""
    from tensorboardX.record_writer import masked_crc32c

    return struct.pack("<I", masked_crc32c(content))
