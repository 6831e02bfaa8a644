"""Fetches images: tries, backoff, redirects, deadlines and limits."""

import asyncio
import collections
import dataclasses
import email.utils
import time
from collections.abc import Callable

import aiohttp
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from yarl import URL

from data_prep.download.content import Picture
from data_prep.download.failures import SERVER_FAILURES, TRANSIENT, Failure, FetchError, UnavailableError
from data_prep.download.rate_limit import CircuitBreaker, RateLimiter, now

MAX_REDIRECTS = 5
MAX_BACKOFF = 60.0
MIN_RETRY_AFTER = 1.0  # seconds to wait for a busy server that does not say how long
MAX_RETRY_AFTER = 3600.0  # the download gives up instead of waiting longer
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({404, 410})
_BUSY = frozenset({429, 503})


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of fetching a URL: an image, or the failure of the last try."""

    tries: int
    http_status: int | None
    picture: Picture | None = None
    failure: Failure | None = None
    error_message: str | None = None


def open_session(limits: Limits, contact: str) -> aiohttp.ClientSession:
    """Returns a session that keeps connections, ignores cookies, verifies TLS and identifies itself."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=limits.concurrency),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # `Fetcher` has a deadline for all of it
        headers={
            "User-Agent": f"cope-jax-download/0.1 ({contact or 'no contact given'})",
            "Accept": "image/*",
            "Accept-Encoding": "identity",  # the bytes must arrive as they are stored
        },
    )


class Fetcher:
    """Fetches URLs, with a rate limit for each host to which they lead."""

    def __init__(self, session: aiohttp.ClientSession, limits: Limits, check: Callable[[bytes], Picture]) -> None:
        """Takes `check`, which turns a body into an image or raises FetchError, and is called in threads."""
        self._session = session
        self._limits = limits
        self._check = check
        self._limiters: dict[str, RateLimiter] = collections.defaultdict(lambda: RateLimiter(limits.rate))
        window = max(200, 4 * limits.concurrency)  # all requests in flight may fail at once in a brief outage
        self._breaker = CircuitBreaker(window=window, pause=limits.pause, pauses=limits.pauses)
        self._backoff = wait_exponential_jitter(multiplier=limits.backoff, max=MAX_BACKOFF, jitter=limits.backoff)
        self._paused_until = 0.0

    def rate(self, url: str) -> float:
        """Returns the requests per second that the host of `url` allows now."""
        return self._limiters[URL(url).authority].rate

    @property
    def pause(self) -> float:
        """Seconds left of the pause after many failures, usually 0."""
        return max(0.0, self._paused_until - now())

    async def fetch(self, url: str) -> Answer:
        """Fetches a URL.

        Raises:
            UnavailableError: The server does not work, so other URLs need not be tried.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._limits.tries),
            wait=self._wait,
            retry=retry_if_exception(lambda error: isinstance(error, FetchError) and error.failure in TRANSIENT),
            reraise=True,
        )
        try:
            picture = await retrying(self._try, url)
        except FetchError as error:
            return Answer(
                tries=retrying.statistics["attempt_number"],
                http_status=error.http_status,
                failure=error.failure,
                error_message=str(error),
            )
        return Answer(tries=retrying.statistics["attempt_number"], http_status=200, picture=picture)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(self._backoff(state), error.retry_after if isinstance(error, FetchError) else 0.0)

    async def _try(self, url: str) -> Picture:
        here, left = URL(url, encoded=True), self._limits.deadline
        for _ in range(MAX_REDIRECTS + 1):
            limiter = self._limiters[here.authority]
            sent = await limiter.acquire()  # not part of the deadline: a low rate is not the server's fault
            try:
                body = await self._request(here, limiter, sent, left)
                if isinstance(body, bytes):
                    picture = await asyncio.get_running_loop().run_in_executor(None, self._check, body)
                    self._record(False, sent)
                    return picture
            except FetchError as error:
                self._record(error.failure in SERVER_FAILURES, sent)
                raise
            here, left = body, left - (now() - sent)
        raise FetchError(Failure.REDIRECT, f"more than {MAX_REDIRECTS} redirects, the last one to {here}")

    def _record(self, failed: bool, sent: float) -> None:
        if seconds := self._breaker.record(failed, sent=sent, now=now()):
            self._paused_until = now() + seconds
            for limiter in self._limiters.values():
                limiter.pause(seconds)

    async def _request(self, url: URL, limiter: RateLimiter, sent: float, deadline: float) -> bytes | URL:
        """Returns the body, or the target of a redirect."""
        try:
            async with asyncio.timeout(deadline), self._session.get(url, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    return _redirect_target(response)
                if response.status != 200:
                    raise _status_error(response, limiter, sent)
                return await self._read_body(response)
        except TimeoutError as error:
            raise FetchError(Failure.TIMEOUT, f"no complete response within {self._limits.deadline:g} s") from error
        except aiohttp.ClientPayloadError as error:
            raise FetchError(Failure.TRUNCATED, f"the body ended early: {error}", http_status=200) from error
        except (aiohttp.ClientError, OSError) as error:
            raise FetchError(Failure.CONNECTION, f"{type(error).__name__}: {error}") from error

    async def _read_body(self, response: aiohttp.ClientResponse) -> bytes:
        parts, size = [], response.content_length or 0
        if size <= self._limits.max_bytes:
            size = 0
            async for part in response.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > self._limits.max_bytes:
                    break
        if size > self._limits.max_bytes:
            message = f"{size} bytes or more, but --max_bytes is {self._limits.max_bytes}"
            raise FetchError(Failure.TOO_LARGE, message, http_status=200)
        return b"".join(parts)


def _redirect_target(response: aiohttp.ClientResponse) -> URL:
    location = response.headers.get("Location", "")
    try:
        target = response.url.join(URL(location))
    except ValueError as error:
        raise FetchError(Failure.REDIRECT, f"to {location!r}: {error}", http_status=response.status) from error
    if not location or target.scheme not in ("http", "https") or not target.host:
        raise FetchError(Failure.REDIRECT, f"to {location!r}, which is not http", http_status=response.status)
    return target


def _status_error(response: aiohttp.ClientResponse, limiter: RateLimiter, sent: float) -> FetchError:
    """Returns the error for an unexpected status, after slowing down if the host is busy."""
    status, retry_after = response.status, 0.0
    if status in _BUSY:
        retry_after = max(MIN_RETRY_AFTER, parse_retry_after(response.headers.get("Retry-After"), time.time()))
        if retry_after > MAX_RETRY_AFTER:
            raise UnavailableError(
                f"{response.url.host} answers {status} and asks for no requests for {retry_after:.0f} s"
            )
        limiter.slow_down(sent, retry_after)
    if status in _GONE:
        failure = Failure.GONE
    elif status == 429:
        failure = Failure.RATE
    else:
        failure = Failure.SERVER if status >= 500 else Failure.CLIENT
    message = f"{status} {response.reason or ''}".strip()
    return FetchError(failure, message, http_status=status, retry_after=retry_after)


def parse_retry_after(value: str | None, now: float) -> float:
    """Returns the seconds that a Retry-After header asks for, "120" or a date; 0 if it is missing or invalid."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return 0.0
