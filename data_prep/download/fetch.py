"""Fetches one image: tries, backoff, redirects, deadlines and limits."""

import asyncio
import collections
import dataclasses
import email.utils
import time
from collections.abc import Callable

import aiohttp
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from yarl import URL

from data_prep.download.breaker import Breaker
from data_prep.download.content import Picture
from data_prep.download.failures import ILL, TRANSIENT, Failure, FetchError, Unavailable
from data_prep.download.pace import Pace

MAX_REDIRECTS = 5
MAX_BACKOFF = 60.0
# What a busy server wants that does not say how long it wants to be left alone; and how long is not waited for.
MIN_RETRY_AFTER, MAX_RETRY_AFTER = 1.0, 3600.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({404, 410})
_BUSY = frozenset({429, 503})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may cost, and how many there may be.

    Attributes:
      rate: requests a second to one host, at most; less while it complains.
      concurrency: requests to one host at a time.
      deadline: seconds for connecting, headers, redirects and the whole body of one try.
      max_bytes: of a body.
      tries: of one URL in one run.
      backoff: seconds before the second try; twice as long before each further one, with as much jitter at most.
      pause: seconds of the first pause when most requests fail; twice as long each further time.
      pauses: in a row, before giving up.
    """

    rate: float = 200.0
    concurrency: int = 64
    deadline: float = 30.0
    max_bytes: int = 16 << 20
    tries: int = 4
    backoff: float = 1.0
    pause: float = 30.0
    pauses: int = 5


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of a URL: an image, or the last reason why there is none."""

    result: Picture | FetchError
    http_status: int | None
    tries: int

    @property
    def failure(self) -> Failure | None:
        """Why there is no image, None where there is one."""
        return self.result.failure if isinstance(self.result, FetchError) else None


def open_session(limits: Limits, contact: str) -> aiohttp.ClientSession:
    """Returns a session that keeps connections and no cookies, verifies TLS and says who asks."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=limits.concurrency),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # `Fetcher` has a deadline over all of it
        headers={
            "User-Agent": f"cope-jax-download/0.1 ({contact or 'no contact given'})",
            "Accept": "image/*",
            "Accept-Encoding": "identity",  # the bytes are to arrive as they are stored
        },
    )


class Fetcher:
    """Fetches URLs, politely to all hosts that they lead to."""

    def __init__(self, session: aiohttp.ClientSession, limits: Limits, check: Callable[[bytes], Picture]):
        """`check` makes an image of a body or raises FetchError; it is called in threads."""
        self._session = session
        self._limits = limits
        self._check = check
        self._paces: dict[str, Pace] = collections.defaultdict(lambda: Pace(limits.rate))
        window = max(200, 4 * limits.concurrency)  # all that is under way may fail at once, and be a hiccup
        self._breaker = Breaker(window=window, pause=limits.pause, pauses=limits.pauses)
        self._backoff = wait_exponential_jitter(multiplier=limits.backoff, max=MAX_BACKOFF, jitter=limits.backoff)
        self._paused_until = 0.0

    def rate(self, url: str) -> float:
        """Returns the rate that the host of `url` may be asked at now."""
        return self._paces[URL(url).authority].rate

    @property
    def pause(self) -> float:
        """Seconds to the end of the pause that follows on many failures; 0 mostly."""
        return max(0.0, self._paused_until - _now())

    async def fetch(self, url: str) -> Answer:
        """Returns what became of `url`.

        Raises:
          Unavailable: the server does not serve; no use to go on with other URLs.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._limits.tries),
            wait=self._wait,
            retry=retry_if_exception(lambda error: isinstance(error, FetchError) and error.failure in TRANSIENT),
            reraise=True,
        )
        tries = 0
        try:
            async for attempt in retrying:
                with attempt:
                    tries = attempt.retry_state.attempt_number
                    return Answer(await self._try(url), 200, tries)
        except FetchError as error:
            return Answer(error, error.http_status, tries)
        raise AssertionError("a try ends with an answer or an error")

    def _wait(self, state: RetryCallState) -> float:
        return max(self._backoff(state), state.outcome.exception().retry_after)

    async def _try(self, url: str) -> Picture:
        here, left = URL(url, encoded=True), self._limits.deadline
        for _ in range(MAX_REDIRECTS + 1):
            pace = self._paces[here.authority]
            sent = await pace.turn()  # not counted in the deadline: a slow pace is no fault of the server
            try:
                answer = await self._request(here, pace, sent, left)
                if isinstance(answer, bytes):
                    answer = await asyncio.get_running_loop().run_in_executor(None, self._check, answer)
            except FetchError as error:
                self._judge(error.failure in ILL, sent)
                raise
            if isinstance(answer, Picture):
                self._judge(False, sent)
                return answer
            here, left = answer, left - (_now() - sent)
        raise FetchError(Failure.REDIRECT, f"more than {MAX_REDIRECTS} redirects, the last one to {here}")

    def _judge(self, failed: bool, sent: float) -> None:
        if seconds := self._breaker.record(failed, sent=sent, now=_now()):
            self._paused_until = _now() + seconds
            for pace in self._paces.values():
                pace.pause(seconds)

    async def _request(self, url: URL, pace: Pace, sent: float, deadline: float) -> bytes | URL:
        """Returns the body, or where a redirect leads."""
        try:
            async with asyncio.timeout(deadline), self._session.get(url, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    return _target(response)
                if response.status != 200:
                    raise _refusal(response, pace, sent)
                return await self._body(response)
        except TimeoutError as error:
            raise FetchError(Failure.TIMEOUT, f"no whole answer within {self._limits.deadline:g} s") from error
        except aiohttp.ClientPayloadError as error:
            raise FetchError(Failure.TRUNCATED, f"the body ended early: {error}", http_status=200) from error
        except (aiohttp.ClientError, OSError) as error:
            raise FetchError(Failure.CONNECTION, f"{type(error).__name__}: {error}") from error

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        parts, size = [], response.content_length or 0
        if size <= self._limits.max_bytes:
            size = 0
            async for part in response.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > self._limits.max_bytes:
                    break
        if size > self._limits.max_bytes:
            message = f"{size} bytes or more, and --max_bytes is {self._limits.max_bytes}"
            raise FetchError(Failure.TOO_LARGE, message, http_status=200)
        return b"".join(parts)


def _target(response: aiohttp.ClientResponse) -> URL:
    location = response.headers.get("Location", "")
    try:
        target = response.url.join(URL(location))
    except ValueError as error:
        raise FetchError(Failure.REDIRECT, f"to {location!r}: {error}", http_status=response.status) from error
    if not location or target.scheme not in ("http", "https") or not target.host:
        raise FetchError(Failure.REDIRECT, f"to {location!r}, which is not http", http_status=response.status)
    return target


def _refusal(response: aiohttp.ClientResponse, pace: Pace, sent: float) -> FetchError:
    status = response.status
    retry_after = 0.0
    if status in _BUSY:
        retry_after = max(MIN_RETRY_AFTER, parse_retry_after(response.headers.get("Retry-After"), time.time()))
    if retry_after > MAX_RETRY_AFTER:
        raise Unavailable(f"{response.url.host} answers {status} and wants to be left alone for {retry_after:.0f} s")
    if status in _BUSY:
        pace.complain(sent, retry_after)
    if status in _GONE:
        failure = Failure.GONE
    elif status == 429:
        failure = Failure.RATE
    else:
        failure = Failure.SERVER if status >= 500 else Failure.CLIENT
    message = f"{status} {response.reason or ''}".strip()
    return FetchError(failure, message, http_status=status, retry_after=retry_after)


def parse_retry_after(value: str | None, now: float) -> float:
    """Returns the seconds that a Retry-After header asks for: "120" or a date. 0 for none and for nonsense."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return 0.0


def _now() -> float:
    return asyncio.get_running_loop().time()
