"""A small web page for one person on one machine: pictures or a title in, items out.

It listens on this machine alone unless told otherwise, answers under its own names only (a foreign site cannot reach it
by a name that resolves to here), runs no script but its own, and keeps nothing.
"""

import socket
from collections.abc import Sequence
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

from cope_jax.data.thumbnails import data_uri, read_card
from cope_jax.domains import DOMAINS
from cope_jax.search.embedder import Embedder
from cope_jax.search.library import Answer, Library
from cope_jax.search.pages import FOLDER, search_page
from cope_jax.search.uploads import MAX_FILE, MAX_FILES, MAX_TEXT, checked, limited_form, read_pictures

LOCAL = ("127.0.0.1", "localhost")
AT_ONCE = 2  # queries that are computed at the same time; others wait
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, browsers send the form itself with the origin "null"
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Asked:
    """What the form holds when the page comes back.

    Attributes:
        domain: what the query is taken for.
        search: the domains to search.
        text: of the query.
    """

    domain: str = DOMAINS[0]
    search: tuple[str, ...] = DOMAINS
    text: str = ""


class Pages:
    """The pages of a library."""

    def __init__(self, library: Library, embedder: Embedder, *, about: str, top: int):
        """`about` is the line under the title; `top` how many items are shown."""
        self.library, self.embedder, self.about, self.top = library, embedder, about, top
        self.limiter = anyio.CapacityLimiter(AT_ONCE)

    async def home(self, request: Request) -> Response:
        """The form, with the items nearest to one of the library's where the address names one."""
        values = request.query_params
        if "item" not in values:
            return self.page(Asked(), samples=await run_in_threadpool(self.samples))
        asked = asked_for(values.get("domain", DOMAINS[0]), values.getlist("search") or DOMAINS)
        if not values["item"].isdecimal() or len(values["item"]) > 18:
            raise HTTPException(404, f"No item {values['item'][:50]!r}: ids are numbers.")
        return self.page(asked, answer=await self.computed(self.of_item, asked, int(values["item"])))

    async def search(self, request: Request) -> Response:
        """The items nearest to what was sent."""
        async with limited_form(request) as form:
            pictures = await read_pictures(form)
            text, domain = (str(form.get(name, "")) for name in ("text", "domain"))
            search = [str(value) for value in form.getlist("search")]
        if len(text) > MAX_TEXT:
            raise HTTPException(413, f"The text has {len(text)} characters: at most {MAX_TEXT}.")
        asked = asked_for(domain, search, text.strip())
        if not pictures and not asked.text:
            raise HTTPException(422, "Nothing to search for: choose a picture or type a title.")
        return self.page(asked, answer=await self.computed(self.of_own, asked, pictures))

    async def computed(self, work: Any, *arguments: Any) -> Answer:
        """Some work in a thread, so that the page stays alive meanwhile; what it refuses is told to the user."""
        async with self.limiter:
            try:
                return await run_in_threadpool(work, *arguments)
            except ValueError as error:
                raise HTTPException(422, f"{error}") from error

    def of_item(self, asked: Asked, item: int) -> Answer:
        """The answer for an item of the library."""
        return self.library.by_item(asked.domain, item, among=asked.search, top=self.top)

    def of_own(self, asked: Asked, pictures: Sequence[tuple[str, bytes]]) -> Answer:
        """The answer for uploaded pictures and a text."""
        read = [checked(name, data) for name, data in pictures]
        shown = [data_uri(data) for _, data in pictures]
        return self.library.by_own(
            self.embedder, asked.domain, read, asked.text, shown=shown, among=asked.search, top=self.top
        )

    def samples(self) -> list[Any]:
        """Cards of some items to begin with."""
        rows = [
            (domain, int((self.library.ids[domain] == item).argmax())) for domain, item in self.library.samples(each=2)
        ]
        return [read_card(self.library.records, domain, row) for domain, row in rows]

    async def refused(self, request: Request, error: HTTPException) -> Response:
        """The page with what was wrong."""
        return self.page(Asked(), problem=error.detail, status=error.status_code)

    def page(self, asked: Asked, *, status: int = 200, **values: Any) -> Response:
        """The page; `values` may be an answer, samples or a problem."""
        limits = {"file": MAX_FILE, "files": MAX_FILES, "text": MAX_TEXT}
        parts = {"answer": None, "samples": None, "problem": None} | values
        html = search_page(about=self.about, domains=DOMAINS, limits=limits, asked=asked, **parts)
        return HTMLResponse(html, status)


def asked_for(domain: str, search: Sequence[str], text: str = "") -> Asked:
    """What a form or an address asks for.

    Raises:
        HTTPException: 422, an unknown domain, or none to search.
    """
    if unknown := {domain, *search} - set(DOMAINS):
        raise HTTPException(422, f"Unknown domain {min(unknown)[:50]!r}: choose among {', '.join(DOMAINS)}.")
    if not search:
        raise HTTPException(422, "Nothing to search among: choose at least one of pages, videos and lives.")
    return Asked(domain, tuple(name for name in DOMAINS if name in search), text)


class Guard:
    """Adds the headers of `HEADERS` to every answer, and refuses forms that another site sends."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = message | {"headers": [*message["headers"], *own]}
            await send(message)

        headers = Request(scope).headers
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
        app = Response("Forms of other sites are refused.", 403) if foreign else self.app
        await app(scope, receive, send_guarded)


def make_app(library: Library, embedder: Embedder, *, about: str, top: int, hosts: Sequence[str] = LOCAL) -> Starlette:
    """The application.

    Args:
        library: to search.
        embedder: of its model.
        about: the line under the title.
        top: how many items an answer has.
        hosts: the names it answers to.
    """
    pages = Pages(library, embedder, about=about, top=top)

    def file(name: str) -> Route:
        return Route(f"/{name}", lambda request: FileResponse(FOLDER / name))

    return Starlette(
        routes=[
            Route("/", pages.home),
            Route("/search", pages.search, methods=["POST"]),
            Route("/search", lambda request: RedirectResponse("/"), methods=["GET"]),  # reloaded after an answer
            file("search.css"),
            file("search.js"),
        ],
        middleware=[Middleware(Guard), Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={HTTPException: pages.refused},
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        ValueError: the port is taken, or the host is not of this machine.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host}:{port}, choose another --host or --port: {error.strerror}"
        ) from error


def make_server(app: Starlette) -> uvicorn.Server:
    """The server of an application: few connections, plain HTTP, quiet."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            ws="none",
            lifespan="off",
            server_header=False,
            limit_concurrency=32,
            timeout_graceful_shutdown=2,
        )
    )
