"""Queries of requests: what they contain, and the search for it."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import numpy as np
from starlette.datastructures import ImmutableMultiDict
from starlette.exceptions import HTTPException
from starlette.requests import Request

from cope_jax.data.thumbnails import SHOWN
from cope_jax.search.embedder import Embedder
from cope_jax.search.library import MAX_TOP, Library, SearchResult
from cope_jax.search.uploads import MAX_TEXT, decode_pictures, limited_form, uploaded_pictures

CONCURRENT_UPLOADS = 4  # forms on disk; others wait
CONCURRENT_SEARCHES = 2  # threads
API_PATIENCE = 0.25  # seconds that a request to the API waits for each of these before it gets status 503; people wait
FIELDS = ("domain", "text", "mode", "where", "item", "top", "group")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Query:
    """A query's domain and text or item, the domains to search, how, the filter, and the number of items to find.

    With the group "product", only the best item of each product is found.
    """

    domain: str
    search: tuple[str, ...]
    text: str = ""
    mode: str = ""  # "" is the default
    where: str = ""
    item: str = ""
    top: int = 0  # 0 is the default
    group: str = ""


class Queries:
    """Answers requests from a library."""

    def __init__(self, library: Library, embedder: Embedder, *, top: int):
        """`top` is the number of items to find by default."""
        self.library, self.embedder, self.top = library, embedder, top
        self.upload_slots = anyio.CapacityLimiter(CONCURRENT_UPLOADS)
        self.decoder_slot = anyio.CapacityLimiter(1)  # decoding the largest pictures takes 1.1 GB
        self.search_slots = anyio.CapacityLimiter(CONCURRENT_SEARCHES)
        self.threads = ThreadPoolExecutor(CONCURRENT_SEARCHES, thread_name_prefix="search")
        self.domains = library.domains

    async def answer(self, request: Request, *, api: bool = False) -> tuple[Query, SearchResult]:
        """Reads a form, for the API also a JSON object, and finds the items nearest to what it contains.

        Requests to the API may leave out domains: the query is then of the first one, and all are searched. Their
        results have no thumbnails.

        Raises:
            HTTPException: The form is invalid, the search fails for its values, or the server is too busy for the API.
        """
        async with AsyncExitStack() as stack:
            if not request.headers.get("content-type", "").startswith("application/json"):
                await stack.enter_async_context(turn(self.upload_slots, api=api))
            form = await stack.enter_async_context(limited_form(request, json_object=api))
            uploads, query = uploaded_pictures(form), self.read(form, defaults=api)
            if query.item and (uploads or query.text):
                raise HTTPException(422, "An item is one query, pictures and a text are another: send one of them.")
            if not (query.item or uploads or query.text):
                raise HTTPException(422, "Nothing to search for: choose a picture or type a title.")
            pictures, thumbnails = [], []
            if uploads:
                async with turn(self.decoder_slot, api=api):
                    data = self.embedder.config.data
                    pictures, thumbnails = await decode_pictures(uploads, data.image_size, data.resize)
        frames = 0 if api else SHOWN
        if query.item:
            return query, await self.compute(self._search_item, query, frames, api=api)
        return query, await self.compute(self._search_own, query, pictures, thumbnails, frames, api=api)

    async def search_item(self, query: Query) -> SearchResult:
        """Finds the items nearest to the item of a query; raises HTTPException if there is none."""
        return await self.compute(self._search_item, query, SHOWN)

    async def compute(self, function: Callable[..., Result], *arguments: object, api: bool = False) -> Result:
        """Computes in a thread and reports a ValueError to the user; `api` as in `turn`.

        If the request ends first, a search that is running keeps its thread until it is done: it cannot be stopped.
        """
        async with turn(self.search_slots, api=api):
            try:
                return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)
            except ValueError as error:
                raise HTTPException(422, f"{error}") from error

    def parse(self, domain: str, search: Sequence[str]) -> Query:
        """Checks domains; raises HTTPException for an unknown one or none to search."""
        if unknown := {domain, *search} - set(self.domains):
            raise HTTPException(422, f"Unknown domain {min(unknown)[:50]!r}: choose among {', '.join(self.domains)}.")
        if not search:
            raise HTTPException(422, f"Nothing to search among: choose at least one of {', '.join(self.domains)}.")
        return Query(domain, tuple(name for name in self.domains if name in search))

    def row(self, domain: str, item: str) -> int:
        """Returns the row of an item; raises HTTPException if there is none."""
        try:
            return self.library.row(domain, item)
        except ValueError as error:
            raise HTTPException(404, f"{error}") from error

    def read(self, form: ImmutableMultiDict[str, Any], *, defaults: bool) -> Query:
        """Reads the fields of a form or an address, other than pictures.

        With `defaults`, domains may be missing: the query is then of the first one, and all are searched.

        Raises:
            HTTPException: A field is unknown, or its value is invalid or too long.
        """
        if unknown := form.keys() - {*FIELDS, "search", "pictures"}:
            raise HTTPException(422, f"Unknown field {min(unknown)[:50]!r}: choose among {', '.join(FIELDS)}, search.")
        values = {name: str(form.get(name, "")) for name in FIELDS}
        values["where"] = join_filters([str(where) for where in form.getlist("where")])
        if (size := max(map(len, values.values()))) > MAX_TEXT:
            raise HTTPException(413, f"The text has {size} characters: at most {MAX_TEXT}.")
        top, domain, search = values.pop("top"), values.pop("domain"), [str(name) for name in form.getlist("search")]
        if repeated := [name for name in FIELDS if name != "where" and len(form.getlist(name)) > 1]:
            raise HTTPException(422, f"{repeated[0]} has several values: it can have one.")
        if top and not (top.isdecimal() and 1 <= int(top) <= MAX_TOP):
            raise HTTPException(422, f"top is {top[:50]!r}: it must be a number from 1 to {MAX_TOP}.")
        if values["item"] and values["mode"] not in ("", "dense"):
            raise HTTPException(422, f"mode is {values['mode'][:50]!r}: for an item, only dense is possible.")
        if values["group"] not in ("", "product"):
            raise HTTPException(422, f"group is {values['group'][:50]!r}: it must be 'product', or missing.")
        if defaults:
            domain, search = domain or self.domains[0], search or [*self.domains]
        stripped = {name: value.strip() for name, value in values.items()}
        return dataclasses.replace(self.parse(domain, search), top=int(top or 0), **stripped)

    def _search_item(self, query: Query, frames: int) -> SearchResult:
        self.row(query.domain, query.item)
        options = {"top": query.top or self.top, "where": query.where, "group": bool(query.group), "frames": frames}
        return self.library.search_item(query.domain, query.item, among=query.search, **options)

    def _search_own(
        self, query: Query, pictures: Sequence[np.ndarray], thumbnails: Sequence[str], frames: int
    ) -> SearchResult:
        return self.library.search_own(
            self.embedder,
            query.domain,
            pictures,
            query.text,
            thumbnails=thumbnails,
            among=query.search,
            top=query.top or self.top,
            mode=query.mode or None,
            where=query.where,
            group=bool(query.group),
            frames=frames,
        )


@asynccontextmanager
async def turn(slots: anyio.CapacityLimiter, *, api: bool) -> AsyncIterator[None]:
    """Waits for a slot and holds it. Requests to the API wait for API_PATIENCE, others until the deadline of requests.

    Raises:
        HTTPException: 503, with the header Retry-After, if no slot became free.
    """
    with anyio.move_on_after(API_PATIENCE if api else None) as waiting:
        await slots.acquire()
    if waiting.cancelled_caught:
        raise HTTPException(503, "The server is busy: try again in a second.", {"Retry-After": "1"})
    try:
        yield
    finally:
        slots.release()


def join_filters(filters: Sequence[str]) -> str:
    """Returns the filter that is true if all of some filters are, of which empty ones are left out."""
    given = list(filter(None, map(str.strip, filters)))
    return given[0] if len(given) == 1 else " AND ".join(f"({where})" for where in given)
