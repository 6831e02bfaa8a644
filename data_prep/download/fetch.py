"""Fetches images: tries, backoff, redirects, deadlines and limits."""

import asyncio
import collections
import dataclasses
import string
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import quote, unquote
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from yarl import URL

from data_prep.download.content import Picture
from data_prep.download.failures import SERVER_FAILURES, TRANSIENT, Failure, FetchError, UnavailableError
from data_prep.download.rate_limit import CircuitBreaker, Limits, RateLimiter, now
from data_prep.images.decoding import FORMATS

MAX_REDIRECTS = 5
MAX_BACKOFF = 60.0
MIN_RETRY_AFTER = 1.0  # seconds to wait for a busy server that does not say how long
MAX_RETRY_AFTER = 3600.0  # the download gives up instead of waiting longer
MAX_HEADER = 1 << 16  # bytes of one header; cookies and policies can be long
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({404, 410})
_BUSY = frozenset({429, 503})

Origin = tuple[str, str | None, int | None]  # scheme, host and port of a URL


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
            "Accept": "".join(f"image/{name.lower()}, " for name in FORMATS) + "*/*;q=0.1",
            "Accept-Encoding": "identity",  # the bytes must arrive as they are stored
        },
        max_line_size=MAX_HEADER,
        max_field_size=MAX_HEADER,
    )


@dataclasses.dataclass(eq=False)
class Fetcher:
    """Fetches URLs, with a rate limit for each host to which they lead."""

    session: aiohttp.ClientSession  # from `open_session`
    limits: Limits
    check: Callable[[bytes, bool], Picture]  # (body, may be a video) → image, or FetchError; called in threads
    headers: Mapping[str, str]  # additional ones, perhaps secret
    headers_origin: Origin  # only requests to it have `headers`, whichever hosts a catalog or a redirect names

    def __post_init__(self) -> None:
        limits = self.limits
        self._limiters: dict[str, RateLimiter] = collections.defaultdict(lambda: RateLimiter(limits.rate))
        window = max(200, 4 * limits.concurrency)  # all requests in flight may fail at once in a brief outage
        self._breaker = CircuitBreaker(window=window, pause=limits.pause, pauses=limits.pauses)
        self._backoff = wait_exponential_jitter(multiplier=limits.backoff, max=MAX_BACKOFF, jitter=limits.backoff)
        self._paused_until = 0.0
        self._proxies = getproxies()

    def rate(self, url: str) -> float:
        """Returns the requests per second that the host of `url` allows now, or the limit if `url` is invalid."""
        try:
            return self._limiters[parse_url(url).authority].rate
        except ValueError:
            return self.limits.rate

    @property
    def pause(self) -> float:
        """Seconds left of the pause after many failures, usually 0."""
        return max(0.0, self._paused_until - now())

    def proxy(self, url: URL) -> str | None:
        """Returns the proxy for a URL from `http_proxy` and similar variables of the environment."""
        proxy = self._proxies.get(url.scheme) or self._proxies.get("all")
        if not proxy or proxy_bypass(str(url.host)):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"

    async def fetch(self, url: str, *, video: bool = False) -> Answer:
        """Fetches an image or, with `video`, also a video.

        Raises:
            UnavailableError: The server does not work, so other URLs need not be tried.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.limits.tries),
            wait=self._wait,
            retry=retry_if_exception(lambda error: isinstance(error, FetchError) and error.failure in TRANSIENT),
            reraise=True,
        )
        try:
            picture = await retrying(self._try, url, video)
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

    async def _try(self, url: str, video: bool) -> Picture:
        try:
            here, left = parse_url(url), self.limits.deadline
        except ValueError as error:
            raise FetchError(Failure.PROTOCOL, f"invalid URL: {error}") from error
        for _ in range(MAX_REDIRECTS + 1):
            limiter = self._limiters[here.authority]
            sent = await limiter.acquire()  # not part of the deadline: a low rate is not the server's fault
            try:
                headers = self.headers if origin_of(here) == self.headers_origin else {}
                body = await self._request(here, headers, limiter, sent, left)
                if isinstance(body, bytes):
                    picture = await asyncio.get_running_loop().run_in_executor(None, self.check, body, video)
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

    async def _request(
        self, url: URL, headers: Mapping[str, str], limiter: RateLimiter, sent: float, deadline: float
    ) -> bytes | URL:
        """Returns the body, or the target of a redirect."""
        get = self.session.get(url, headers=headers, proxy=self.proxy(url), allow_redirects=False)
        try:
            async with asyncio.timeout(deadline), get as response:
                if response.status in _REDIRECTS:
                    return redirect_target(response)
                if response.status != 200:
                    raise _status_error(response, limiter, sent)
                return await self._read_body(response)
        except TimeoutError as error:
            raise FetchError(Failure.TIMEOUT, f"no complete response within {self.limits.deadline:g} s") from error
        except aiohttp.ClientPayloadError as error:
            failure = Failure.PROTOCOL if isinstance(error.__cause__, ContentEncodingError) else Failure.TRUNCATED
            raise FetchError(failure, " ".join(str(error).split()), http_status=200) from error
        except (OSError, aiohttp.ClientConnectionError, aiohttp.ClientHttpProxyError) as error:
            raise FetchError(Failure.CONNECTION, f"{type(error).__name__}: {error}") from error
        except (aiohttp.ClientError, ValueError) as error:  # such as a header without a colon
            message = error.message if isinstance(error, aiohttp.ClientResponseError) else f"{error}"
            raise FetchError(Failure.PROTOCOL, f"invalid HTTP: {' '.join(message.split())}") from error

    async def _read_body(self, response: aiohttp.ClientResponse) -> bytes:
        parts, size = [], response.content_length or 0
        if size <= self.limits.max_bytes:
            size = 0
            async for part in response.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > self.limits.max_bytes:
                    break
        if size > self.limits.max_bytes:
            message = f"{size} bytes or more, but --max_bytes is {self.limits.max_bytes}"
            raise FetchError(Failure.TOO_LARGE, message, http_status=200)
        return b"".join(parts)


def parse_url(text: str, base: URL | None = None) -> URL:
    """Returns a URL in ASCII, relative to `base` if that is given. Raises ValueError if it is invalid or not http."""
    # What is quoted stays as it is, because signatures depend on it; some catalogs and servers have blanks and UTF-8.
    quoted = quote(text.strip().encode("utf-8", "surrogateescape"), safe=string.punctuation)
    try:
        url = URL(quoted, encoded=True)
    except IndexError as error:  # yarl's error for http://[]@/
        raise ValueError("not http, or without a host") from error
    url = base.join(url) if base else url
    if not text.isascii() and url.raw_host:
        url = url.with_host(unquote(url.raw_host))
    host = (url.host or "").encode("idna")  # as for looking it up; UnicodeError is a ValueError
    if not text or url.scheme not in ("http", "https") or not host:
        raise ValueError("not http, or without a host")
    return url


def origin_of(url: URL) -> Origin:
    """Returns the origin of a URL. Unlike `URL.origin`, it is the same for http://Host, http://host and http://host:80."""
    return url.scheme, url.host, url.port


def redirect_target(response: aiohttp.ClientResponse) -> URL:
    """Returns where a response redirects to. Raises FetchError if its Location is invalid."""
    location = response.headers.get("Location", "")
    try:
        return parse_url(location, base=response.url)
    except ValueError as error:
        raise FetchError(Failure.REDIRECT, f"to {location!r}: {error}", http_status=response.status) from error


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
    """Returns the seconds that a Retry-After header asks for, "120" or a date; 0 if it is missing or nonsense."""
    if value is None:
        return 0.0
    try:
        seconds = float(value) if value.strip().isdecimal() else parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return seconds if 0 < seconds < 365 * 86400 else 0.0
