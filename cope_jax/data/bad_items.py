"""Records and images that a run could not read."""

import threading
from collections import deque

SHOWN = 20  # faults told one by one; the metrics count all
KEPT = 5


class BadItem(ValueError):
    """A record or image that cannot be read; the message names it. A mistake in a setting is another ValueError."""


class Faults:
    """Tells of the first faults and keeps the last few, from any thread."""

    def __init__(self) -> None:
        """None yet."""
        self.lock, self.count, self.last = threading.Lock(), 0, deque(maxlen=KEPT)

    def add(self, fault: BadItem) -> None:
        """Takes note of an item that another one stands for."""
        with self.lock:
            self.count += 1
            self.last.append(str(fault))
            if self.count <= SHOWN:
                more = "; more are counted in the metrics only" if self.count == SHOWN else ""
                print(f"\nleft out: {fault}{more}", flush=True)
