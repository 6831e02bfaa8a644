"""TensorBoard event files of a run, one per start.

Imports tensorboardX only when needed: it imports torch if that is installed, which takes seconds.
"""

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cope_jax.runs.log_files import LogFile

HISTOGRAM_BINS = 64


class EventFile:
    """Writes events. tensorboardX's own writer stops on a full disk and then blocks its callers.

    Args:
        folder: Where to write; made if missing.
        step: Step at which the run starts or resumes. Hides later steps of earlier files.
    """

    def __init__(self, folder: Path, *, step: int):
        folder.mkdir(exist_ok=True)
        self.file = LogFile(folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}")
        self.add(step + 1, file_version="brain.Event:2")
        self.add(step + 1, session_log={"status": "START"})

    def add(self, step: int, **fields: Any) -> None:
        """Adds an event, as a TFRecord: length, checksum of the length, content, checksum of the content."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.record_writer import masked_crc32c

        content = Event(step=step, wall_time=time.time(), **fields).SerializeToString()
        parts = (struct.pack("<Q", len(content)), content)
        self.file.append(b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in parts))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by name."""
        from tensorboardX.summary import scalar

        summaries = [scalar(name, value) for name, value in values.items()]
        self.add(step, summary={"value": [value for summary in summaries for value in summary.value]})

    def add_histogram(self, step: int, name: str, sample: np.ndarray) -> None:
        """Adds the histogram of a sample."""
        from tensorboardX.summary import histogram

        self.add(step, summary=histogram(name, sample, HISTOGRAM_BINS))

    def add_image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds an image, u8[H, W, 3]."""
        from tensorboardX.summary import image

        self.add(step, summary=image(name, pixels, dataformats="HWC"))
