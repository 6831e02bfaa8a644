"""Progress of long work: a bar on a terminal, lines in a log."""

import sys
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 10.0  # seconds between two lines in a log
LOG_FORMAT = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left{postfix}"


class Progress(tqdm):
    """tqdm's progress bar on a terminal; elsewhere one line every `LOG_INTERVAL` seconds and one at the end."""

    def __init__(self, *args: Any, unit: str, **options: Any) -> None:
        """Takes tqdm's arguments; `desc` and `unit` ("images") name the work."""
        file = options.setdefault("file", sys.stderr)
        self.on_terminal = file.isatty()
        self.shown = 0
        if not self.on_terminal:
            options = {"mininterval": LOG_INTERVAL, "miniters": 1, "bar_format": LOG_FORMAT} | options
        super().__init__(*args, unit=f" {unit}", unit_scale=True, dynamic_ncols=self.on_terminal, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Shows the current state."""
        if self.on_terminal:
            return super().display(msg, pos)
        if self.n == self.shown:
            return True
        self.shown = self.n
        self.fp.write(f"{msg or self}\n")
        self.fp.flush()
        return True
