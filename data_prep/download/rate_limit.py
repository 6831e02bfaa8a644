"""Limits the rate of requests: per host, and altogether when most of them fail."""

import asyncio
import collections
import dataclasses

from data_prep.download.failures import UnavailableError

# From N/2 to N in a minute: a host that allows N requests per second complains once per about 43 N served requests.
DOUBLING_SECONDS = 60.0
MIN_RATE = 0.5
CATCH_UP_SECONDS = 0.05  # sleeps take longer than requested; at most this much is made up for
TRIAL = 10  # requests that decide whether the server has recovered after a pause


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of requests; times are in seconds."""

    rate: float = 200.0  # requests per second to a host, at most; reduced while the host complains
    concurrency: int = 64  # simultaneous requests to a host
    deadline: float = 30.0  # of one try: connecting, headers, redirects and the whole body
    max_bytes: int = 16 << 20  # of a body
    tries: int = 4  # of a URL in one run
    backoff: float = 1.0  # before the second try, doubled before each further one, plus at most as much jitter
    pause: float = 30.0  # when most requests fail, doubled each further time
    pauses: int = 5  # in a row before giving up


def now() -> float:
    """Returns the time of the running event loop."""
    return asyncio.get_running_loop().time()


class RateLimiter:
    """Limits the requests to a host: fewer as soon as it complains, then slowly more again. For one event loop.

    aiolimiter's rate is fixed, and a new limiter at each change would allow a new burst each time.
    """

    def __init__(self, limit: float, *, doubling: float = DOUBLING_SECONDS) -> None:
        """Takes the largest number of requests per second, and the seconds in which a reduced rate doubles."""
        self._limit = limit
        self._doubling = doubling
        self._base = limit  # the rate at the time `since`
        self._since = 0.0
        self._next = 0.0
        self._paused_until = 0.0
        self._halved_at = 0.0
        self._lock = asyncio.Lock()

    @property
    def rate(self) -> float:
        """Requests per second that are allowed now."""
        doublings = max(0.0, now() - self._since) / self._doubling
        return min(self._limit, self._base * 2.0 ** min(doublings, 64.0))

    async def acquire(self) -> float:
        """Waits until a request may be sent and returns the time."""
        async with self._lock:
            while (wait := max(self._next, self._paused_until) - now()) > 0:
                await asyncio.sleep(wait)
            time = now()
            self._next = max(self._next, time - CATCH_UP_SECONDS) + 1 / self.rate
            return time

    def slow_down(self, sent: float, retry_after: float) -> None:
        """Halves the rate and pauses, because the host answered 429 or 503 to the request sent at `sent`.

        Requests sent before the latest halving say nothing about the rate since then and do not halve it again.
        """
        if sent >= self._halved_at:
            self._base = max(MIN_RATE, self.rate / 2)
            self._since = self._halved_at = now()
        self.pause(retry_after)

    def pause(self, seconds: float) -> None:
        """Allows no requests for some seconds, during which the rate does not rise."""
        until = now() + seconds
        if seconds > 0 and until > self._paused_until:
            self._base, self._since = self.rate, until
            self._paused_until = until


@dataclasses.dataclass(eq=False, kw_only=True)
class CircuitBreaker:
    """Decides from the latest requests when to pause and when to give up. It has no clock and does not wait itself."""

    window: int  # number of latest requests of which at most half may fail
    pause: float  # seconds of the first pause; each further one takes twice as long
    pauses: int  # number of pauses without a recovery in between, before it gives up

    def __post_init__(self) -> None:
        self._size = self.window
        self._outcomes: collections.deque[bool] = collections.deque(maxlen=self.window)
        self._paused = 0  # number of pauses since the latest recovery
        self._resume_at = 0.0

    def record(self, failed: bool, *, sent: float, now: float) -> float:
        """Records the outcome of a request and returns the seconds to pause, usually 0.

        Raises:
            UnavailableError: Most requests fail even after all pauses.
        """
        if sent < self._resume_at:  # sent before the pause, so it says nothing new
            return 0.0
        self._outcomes.append(failed)
        if len(self._outcomes) < self._size:
            return 0.0
        if 2 * sum(self._outcomes) <= len(self._outcomes):
            self._size, self._paused = self.window, 0
            return 0.0
        if self._paused == self.pauses:
            raise UnavailableError(
                f"{sum(self._outcomes)} of the latest {len(self._outcomes)} requests failed, after {self.pauses} pauses"
            )
        seconds = self.pause * 2**self._paused
        self._paused += 1
        self._resume_at = now + seconds
        self._size = TRIAL
        self._outcomes.clear()
        return seconds
