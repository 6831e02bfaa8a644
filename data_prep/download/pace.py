"""How fast one host is asked: slower as soon as it complains, and then slowly faster again."""

import asyncio

# From N/2 to N in a minute: a host that allows N a second complains once for some 43 N requests that it serves.
DOUBLING_SECONDS = 60.0
MIN_RATE = 0.5
# Sleeps are longer than asked for; what they lose is caught up with, but no more than this.
CATCH_UP_SECONDS = 0.05


class Pace:
    """Gives turns at no more than `ceiling` a second. Belongs to one event loop.

    aiolimiter's rate is fixed, and a new limiter at each change would allow a new burst each time.
    """

    def __init__(self, ceiling: float, *, doubling: float = DOUBLING_SECONDS):
        self._ceiling = ceiling
        self._doubling = doubling
        self._base = ceiling  # the rate at the time `since`
        self._since = 0.0
        self._next = 0.0
        self._paused_until = 0.0
        self._halved_at = 0.0
        self._lock = asyncio.Lock()

    @property
    def rate(self) -> float:
        """Turns a second, now."""
        doublings = max(0.0, _now() - self._since) / self._doubling
        return min(self._ceiling, self._base * 2.0 ** min(doublings, 64.0))

    async def turn(self) -> float:
        """Waits for a turn and returns its time."""
        async with self._lock:
            while (wait := max(self._next, self._paused_until) - _now()) > 0:
                await asyncio.sleep(wait)
            now = _now()
            self._next = max(self._next, now - CATCH_UP_SECONDS) + 1 / self.rate
            return now

    def complain(self, sent: float, retry_after: float) -> None:
        """The host answered 429 or 503 to the request whose turn was at `sent`.

        Requests under way at the last halving say nothing about the rate since then, and halve nothing.
        """
        if sent >= self._halved_at:
            self._base = max(MIN_RATE, self.rate / 2)
            self._since = self._halved_at = _now()
        self.pause(retry_after)

    def pause(self, seconds: float) -> None:
        """Gives no turn for so long; the rate does not rise meanwhile."""
        until = _now() + seconds
        if seconds > 0 and until > self._paused_until:
            self._base, self._since = self.rate, until
            self._paused_until = until


def _now() -> float:
    return asyncio.get_running_loop().time()
