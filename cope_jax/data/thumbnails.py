"""Items as cards for HTML pages: texts as they are (the page escapes them), frames as small JPEG data URIs."""

import base64
import functools
import io
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps

from cope_jax.data.frames import choose
from cope_jax.data.images import on_white, open_image
from cope_jax.data.records import Records

SIDE = 160  # pixels: 3 to 6 kB a picture
QUALITY = 80
MAX_PIXELS = 64_000_000  # as records hold them; a small file can ask for far more


@dataclass(frozen=True)
class Card:
    """What a page shows of an item.

    Attributes:
      domain, item_id, product_ids: of the item.
      text: as it is in the records, "" where there is none.
      frames: some of its frames in time order, as data URIs.
      frame_count: how many it has.
    """

    domain: str
    item_id: int
    product_ids: tuple[int, ...]
    text: str
    frames: tuple[str, ...]
    frame_count: int


def read_card(records: Records, domain: str, row: int, *, frames: int = 4, side: int = SIDE) -> Card:
    """The card of an item of the records.

    Args:
        records: of a split.
        domain, row: of the item.
        frames: how many to show at most, from the middles of as many segments.
        side: longest side of a picture in pixels.
    """
    item = records.items[domain][row]
    shown = choose(len(item.frames), frames, short_clips="mask", rng=None)
    return Card(
        domain=domain,
        item_id=item.item_id,
        product_ids=item.product_ids,
        text=item.text,
        frames=tuple(data_uri(item.frames[position], side) for position in shown),
        frame_count=len(item.frames),
    )


def data_uri(image: bytes, side: int = SIDE) -> str:
    """An encoded image as the data URI of a JPEG whose longest side is `side` pixels at most, turned as its EXIF says.

    One that does not decode becomes a grey square with a cross: a page with a hole is better than none.
    """
    try:
        with open_image(image) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                return placeholder(side)
            opened.draft("RGB", (side, side))  # a JPEG decodes at a reduced scale, four times as fast
            picture = Image.fromarray(on_white(ImageOps.exif_transpose(opened)))
    except ValueError:
        return placeholder(side)
    picture.thumbnail((side, side))
    return _uri(picture)


@functools.cache
def placeholder(side: int = SIDE) -> str:
    """The picture of an image that does not decode."""
    picture = Image.new("RGB", (side, side), "#9a9a9a")
    last = side - 1
    for line in ((0, 0, last, last), (0, last, last, 0)):
        ImageDraw.Draw(picture).line(line, fill="#6a6a6a", width=max(side // 40, 1))
    return _uri(picture)


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
