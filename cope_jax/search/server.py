"""A web page and an API for searching, meant for a few users who trust each other.

By default, the server listens only on this machine. It answers only to its own host names, so that no other site can
reach it through a name that resolves to this address. It runs no scripts but its own and stores nothing. Memory, time
and connections are limited, whatever clients send.
"""

import asyncio
import ipaddress
import re
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from cope_jax.data.thumbnails import jpeg, read_card, shown_frames
from cope_jax.search.api import SearchApi
from cope_jax.search.embedder import Embedder
from cope_jax.search.item_table import OWN_COLUMNS
from cope_jax.search.library import MAX_TOP, Library
from cope_jax.search.moments import VIDEO_TYPES, find_video, read_moment
from cope_jax.search.queries import Queries, Query
from cope_jax.search.result_views import PAGES, search_page
from cope_jax.search.uploads import MAX_FILE, MAX_FILES, MAX_TEXT, MAX_VIDEO
from data_prep.common.html_pages import BASE_STYLE

LOCAL = ("127.0.0.1", "localhost", "[::1]")
DEADLINE = 30.0  # seconds for a request, for the delivery of its response, and for an idle connection
MAX_CONNECTIONS = 256  # further ones get status 503
ZOOMED = 1024  # pixels of the longest side of an enlarged picture
MAX_RANGE = 2_000_000  # bytes of a video per response, so that slow clients can read it before the deadline
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, browsers would send our own form with the origin "null"
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class SearchPages:
    """Pages with the results of queries."""

    def __init__(self, queries: Queries, *, about: str, videos: Path | None):
        """`about` is the line under the title, `videos` a folder to play from."""
        self.queries, self.about, self.videos = queries, about, videos
        library = queries.library
        samples = library.samples(per_domain=2)
        self.samples = [read_card(library.records, domain, library.row(domain, item)) for domain, item in samples]

    async def home(self, request: Request) -> Response:
        """Shows the form and sample items, or the items nearest to the one in the address."""
        values, domains, start = request.query_params, self.queries.domains, time.perf_counter()
        if "item" not in values:
            return self._page(Query(domains[0], domains), samples=self.samples)
        query = self.queries.read(values, defaults=True)
        return self._page(query, result=await self.queries.search_item(query), seconds=time.perf_counter() - start)

    async def search(self, request: Request) -> Response:
        """Shows the items nearest to the uploaded pictures and text."""
        start = time.perf_counter()
        query, result = await self.queries.answer(request)
        return self._page(query, result=result, seconds=time.perf_counter() - start)

    async def picture(self, request: Request) -> Response:
        """Sends a picture of an item, larger than on the page."""
        query = self.queries.parse(request.query_params.get("domain", ""), self.queries.domains)
        item, number = (request.query_params.get(name, "")[:MAX_TEXT] for name in ("item", "number"))
        data = await self.queries.compute(self._read_picture, query.domain, item, number)
        return Response(data, media_type="image/jpeg")

    def _read_picture(self, domain: str, item: str, number: str) -> bytes:
        items = self.queries.library.records.items[domain]
        shown = shown_frames(items[self.queries.row(domain, item)].frames, kind=items.kind)
        if number not in map(str, range(len(shown))):
            raise HTTPException(404, f"{domain} {item} has no picture {number[:20]!r}.")
        return jpeg(shown[int(number)], ZOOMED)

    async def video(self, request: Request) -> Response:
        """Sends at most MAX_RANGE bytes of the video of the item in the address, or all without a range.

        The path of the file comes from the data set; the request names only the item.
        """
        query = self.queries.parse(request.query_params.get("domain", ""), self.queries.domains)
        item = request.query_params.get("item", "")[:MAX_TEXT]
        path = await self.queries.compute(self._find_video, query.domain, item)
        headers = MutableHeaders(scope=request.scope)
        if found := re.fullmatch(r"bytes=([0-9]{1,18})-([0-9]{0,18})", headers.get("range", "")):
            last = int(found[1]) + MAX_RANGE - 1
            headers["range"] = f"bytes={found[1]}-{min(int(found[2] or last), last)}"
        return FileResponse(path, media_type=VIDEO_TYPES[path.suffix.lower()])

    def _find_video(self, domain: str, item: str) -> Path:
        row = self.queries.row(domain, item)
        moment = read_moment(self.queries.library.records.items[domain][row].columns)
        if not (moment and (path := find_video(self.videos, moment.video))):
            raise HTTPException(404, f"The video of {domain} {item} is not here.")
        return path

    def show_error(self, error: HTTPException) -> Response:
        """Shows the form with an error message."""
        empty = Query(self.queries.domains[0], self.queries.domains)
        return self._page(empty, problem=error.detail, status=error.status_code)

    def _page(self, query: Query, *, status: int = 200, **parts: Any) -> Response:
        """Renders the page with a result, samples, or a problem."""
        limits = {"file": MAX_FILE, "files": MAX_FILES, "text": MAX_TEXT, "video": MAX_VIDEO}
        library, domains = self.queries.library, self.queries.domains
        kinds = {name: items.kind for name, items in library.records.items.items()}
        parts = {"result": None, "samples": None, "problem": None, "seconds": 0.0} | parts
        top = query.top or self.queries.top
        own = [name for name in library.table.columns if name not in OWN_COLUMNS]
        shared = {"about": self.about, "domains": domains, "columns": own, "limits": limits, "kinds": kinds}
        shared |= {
            "choices": library.table.choices,
            "title": library.title,
            "more": min(top + self.queries.top, MAX_TOP),
        }
        page = search_page(self.videos, query=query, video_types=VIDEO_TYPES, top=top, **shared, **parts)
        return HTMLResponse(page, status)


class OwnSiteMiddleware:
    """Rejects requests under other host names than those in `hosts`, and requests sent by pages of other sites."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]):
        self.app, self.hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and (problem := self._find_problem(Headers(scope=scope))):
            message, status = problem
            is_api = scope["path"].startswith("/api/")
            app = JSONResponse({"detail": message}, status) if is_api else PlainTextResponse(message, status)
        await app(scope, receive, send)

    def _find_problem(self, headers: Headers) -> tuple[str, int] | None:
        host = headers.get("host", "")
        if re.sub(":[0-9]*$", "", host).lower() not in self.hosts:
            return "Invalid Host header.", 400
        for origin in headers.getlist("origin"):
            if origin != "null" and not is_origin(origin):
                return "Malformed Origin header.", 400
            if origin.partition("://")[2] != host:
                return "Requests from other sites are rejected.", 403
        return None


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
    api_key: str = "",
) -> Starlette:
    """Builds the application, which answers to the names in `hosts`.

    Args:
        library: Items to search.
        embedder: Model of the library's embeddings.
        about: Line under the title.
        top: Number of items to show.
        hosts: Names of the server.
        videos: Folder to play videos from.
        api_key: Key that requests to the API must have; the page, which has none, is then not served.
    """
    _ = library.table.columns, library.table.choices  # before two searches write the table at the same time
    queries = Queries(library, embedder, top=top)
    pages, api = SearchPages(queries, about=about, videos=videos), SearchApi(queries, api_key)

    def limited(path: str, handler: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
        return Route(path, handler, methods=[method], middleware=[Middleware(DeadlineMiddleware)])

    def static_file(path: Path) -> Route:
        return Route(f"/{path.name}", lambda request: FileResponse(path))

    async def show_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if api_key or request.url.path.startswith("/api/"):
            return api.show_error(error)
        return pages.show_error(error)

    page_routes = [
        limited("/", pages.home),
        limited("/search", pages.search, "POST"),
        Route("/search", lambda request: RedirectResponse("/"), methods=["GET"]),  # a reload after a search
        limited("/video", pages.video),
        limited("/picture", pages.picture),
        static_file(BASE_STYLE),
        static_file(PAGES / "search.css"),
        static_file(PAGES / "search.js"),
    ]
    api_routes = [
        Route("/api/health", api.health),
        Route("/api/openapi.json", api.specification),
        limited("/api/search", api.search, "POST"),
        limited("/api/items/{domain}/{item:path}", api.item),
    ]
    return Starlette(
        routes=api_routes if api_key else [*page_routes, *api_routes],
        middleware=[Middleware(OwnSiteMiddleware, hosts=hosts)],
        exception_handlers={HTTPException: show_error},
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
        timeout_keep_alive=round(DEADLINE),
        timeout_graceful_shutdown=round(DEADLINE) + 5,
    )
    return uvicorn.Server(config)
