"""Records and images that a run could not read."""

import threading
from collections import deque

PRINTED = 20  # the metrics count all
KEPT = 5


class InvalidItemError(ValueError):
    """A record or image cannot be read. (Invalid settings raise other ValueErrors.)"""


class InvalidItems:
    """Counts invalid items, prints the first and keeps the last few. Thread-safe."""

    def __init__(self) -> None:
        self.count = 0
        self.last: deque[str] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def add(self, error: InvalidItemError) -> None:
        """Records an item that was skipped."""
        with self._lock:
            self.count += 1
            self.last.append(str(error))
            if self.count <= PRINTED:
                more = "; further ones are only counted in the metrics" if self.count == PRINTED else ""
                print(f"\nskipped: {error}{more}", flush=True)
