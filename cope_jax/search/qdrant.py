"""Copies a library to Qdrant, a vector database that runs on many machines: vectors, ids, texts and columns."""

import re
from typing import Any

import httpx
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from cope_jax.data.records import Item
from cope_jax.search.embedding_store import read_vectors
from cope_jax.search.library import Library

TIMEOUT = 60  # seconds of a request


def push(library: Library, url: str, *, collection: str, api_key: str | None = None) -> dict[str, int]:
    """Writes the items of each domain to a collection of its own, `<collection>-<domain>`, and replaces earlier ones.

    The id of a point is the item's row. Returns the number of points of each collection.

    Raises:
        ValueError: The server cannot be reached or reports an error.
    """
    try:
        client = QdrantClient(url, api_key=api_key, timeout=TIMEOUT, check_compatibility=False)
        return {(name := f"{collection}-{domain}"): _fill(client, name, library, domain) for domain in library.domains}
    except (ApiException, httpx.HTTPError, OSError) as error:
        raise ValueError(f"--qdrant={url}: {error}; check the address, and QDRANT_API_KEY if it needs one") from error


def _fill(client: QdrantClient, name: str, library: Library, domain: str) -> int:
    """Creates the collection of a domain and returns its number of points."""
    width = library.index.description["width"]
    client.delete_collection(name)
    client.create_collection(name, vectors_config=models.VectorParams(size=width, distance=models.Distance.COSINE))
    items, start = library.records.items[domain], 0
    for _, vectors in read_vectors(library.embeddings, domain):
        rows = range(start, start := start + len(vectors))
        payload = [_payload(items[row]) for row in rows]
        client.upload_collection(name, vectors, payload=payload, ids=list(rows), wait=True)
    return client.count(name).count


def _payload(item: Item) -> dict[str, Any]:
    """Returns what a filter can use of an item; texts that are numbers, but not codes, become numbers."""
    columns = {name: _number(value) for name, value in item.columns.items()}
    return columns | {"item": item.own_id, "product": list(item.own_products), "text": item.text}


def _number(value: str) -> str | float:
    """Returns a number such as "52.00"; codes keep leading zeros ("007") and more than 15 digits."""
    if not re.fullmatch(r"-?(0|[1-9]\d{0,14})(\.\d+)?", value, re.ASCII):
        return value
    return float(value) if "." in value else int(value)
