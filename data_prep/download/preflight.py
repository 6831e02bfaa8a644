"""Before thousands of requests: is there such a host, does it serve one image, and what does it say of no image?"""

import asyncio
import hashlib
import socket
import uuid
from collections.abc import Sequence

from yarl import URL

from data_prep.download.content import Picture
from data_prep.download.failures import ILL, FetchError, PreflightError
from data_prep.download.fetch import Fetcher

SAMPLES = 20  # some images may be gone
ILL_SAMPLES = 3  # a server that is down need not be asked more often, each time with all tries and their backoff


async def check_server(fetcher: Fetcher, urls: Sequence[str]) -> None:
    """Asks for up to `SAMPLES` of `urls`, one by one, until one is an image.

    Raises:
      PreflightError: the host's name does not resolve, or none is an image.
    """
    host, port = URL(urls[0]).host, URL(urls[0]).port
    try:
        await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise PreflightError(f"the host {host} of --url_prefix does not resolve: {error}") from error
    failures, ill = [], 0
    for url in urls[:: -(-len(urls) // SAMPLES)]:
        answer = await fetcher.fetch(url)
        if isinstance(answer.result, Picture):
            return
        failures.append(f"  {url}: {answer.result.failure}, {answer.result}")
        ill += answer.result.failure in ILL
        if ill == ILL_SAMPLES:
            break
    shown = "\n".join(failures[-ILL_SAMPLES:])
    raise PreflightError(
        f"none of {len(failures)} images could be fetched; is --url_prefix right? If so, --nopreflight goes on\n{shown}"
    )


async def find_placeholder(fetcher: Fetcher, url_prefix: str) -> str | None:
    """Returns the sha256 of the image that the server sends for a name that cannot be; None where it sends none."""
    answer = await fetcher.fetch(f"{url_prefix}{uuid.uuid4()}-is-no-image.jpg")
    return None if isinstance(answer.result, FetchError) else hashlib.sha256(answer.result.data).hexdigest()
