"""A shop of six products for tests of search: records in memory, embeddings in files, and a simple encoder."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cope_jax.data.records import Item, Records
from cope_jax.evaluation.embed_items import Items
from cope_jax.search.embedding_store import MANIFEST, list_shards, write_shard
from cope_jax.search.index import build_index, open_index
from cope_jax.search.library import Library
from data_prep.common.domains import DOMAINS
from data_prep.images.decoding import decode_rgb

PRODUCTS = 6
TILTS = {"page": 0.0, "video": 0.1, "live": 0.3}
FRAMES = {"page": 1, "video": 3, "live": 5}
HOSTILE = "<script>document.title='stolen'</script>\"><img src=x onerror=\"document.title='stolen'\"> \x1b[31m"


def picture(product: int, *, size: tuple[int, int] = (32, 24), kind: str = "PNG", **options) -> bytes:
    """Encodes an image in the color of a product: red is 40 × its number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (40 * product, 90, 160)).save(buffer, kind, **options)
    return buffer.getvalue()


def write_embeddings(folder: Path, vectors: Mapping[str, np.ndarray], *, rows: int) -> Path:
    """Writes embeddings float32[N, E] of each domain with `rows` rows per file; the id of row r is 100 + r."""
    sizes = {domain: len(own) for domain, own in vectors.items()}
    manifest = {
        "run": "shop",
        "step": 7,
        "split": "test",
        "items": sizes,
        "rows": rows,
        "width": vectors["page"].shape[-1],
    }
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    for domain in vectors:
        (folder / domain).mkdir()
    for shard in list_shards(folder, manifest):
        numbers = np.arange(shard.start, shard.stop)
        zeros = np.zeros(len(numbers), np.int32)
        items = Items(vectors[shard.domain][numbers], zeros[:, None], numbers, 100 + numbers, zeros, zeros)
        write_shard(shard.path, shard.domain, items, {}, "float32")
    return folder


def embedding(product: int, tilt: float = 0.0) -> np.ndarray:
    """Returns a product's direction float32[E], tilted a little towards the next one's."""
    vector = np.zeros(PRODUCTS + 1, np.float32)
    vector[product], vector[product + 1] = np.cos(tilt), np.sin(tilt)
    return vector


def make_shop(folder: Path) -> Library:
    """Builds a library with a page, a video, and a live item of each product; the text of page 102 is HOSTILE.

    Each domain is tilted from its products' directions by its angle in TILTS.
    """
    vectors = {
        domain: np.stack([embedding(product, TILTS[domain]) for product in range(PRODUCTS)]) for domain in DOMAINS
    }
    embeddings = write_embeddings(folder / "embeddings", vectors, rows=4)
    build_index(embeddings, folder / "index", report=lambda line: None)
    items = {domain: [shop_item(domain, product) for product in range(PRODUCTS)] for domain in DOMAINS}
    ids = {domain: 100 + np.arange(PRODUCTS) for domain in DOMAINS}
    return Library(embeddings, open_index(folder / "index", embeddings), Records(items, ()), ids)


def shop_item(domain: str, product: int) -> Item:
    """Returns the item of a product in a domain."""
    text = HOSTILE if (domain, product) == ("page", 2) else f"{domain} of kind {product} 红裙"
    frames = (picture(product),) * FRAMES[domain]
    return Item(100 + product, text, (1000 + product,), frames)


class ShopEmbedder:
    """Embeds a text like "kind 3" or, without one, the color of the first picture."""

    def embed(self, domain: str, *, frames: Sequence[Sequence], texts: Sequence[str]) -> np.ndarray:
        (clip,), (text,) = frames, texts
        if "refuse" in text:
            raise ValueError(f"{domain} item 0 has nothing to embed: <b>{text}</b>")
        if found := re.search(r"kind (\d)", text):
            return embedding(int(found[1]))[None]
        pixels = decode_rgb(clip[0]) if isinstance(clip[0], bytes) else np.asarray(clip[0])
        return embedding(round(pixels[0, 0, 0] / 40))[None]
