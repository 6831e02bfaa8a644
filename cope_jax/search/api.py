"""The JSON API of the search server, described by openapi.json in OpenAPI."""

import hmac
import json
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cope_jax.data.thumbnails import Card, read_card
from cope_jax.search.library import MODES, SearchResult
from cope_jax.search.queries import Queries

SPECIFICATION = Path(__file__).parent / "pages/openapi.json"
KEY_HEADER = "x-api-key"


class SearchApi:
    """Request handlers that answer with JSON; errors are {"detail": "…"}."""

    def __init__(self, queries: Queries, key: str = ""):
        """With a key, requests must have it in their header X-API-Key."""
        self.queries, self.key = queries, key

    async def health(self, request: Request) -> Response:
        """Answers with the number of items by domain; needs no key."""
        return JSONResponse(
            {"status": "ok", "items": {name: len(ids) for name, ids in self.queries.library.ids.items()}}
        )

    async def specification(self, request: Request) -> Response:
        """Answers with the description of the API, which names the domains; needs no key."""
        specification = json.loads(SPECIFICATION.read_text(encoding="utf-8"))
        schemas = specification["components"]["schemas"]
        schemas["Domain"]["enum"], schemas["Mode"]["enum"] = self.queries.domains, MODES
        if self.key:
            specification["security"] = [{"key": []}]
        return JSONResponse(specification)

    async def search(self, request: Request) -> Response:
        """Answers with the items nearest to pictures and text, or to an item."""
        self._check_key(request)
        _, result = await self.queries.answer(request, api=True)
        return JSONResponse(result_values(result))

    async def item(self, request: Request) -> Response:
        """Answers with an item."""
        self._check_key(request)
        card = await self.queries.compute(self._read_item, *request.path_params.values(), api=True)
        return JSONResponse(card_values(card))

    def show_error(self, error: HTTPException) -> Response:
        """Answers with an error."""
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    def _read_item(self, domain: str, item: str) -> Card:
        library = self.queries.library
        if domain not in library.domains:
            raise HTTPException(404, f"no domain {domain[:50]!r}: choose among {', '.join(library.domains)}")
        return read_card(library.records, domain, self.queries.row(domain, item), frames=0)

    def _check_key(self, request: Request) -> None:
        if self.key and not hmac.compare_digest(request.headers.get(KEY_HEADER, "").encode(), self.key.encode()):
            raise HTTPException(401, f"The header {KEY_HEADER} must have the key of this server.")


def result_values(result: SearchResult) -> dict[str, Any]:
    """Returns a result as the API shows it."""
    hits = [
        {"score": hit.score, "same_product": hit.same_product} | card_values(hit.card)  # best first
        for hit in result.hits
    ]
    values = {"query": card_values(result.query), "search": result.searched, "mode": result.mode}
    return values | {"similar": result.similar, "hits": hits}


def card_values(card: Card) -> dict[str, Any]:
    """Returns an item as the API shows it."""
    return {
        "domain": card.domain,
        "item": card.item_id,
        "products": card.product_ids,
        "text": card.text,
        "frames": card.frame_count,
        "columns": dict(card.columns),
    }
