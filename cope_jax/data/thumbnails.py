"""Items as cards for HTML pages: texts unchanged (the page escapes them), frames as small JPEG data URIs."""

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from cope_jax.data.frames import choose_frames
from data_prep.common.payload import OWN_ITEM, OWN_PRODUCTS
from data_prep.images.decoding import open_image, upright_pixels

if TYPE_CHECKING:  # it imports TFDS, and `cope_jax.search.upload_decoder` should start quickly
    from cope_jax.data.records import Records

T = TypeVar("T")
SIDE = 160  # pixels; such an image has 3 to 6 kB
QUALITY = 80
SHOWN = 4  # frames of an item


@dataclass(frozen=True)
class Card:
    """An item as shown on a page, with ids as in the user's table."""

    domain: str
    item_id: int | str | None  # None if it is not from the records
    product_ids: tuple[int | str, ...]
    text: str  # "" if it has none
    frames: tuple[str, ...]  # some of its frames in time order, as data URIs
    frame_count: int  # number of all its frames
    columns: Mapping[str, Any] = field(default_factory=dict)  # other columns of the table, such as title and price


def shown_frames(frames: Sequence[T], *, limit: int = SHOWN, kind: str = "clip") -> list[T]:
    """Returns at most `limit` frames of an item of a domain of some kind."""
    return [frames[i] for i in choose_frames(len(frames), limit, kind=kind, short_clips="mask", rng=None)]


def read_card(records: "Records", domain: str, row: int, *, frames: int = SHOWN, side: int = SIDE) -> Card:
    """Reads an item, with at most `frames` frames whose longest side is `side` pixels."""
    item = records.items[domain][row]
    shown = shown_frames(item.frames, limit=frames, kind=records.items[domain].kind) if frames else []
    return Card(
        domain=domain,
        item_id=item.own_id,
        product_ids=item.own_products,
        text=item.text,
        frames=tuple(data_uri(frame, side) for frame in shown),
        frame_count=len(item.frames),
        columns={name: value for name, value in item.columns.items() if name not in (OWN_ITEM, OWN_PRODUCTS)},
    )


def data_uri(image: bytes, side: int = SIDE) -> str:
    """Returns an encoded image as the data URI of an upright JPEG whose longest side is at most `side` pixels.

    An image that does not decode becomes a gray square with a cross.
    """
    return _uri(jpeg(image, side))


def jpeg(image: bytes, side: int) -> bytes:
    """Returns the JPEG of `data_uri`."""
    try:
        with open_image(image) as opened:
            opened.draft("RGB", (side, side))  # a JPEG decodes at a reduced scale, four times as fast
            pixels = upright_pixels(opened)
    except ValueError:
        return _placeholder(side)
    return _encode(_shrink(pixels, side))


def thumbnail_uri(pixels: np.ndarray, side: int = SIDE) -> str:
    """Returns u8[H, W, 3] as the data URI of a JPEG whose longest side is at most `side` pixels."""
    return _uri(_encode(_shrink(pixels, side)))


def placeholder(side: int = SIDE) -> str:
    """Returns the data URI shown for an image that does not decode."""
    return _uri(_placeholder(side))


def _shrink(pixels: np.ndarray, side: int) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    return image


@functools.cache
def _placeholder(side: int) -> bytes:
    image = Image.new("RGB", (side, side), "#9a9a9a")
    last = side - 1
    for line in ((0, 0, last, last), (0, last, last, 0)):
        ImageDraw.Draw(image).line(line, fill="#6a6a6a", width=max(side // 40, 1))
    return _encode(image)


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _uri(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
