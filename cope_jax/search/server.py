"""A web page for searching, meant for one person on one machine.

By default it listens only on this machine. It answers only to its own host names, so that no other site can reach it
through a name that resolves to this address. It runs no scripts but its own and stores nothing.
"""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cope_jax.data.thumbnails import Card, data_uri, read_card
from cope_jax.search.embedder import Embedder
from cope_jax.search.library import Library, SearchResult
from cope_jax.search.result_views import PAGES, search_page
from cope_jax.search.uploads import MAX_FILE, MAX_FILES, MAX_TEXT, check_picture, limited_form, read_pictures
from data_prep.common.domains import DOMAINS

LOCAL = ("127.0.0.1", "localhost")
CONCURRENT_QUERIES = 2  # others wait
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, browsers would send our own form with the origin "null"
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Query:
    """Contents of the form: the query's domain and text, and the domains to search."""

    domain: str = DOMAINS[0]
    search: tuple[str, ...] = DOMAINS
    text: str = ""


class SearchPages:
    """Request handlers for a library."""

    def __init__(self, library: Library, embedder: Embedder, *, about: str, top: int):
        """`about` is the line under the title, `top` the number of items to show."""
        self.library, self.embedder, self.about, self.top = library, embedder, about, top
        self.limiter = anyio.CapacityLimiter(CONCURRENT_QUERIES)

    async def home(self, request: Request) -> Response:
        """Shows the form and sample items, or the items nearest to the one in the address."""
        values = request.query_params
        if "item" not in values:
            return self._page(Query(), samples=await run_in_threadpool(self._samples))
        query = _parse_query(values.get("domain", DOMAINS[0]), values.getlist("search") or DOMAINS)
        if not values["item"].isdecimal() or len(values["item"]) > 18:
            raise HTTPException(404, f"No item {values['item'][:50]!r}: ids are numbers.")
        return self._page(query, result=await self._compute(self._search_item, query, int(values["item"])))

    async def search(self, request: Request) -> Response:
        """Shows the items nearest to the uploaded pictures and text."""
        async with limited_form(request) as form:
            pictures = await read_pictures(form)
            text, domain = (str(form.get(name, "")) for name in ("text", "domain"))
            search = [str(value) for value in form.getlist("search")]
        if len(text) > MAX_TEXT:
            raise HTTPException(413, f"The text has {len(text)} characters: at most {MAX_TEXT}.")
        query = _parse_query(domain, search, text.strip())
        if not pictures and not query.text:
            raise HTTPException(422, "Nothing to search for: choose a picture or type a title.")
        return self._page(query, result=await self._compute(self._search_own, query, pictures))

    async def show_error(self, request: Request, error: Exception) -> Response:
        """Shows the form with an error message."""
        assert isinstance(error, HTTPException)
        return self._page(Query(), problem=error.detail, status=error.status_code)

    async def _compute(self, search: Callable[..., SearchResult], *arguments: Any) -> SearchResult:
        """Searches in a thread, so that the server stays responsive, and reports a ValueError to the user."""
        async with self.limiter:
            try:
                return await run_in_threadpool(search, *arguments)
            except ValueError as error:
                raise HTTPException(422, f"{error}") from error

    def _search_item(self, query: Query, item: int) -> SearchResult:
        return self.library.search_item(query.domain, item, among=query.search, top=self.top)

    def _search_own(self, query: Query, pictures: Sequence[tuple[str, bytes]]) -> SearchResult:
        return self.library.search_own(
            self.embedder,
            query.domain,
            [check_picture(name, data) for name, data in pictures],
            query.text,
            thumbnails=[data_uri(data) for _, data in pictures],
            among=query.search,
            top=self.top,
        )

    def _samples(self) -> list[Card]:
        samples = self.library.samples(per_domain=2)
        rows = [(domain, int((self.library.ids[domain] == item).argmax())) for domain, item in samples]
        return [read_card(self.library.records, domain, row) for domain, row in rows]

    def _page(self, query: Query, *, status: int = 200, **parts: Any) -> Response:
        """The page with a result, samples, or a problem."""
        limits = {"file": MAX_FILE, "files": MAX_FILES, "text": MAX_TEXT}
        parts = {"result": None, "samples": None, "problem": None} | parts
        return HTMLResponse(search_page(about=self.about, domains=DOMAINS, limits=limits, query=query, **parts), status)


def _parse_query(domain: str, search: Sequence[str], text: str = "") -> Query:
    """Checks the values of a form or an address; raises HTTPException if a domain is unknown or none is searched."""
    if unknown := {domain, *search} - set(DOMAINS):
        raise HTTPException(422, f"Unknown domain {min(unknown)[:50]!r}: choose among {', '.join(DOMAINS)}.")
    if not search:
        raise HTTPException(422, "Nothing to search among: choose at least one of pages, videos, and lives.")
    return Query(domain, tuple(name for name in DOMAINS if name in search), text)


class SecurityMiddleware:
    """Adds `HEADERS` to every response and rejects forms sent by other sites."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        headers = Request(scope).headers
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
        app = Response("Forms from other sites are rejected.", 403) if foreign else self.app
        await app(scope, receive, send_with_headers)


def make_app(library: Library, embedder: Embedder, *, about: str, top: int, hosts: Sequence[str] = LOCAL) -> Starlette:
    """Builds the application, which answers to the names in `hosts`. `about` is the line under the title."""
    pages = SearchPages(library, embedder, about=about, top=top)

    def static_file(name: str) -> Route:
        return Route(f"/{name}", lambda request: FileResponse(PAGES / name))

    return Starlette(
        routes=[
            Route("/", pages.home),
            Route("/search", pages.search, methods=["POST"]),
            Route("/search", lambda request: RedirectResponse("/"), methods=["GET"]),  # a reload after a search
            static_file("search.css"),
            static_file("search.js"),
        ],
        middleware=[Middleware(SecurityMiddleware), Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={HTTPException: pages.show_error},
    )


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening socket; port 0 takes a free one. Raises ValueError if that is impossible."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        message = f"cannot listen on {host}:{port}, choose another --host or --port: {error.strerror}"
        raise ValueError(message) from error


def make_server(app: Starlette) -> uvicorn.Server:
    """Builds a quiet plain-HTTP server with few connections."""
    config = uvicorn.Config(app, log_level="warning", ws="none", lifespan="off", server_header=False)
    config.limit_concurrency, config.timeout_graceful_shutdown = 32, 2
    return uvicorn.Server(config)
