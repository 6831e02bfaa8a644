"""Why an image did not arrive: the classes of the ledger, and which of them are worth another try."""

import enum


class DownloadError(ValueError):
    """A download that cannot start or go on; the message says what to change."""


class Unavailable(Exception):
    """The server does not serve: most requests fail. Asking on would only harm."""


class PreflightError(Unavailable):
    """The server did not serve from the beginning."""


class Failure(enum.StrEnum):
    """Why an image is missing. The values are those of the ledger's column `failure` and of `--retry`."""

    GONE = "gone"  # 404, 410
    TIMEOUT = "timeout"
    CONNECTION = "connection"  # not resolved, refused, reset, TLS, not HTTP
    RATE = "429"
    SERVER = "5xx"
    CLIENT = "4xx"  # 401, 403 and whatever else is no answer to a plain GET
    TRUNCATED = "truncated"  # the body ended early
    REDIRECT = "redirect"  # a loop, too many, or to something that is not http
    TOO_LARGE = "too_large"
    NOT_AN_IMAGE = "not_an_image"  # HTML, say
    CORRUPT = "corrupt"  # an image that does not decode
    PLACEHOLDER = "placeholder"  # the image that stands for all that the server has not


# Tried again at once, with backoff: a second try can well succeed.
TRANSIENT = frozenset({Failure.TIMEOUT, Failure.CONNECTION, Failure.RATE, Failure.SERVER, Failure.TRUNCATED})
# Signs that the server or the way to it is ill, or that we are shut out; the others tell of one image only.
ILL = TRANSIENT | {Failure.CLIENT, Failure.REDIRECT, Failure.NOT_AN_IMAGE}


class FetchError(Exception):
    """One request that brought no image."""

    def __init__(
        self, failure: Failure, message: str, *, http_status: int | None = None, retry_after: float = 0.0
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.http_status = http_status
        self.retry_after = retry_after  # seconds for which the server wants to be left alone
