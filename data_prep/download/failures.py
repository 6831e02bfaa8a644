"""Why an image did not arrive: the failures of the ledger, and which of them are worth another try."""

import enum


class UnavailableError(Exception):
    """Most requests fail, so that more requests would only do harm."""


class PreflightError(UnavailableError):
    """The server has not sent a single image."""


class Failure(enum.StrEnum):
    """Why an image is missing. The values are used in the ledger's column `failure` and by `--retry`."""

    GONE = "gone"  # 404, 410
    TIMEOUT = "timeout"
    CONNECTION = "connection"  # not resolved, refused, reset, TLS
    PROTOCOL = "protocol"  # malformed URL, not HTTP, or against its rules; a second try would bring the same
    RATE = "429"
    SERVER = "5xx"
    CLIENT = "4xx"  # 401, 403 and any other unexpected status
    TRUNCATED = "truncated"  # the body ended early
    REDIRECT = "redirect"  # a loop, too many, malformed, or not to http
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"  # an image that takes too long to decode
    NOT_AN_IMAGE = "not_an_image"  # such as HTML
    UNSUPPORTED = "unsupported"  # an image in a format that is not decoded
    CORRUPT = "corrupt"  # an image that does not decode
    PLACEHOLDER = "placeholder"  # the image that the server sends for all that it does not have


# Tried again at once, with backoff, because a second try may succeed.
TRANSIENT = frozenset({Failure.TIMEOUT, Failure.CONNECTION, Failure.RATE, Failure.SERVER, Failure.TRUNCATED})
# Signs that the server or the network is down, or that we are blocked; the others concern a single image.
SERVER_FAILURES = TRANSIENT | {Failure.CLIENT, Failure.REDIRECT, Failure.NOT_AN_IMAGE}


class FetchError(Exception):
    """A request that did not bring an image."""

    def __init__(
        self, failure: Failure, message: str, *, http_status: int | None = None, retry_after: float = 0.0
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.http_status = http_status
        self.retry_after = retry_after  # seconds to wait, as requested by the server
