"""Stops asking a server that is down or has shut us out: pauses first, gives up in the end."""

import collections

from data_prep.download.failures import Unavailable

TRIAL = 10  # requests that decide after a pause


class Breaker:
    """Judges the latest `window` requests. Knows no clock and does not wait: its caller does."""

    def __init__(self, *, window: int, pause: float, pauses: int):
        """A `pause` is in seconds and doubles each time; after `pauses` in a row without a recovery it gives up."""
        self._window = window
        self._pause = pause
        self._pauses = pauses
        self._size = window
        self._outcomes: collections.deque[bool] = collections.deque(maxlen=window)
        self._paused = 0  # times in a row
        self._resume_at = 0.0

    def record(self, failed: bool, *, sent: float, now: float) -> float:
        """Takes the outcome of the request that went out at `sent`; returns for how many seconds to pause, mostly 0.

        Raises:
          Unavailable: the pauses are used up.
        """
        if sent < self._resume_at:  # under way when the pause began: it says nothing new
            return 0.0
        self._outcomes.append(failed)
        if len(self._outcomes) < self._size:
            return 0.0
        if 2 * sum(self._outcomes) <= len(self._outcomes):
            self._size, self._paused = self._window, 0
            return 0.0
        if self._paused == self._pauses:
            failed, size = sum(self._outcomes), len(self._outcomes)
            raise Unavailable(f"{failed} of the latest {size} requests failed, after {self._pauses} pauses")
        seconds = self._pause * 2**self._paused
        self._paused += 1
        self._resume_at = now + seconds
        self._size = TRIAL
        self._outcomes.clear()
        return seconds
