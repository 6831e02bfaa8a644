"""A web page for searching, meant for a few users who trust each other.

By default it listens only on this machine. It answers only to its own host names, so that no other site can reach it
through a name that resolves to this address. It runs no scripts but its own and stores nothing. Memory, time and
connections are limited, whatever clients send.
"""

import asyncio
import dataclasses
import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import anyio
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from cope_jax.data.thumbnails import Card, read_card
from cope_jax.search.embedder import Embedder
from cope_jax.search.item_table import OWN_COLUMNS
from cope_jax.search.library import Library, SearchResult
from cope_jax.search.moments import VIDEO_TYPES, find_video, read_moment
from cope_jax.search.result_views import PAGES, search_page
from cope_jax.search.uploads import (
    MAX_FILE,
    MAX_FILES,
    MAX_TEXT,
    MAX_VIDEO,
    decode_pictures,
    limited_form,
    uploaded_pictures,
)

LOCAL = ("127.0.0.1", "localhost", "[::1]")
DEADLINE = 30.0  # seconds for a request, for the delivery of its response, and for an idle connection
MAX_CONNECTIONS = 100  # further ones get status 503
CONCURRENT_UPLOADS = 4  # forms on disk; others wait
CONCURRENT_SEARCHES = 2  # threads
MAX_RANGE = 2_000_000  # bytes of a video per response, so that slow clients can read it before the deadline
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; "
    "media-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, browsers would send our own form with the origin "null"
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Query:
    """Contents of the form: the query's domain and text, the domains to search, how, and the filter."""

    domain: str
    search: tuple[str, ...]
    text: str = ""
    mode: str = ""  # "" is the default
    where: str = ""


class SearchPages:
    """Request handlers for a library."""

    def __init__(self, library: Library, embedder: Embedder, *, about: str, top: int, videos: Path | None):
        """`about` is the line under the title, `top` the number of items to show, `videos` a folder to play from."""
        self.library, self.embedder, self.about, self.top, self.videos = library, embedder, about, top, videos
        self.upload_slots = anyio.CapacityLimiter(CONCURRENT_UPLOADS)
        self.decoder_slot = anyio.CapacityLimiter(1)  # decoding the largest pictures takes 1.1 GB
        self.threads = ThreadPoolExecutor(CONCURRENT_SEARCHES, thread_name_prefix="search")
        self.domains = library.domains
        self.samples = self._samples()

    async def home(self, request: Request) -> Response:
        """Shows the form and sample items, or the items nearest to the one in the address."""
        values = request.query_params
        if "item" not in values:
            return self._page(self._empty_query(), samples=self.samples)
        query = self._parse_query(values.get("domain", self.domains[0]), values.getlist("search") or self.domains)
        return self._page(query, result=await self._compute(self._search_item, query, values["item"][:MAX_TEXT]))

    async def search(self, request: Request) -> Response:
        """Shows the items nearest to the uploaded pictures and text."""
        async with self.upload_slots, limited_form(request) as form:
            uploads = uploaded_pictures(form)
            domain, text, mode, where = (str(form.get(name, "")) for name in ("domain", "text", "mode", "where"))
            if (size := max(len(text), len(where))) > MAX_TEXT:
                raise HTTPException(413, f"The text has {size} characters: at most {MAX_TEXT}.")
            query = self._parse_query(domain, [str(value) for value in form.getlist("search")])
            query = dataclasses.replace(query, text=text.strip(), mode=mode, where=where.strip())
            if not uploads and not query.text:
                raise HTTPException(422, "Nothing to search for: choose a picture or type a title.")
            pictures, thumbnails = [], []
            if uploads:
                async with self.decoder_slot:
                    data = self.embedder.config.data
                    pictures, thumbnails = await decode_pictures(uploads, data.image_size, data.resize)
        return self._page(query, result=await self._compute(self._search_own, query, pictures, thumbnails))

    async def video(self, request: Request) -> Response:
        """Sends at most MAX_RANGE bytes of the video of the item in the address, or all without a range.

        The path of the file comes from the data set; the request names only the item.
        """
        query = self._parse_query(request.query_params.get("domain", ""), self.domains)
        item = request.query_params.get("item", "")[:MAX_TEXT]
        path = await asyncio.get_running_loop().run_in_executor(self.threads, self._find_video, query.domain, item)
        headers = MutableHeaders(scope=request.scope)
        if found := re.fullmatch(r"bytes=([0-9]{1,18})-([0-9]{0,18})", headers.get("range", "")):
            last = int(found[1]) + MAX_RANGE - 1
            headers["range"] = f"bytes={found[1]}-{min(int(found[2] or last), last)}"
        return FileResponse(path, media_type=VIDEO_TYPES[path.suffix.lower()])

    def _find_video(self, domain: str, item: str) -> Path:
        try:
            row = self.library.row(domain, item)
        except ValueError as error:
            raise HTTPException(404, f"{error}") from error
        moment = read_moment(self.library.records.items[domain][row].columns)
        if not (moment and (path := find_video(self.videos, moment.video))):
            raise HTTPException(404, f"The video of {domain} {item} is not here.")
        return path

    async def show_error(self, request: Request, error: Exception) -> Response:
        """Shows the form with an error message."""
        assert isinstance(error, HTTPException)
        return self._page(self._empty_query(), problem=error.detail, status=error.status_code)

    async def _compute(self, search: Callable[..., SearchResult], *arguments: Any) -> SearchResult:
        """Searches in a thread and reports a ValueError to the user.

        If the request ends first, a search that is running keeps its thread until it is done: it cannot be stopped.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self.threads, search, *arguments)
        except ValueError as error:
            raise HTTPException(422, f"{error}") from error

    def _search_item(self, query: Query, item: str) -> SearchResult:
        try:
            self.library.row(query.domain, item)
        except ValueError as error:
            raise HTTPException(404, f"{error}") from error
        return self.library.search_item(query.domain, item, among=query.search, top=self.top)

    def _search_own(self, query: Query, pictures: Sequence[np.ndarray], thumbnails: Sequence[str]) -> SearchResult:
        return self.library.search_own(
            self.embedder,
            query.domain,
            pictures,
            query.text,
            thumbnails=thumbnails,
            among=query.search,
            top=self.top,
            mode=query.mode or None,
            where=query.where,
        )

    def _samples(self) -> list[Card]:
        samples = self.library.samples(per_domain=2)
        return [read_card(self.library.records, domain, self.library.row(domain, item)) for domain, item in samples]

    def _page(self, query: Query, *, status: int = 200, **parts: Any) -> Response:
        """Renders the page with a result, samples, or a problem."""
        limits = {"file": MAX_FILE, "files": MAX_FILES, "text": MAX_TEXT, "video": MAX_VIDEO}
        kinds = {name: items.kind for name, items in self.library.records.items.items()}
        parts = {"result": None, "samples": None, "problem": None} | parts
        own = [name for name in self.library.table.columns if name not in OWN_COLUMNS]
        shared = {"about": self.about, "domains": self.domains, "columns": own, "limits": limits, "kinds": kinds}
        page = search_page(self.videos, query=query, video_types=VIDEO_TYPES, **shared, **parts)
        return HTMLResponse(page, status)

    def _empty_query(self) -> Query:
        return Query(self.domains[0], self.domains)

    def _parse_query(self, domain: str, search: Sequence[str]) -> Query:
        """Checks the values of a form or an address; raises HTTPException for an unknown domain or none to search."""
        if unknown := {domain, *search} - set(self.domains):
            raise HTTPException(422, f"Unknown domain {min(unknown)[:50]!r}: choose among {', '.join(self.domains)}.")
        if not search:
            raise HTTPException(422, f"Nothing to search among: choose at least one of {', '.join(self.domains)}.")
        return Query(domain, tuple(name for name in self.domains if name in search))


class OriginMiddleware:
    """Rejects requests sent by pages of other sites."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app, headers = self.app, Headers(raw=scope.get("headers", []))
        for origin in headers.getlist("origin"):
            if origin != "null" and not is_origin(origin):
                app = PlainTextResponse("Malformed Origin header.", 400)
            elif origin.partition("://")[2] != headers.get("host"):
                app = PlainTextResponse("Forms from other sites are rejected.", 403)
        await app(scope, receive, send)


def is_origin(value: str) -> bool:
    """Returns whether an Origin header is "SCHEME://HOST[:PORT]"."""
    try:
        parts = urlsplit(value)
        return bool(parts.hostname) and parts.port != 0 and value.lower() == f"{parts.scheme}://{parts.netloc}".lower()
    except ValueError:
        return False


class DeadlineMiddleware:
    """Cancels a request after DEADLINE seconds, with status 503, and as soon as its client disconnects."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages, own_messages = anyio.create_memory_object_stream[Message]()
        started = False

        async def forward() -> NoReturn:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    group.cancel_scope.cancel()
                await messages.send(message)

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        with messages, own_messages, anyio.move_on_after(DEADLINE) as deadline:
            async with anyio.create_task_group() as group:
                group.start_soon(forward)
                await self.app(scope, own_messages.receive, note_start)
                group.cancel_scope.cancel()
        if deadline.cancelled_caught and not started:  # otherwise, uvicorn closes the connection
            message = f"The request took longer than {DEADLINE:.0f} seconds: try again, or with fewer pictures."
            raise HTTPException(503, message)


def make_app(
    library: Library,
    embedder: Embedder,
    *,
    about: str,
    top: int,
    hosts: Sequence[str] = LOCAL,
    videos: Path | None = None,
) -> Starlette:
    """Builds the application, which answers to the names in `hosts`; see `SearchPages`."""
    pages = SearchPages(library, embedder, about=about, top=top, videos=videos)
    limited = [Middleware(DeadlineMiddleware)]

    def static_file(name: str) -> Route:
        return Route(f"/{name}", lambda request: FileResponse(PAGES / name))

    return Starlette(
        routes=[
            Route("/", pages.home, middleware=limited),
            Route("/search", pages.search, methods=["POST"], middleware=limited),
            Route("/search", lambda request: RedirectResponse("/"), methods=["GET"]),  # a reload after a search
            Route("/video", pages.video, middleware=limited),
            static_file("search.css"),
            static_file("search.js"),
        ],
        middleware=[Middleware(OriginMiddleware), Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={HTTPException: pages.show_error},
    )


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening socket; port 0 takes a free one. Raises ValueError if that is impossible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host.strip("[]"), port), family=family, dualstack_ipv6=both)
    except OSError as error:
        message = f"cannot listen on {url_host(host)}:{port}, choose another --host or --port: {error.strerror}"
        raise ValueError(message) from error


def allowed_hosts(host: str, listener: socket.socket, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names that the server answers to; the first is for users.

    Args:
        host: Value of --host.
        listener: The socket that listens on it.
        names: Values of --allow_host.

    Raises:
        ValueError: A name is invalid, or the server listens on all addresses but no names are given.
    """
    hosts = [url_host(name) for name in names]
    for name, url in zip(names, hosts, strict=True):
        if not url.startswith("[") and not re.fullmatch(r"[A-Za-z0-9._-]+", url):
            raise ValueError(f"--allow_host={name} is not a name or an address; give it without scheme, port, or *")
    if not ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_unspecified:
        hosts = [url_host(host), *hosts]
    elif not hosts:
        raise ValueError(
            f"--host={host} listens on all addresses of this machine: also list the names and addresses that users "
            "enter in their browsers, such as --allow_host=192.168.1.20,shop.example"
        )
    return tuple(dict.fromkeys([*hosts, *LOCAL]))


def url_host(host: str) -> str:
    """Returns a name or an address as browsers send it: IPv6 addresses are shortened and in brackets."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host
    return f"[{address}]" if address.version == 6 else str(address)


class Connection(H11Protocol):
    """A connection that is closed after DEADLINE seconds without a request, and if its response is not read by then.

    uvicorn waits forever for the end of a request's headers and for a response to be read.
    """

    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._start_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._start_deadline()

    def send_400_response(self, msg: str) -> None:
        """Does the same as uvicorn, but with our headers."""
        headers = [*self.server_state.default_headers, (b"connection", b"close"), (b"content-type", b"text/plain")]
        lines = [b"HTTP/1.1 400 Bad Request", *(name + b": " + value for name, value in headers), b"", msg.encode()]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()

    def _start_deadline(self) -> None:
        if self.deadline:
            self.deadline.cancel()
        self.deadline = self.loop.call_later(DEADLINE, self._end)

    def _end(self) -> None:
        computing = self.cycle and not self.cycle.response_complete  # `DeadlineMiddleware` ends it
        if not computing or self.flow.write_paused:
            self.transport.abort()


def make_server(app: Starlette) -> uvicorn.Server:
    """Builds a quiet plain-HTTP server, which on SIGTERM lets requests finish."""
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Connection,
        ws="none",
        lifespan="off",
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        headers=list(HEADERS.items()),
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=round(DEADLINE) + 5,
    )
    return uvicorn.Server(config)
