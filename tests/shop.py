"""A shop of six products for tests of search: records in memory, embeddings in files, and a simple encoder.

python -m tests.shop FOLDER SECONDS     serve it with this deadline; prints the port
"""

import dataclasses
import io
import json
import re
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from cope_jax.data.records import Item, Records
from cope_jax.search import server
from cope_jax.search.embedding_store import MANIFEST, list_shards, write_shard
from cope_jax.search.index import build_index, open_index
from cope_jax.search.library import Library
from cope_jax.search.server import listen, make_app, make_server
from data_prep.common.domains import DOMAINS, ROPE_DOMAINS
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


def blank_png(width: int, height: int, *, color_type: int = 0) -> bytes:
    """Encodes a large image of one color in little memory; color type 0 is gray, 6 is RGBA."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = bytes(1 + width * {0: 1, 6: 4}[color_type])
    together = max(1, min(height, (4 << 20) // len(row)))  # rows compressed at once
    compress = zlib.compressobj()
    parts = [compress.compress(row * min(together, height - start)) for start in range(0, height, together)]
    pixels = b"".join([*parts, compress.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


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
        items = [Item(100 + row, "", (1000 + row,), ()) for row in numbers.tolist()]
        write_shard(shard.path, shard.domain, vectors[shard.domain][numbers], items, "float32")
    return folder


def embedding(product: int, tilt: float = 0.0) -> np.ndarray:
    """Returns a product's direction float32[E], tilted a little towards the next one's."""
    vector = np.zeros(PRODUCTS + 1, np.float32)
    vector[product], vector[product + 1] = np.cos(tilt), np.sin(tilt)
    return vector


def make_shop(folder: Path, *, recording: str = "") -> Library:
    """Builds a library with a page, a video, and a live item of each product; the text of page 102 is HOSTILE.

    Each domain is tilted from its products' directions by its angle in TILTS. If a recording is named, the live items
    are segments of it: 700 to 708 seconds, 704 to 712 seconds, and so on.
    """
    vectors = {
        domain: np.stack([embedding(product, TILTS[domain]) for product in range(PRODUCTS)]) for domain in DOMAINS
    }
    embeddings = write_embeddings(folder / "embeddings", vectors, rows=4)
    build_index(embeddings, folder / "index", report=lambda line: None)
    items = {domain: ShopItems(domain) for domain in DOMAINS}
    for product, item in enumerate(items["live"] if recording else ()):
        part = {"video": recording, "start": str(700 + 4 * product), "end": f"{708 + 4 * product}.0"}
        items["live"][product] = dataclasses.replace(item, payload=json.dumps(part))
    ids = {domain: 100 + np.arange(PRODUCTS) for domain in DOMAINS}
    return Library(embeddings, open_index(folder / "index", embeddings), Records(items, ()), ids)


class ShopItems(list[Item]):
    """The items of a domain by row."""

    def __init__(self, domain: str):
        super().__init__(shop_item(domain, product) for product in range(PRODUCTS))
        self.kind = ROPE_DOMAINS[domain]


def shop_item(domain: str, product: int) -> Item:
    """Returns the item of a product in a domain."""
    text = HOSTILE if (domain, product) == ("page", 2) else f"{domain} of kind {product} 红裙"
    frames = (picture(product),) * FRAMES[domain]
    columns = {"category": "ABC"[product // 2], "price": f"{10 * product}.50", "url": HOSTILE}
    return Item(100 + product, text, (1000 + product,), frames, json.dumps(columns) if domain != "live" else "")


class ShopEmbedder:
    """Embeds a text like "kind 3" or, without one, the color of the first picture. "wait 2" takes two seconds."""

    config = SimpleNamespace(data=SimpleNamespace(image_size=8, resize="stretch"))

    def embed(self, domain: str, *, frames: Sequence[Sequence], texts: Sequence[str]) -> np.ndarray:
        (clip,), (text,) = frames, texts
        if "refuse" in text or not (clip or re.search(r"kind \d", text)):
            raise ValueError(f"{domain} item 0 has nothing to embed: <b>{text}</b>")
        if found := re.search(r"wait (\d)", text):
            time.sleep(int(found[1]))
        if found := re.search(r"kind (\d)", text):
            return embedding(int(found[1]))[None]
        pixels = decode_rgb(clip[0]) if isinstance(clip[0], bytes) else np.asarray(clip[0])
        return embedding(min(round(pixels[0, 0, 0] / 40), PRODUCTS - 1))[None]


@contextmanager
def serve_shop(
    folder: Path, *, top: int = 6, recording: str = "", videos: Path | None = None
) -> Iterator[tuple[server.uvicorn.Server, int]]:
    """Serves a shop from a thread; yields the server and its port."""
    shop = make_shop(folder, recording=recording)
    app = make_app(shop, ShopEmbedder(), about="a shop", top=top, videos=videos)
    with listen("127.0.0.1", 0) as socket:
        running = make_server(app)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [socket]})
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield running, socket.getsockname()[1]
        running.should_exit = True
        thread.join()


if __name__ == "__main__":
    server.DEADLINE = float(sys.argv[2])
    with listen("127.0.0.1", 0) as socket:
        app = make_app(make_shop(Path(sys.argv[1])), ShopEmbedder(), about="a shop", top=3)
        print(socket.getsockname()[1], flush=True)
        make_server(app).run(sockets=[socket])
