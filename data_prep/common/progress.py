"""Progress of long work: a bar on a terminal, lines in a log."""

import io
import sys
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 10.0  # seconds between two lines in a log
LOG_FORMAT = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left{postfix}"


class Progress(tqdm):
    """tqdm's progress bar on a terminal; elsewhere one line every `LOG_INTERVAL` seconds and one at the end.

    Call `update(0)` now and then if the work can stall: it shows a changed postfix when the next line is due.
    """

    monitor_interval = 0  # no thread: `miniters=0` checks the time at each update

    def __init__(self, *args: Any, unit: str, **options: Any) -> None:
        """Takes tqdm's arguments; `desc` and `unit` ("images") name the work."""
        self.log = options.pop("file", None) or sys.stderr
        self.on_terminal = self.log.isatty()
        self.shown = (options.get("initial", 0), None)
        if self.on_terminal:
            options |= {"file": self.log, "dynamic_ncols": True}
        else:  # tqdm's control characters go nowhere
            options = {"mininterval": LOG_INTERVAL, "bar_format": LOG_FORMAT} | options | {"file": io.StringIO()}
        super().__init__(*args, unit=f" {unit}", miniters=0, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Shows the current state; a log gets a line only if it has changed."""
        if self.on_terminal:
            super().display(msg, pos)
        elif self.shown != (self.n, self.postfix):
            self.shown = (self.n, self.postfix)
            print(" ".join(str(self).split()), file=self.log, flush=True)  # tqdm pads the rate

    def skip(self, count: int) -> None:
        """Counts work that was done before, which must not count for the rate."""
        if not self.disable:
            self.n += count
            self.initial += count
            self.last_print_n += count
