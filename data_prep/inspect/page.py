"""The page of `data_prep.inspect`: plots of distributions and a few products side by side, in one file of HTML."""

import base64
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np
from PIL import Image, ImageOps

from data_prep.images import decoding as images
from data_prep.inspect.survey import FORMATS, Distribution, Histogram, describe

THUMBNAIL = 96  # pixels
BARS = 24

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>
body { font: 14px system-ui, sans-serif; margin: 2em; max-width: 80em }
table { border-collapse: collapse } td, th { padding: .2em .8em; text-align: right; vertical-align: top }
th:first-child, td:first-child, .text td, .text th { text-align: left }
.plots { display: flex; flex-wrap: wrap; gap: 1em; margin: 2em 0 } figure { margin: 0 } rect { fill: #4678b4 }
.product { border-top: 1px solid #ccc; padding: 1em 0 } .item { max-width: 28em } img { margin: 1px }
</style></head><body>
<h1>{{ title }}</h1>
{% for split in splits %}
<h2>{{ split.name }}</h2>
<table><tr>{% for name in split.header %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in split.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
<div class="plots">{% for plot in split.plots %}<figure><figcaption>{{ plot.title }}</figcaption>
<svg width="220" height="100" role="img">
{% for bar in plot.bars %}<rect x="{{ bar.x }}" y="{{ bar.y }}" width="{{ bar.width }}" height="{{ bar.height }}">
<title>{{ bar.label }}</title></rect>{% endfor %}
<text x="0" y="98" font-size="11">{{ plot.low }}</text>
<text x="220" y="98" font-size="11" text-anchor="end">{{ plot.high }}</text></svg></figure>
{% endfor %}</div>
{% for product in split.products %}<div class="product"><h3>product {{ product.product_id }}</h3>
<table class="text">
<tr>{% for side in product.sides %}<th>{{ side.domain }}: {{ side.items|length }} of {{ side.count }}</th>
{% endfor %}</tr>
<tr>{% for side in product.sides %}<td>{% for item in side.items %}<div class="item">
<p>{{ item.item_id }}: {{ item.text or "no text" }}</p>
{% for image in item.images %}<img src="{{ image }}" alt="">{% endfor %}</div>{% endfor %}</td>
{% endfor %}</tr></table></div>
{% endfor %}{% endfor %}
</body></html>
"""


@dataclasses.dataclass(frozen=True)
class ShownItem:
    """An item as the page shows it; `images` are data URIs."""

    item_id: int
    text: str
    images: list[str]


@dataclasses.dataclass(frozen=True)
class Side:
    """A product's items of one domain: how many, and those shown."""

    domain: str
    count: int
    items: list[ShownItem]


@dataclasses.dataclass(frozen=True)
class ShownProduct:
    """A product as the page shows it."""

    product_id: int
    sides: list[Side]


@dataclasses.dataclass(frozen=True)
class Split:
    """A split as the page shows it: a table, plots and products."""

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    plots: Sequence[Mapping]
    products: Sequence[ShownProduct]


def render(title: str, splits: Sequence[Split]) -> str:
    """Returns the page; every text in it is escaped."""
    return (
        jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        .from_string(_PAGE)
        .render(title=title, splits=splits)
    )


def plot(title: str, histogram: Histogram) -> dict:
    """Returns the bars of a histogram, values above the 95th percentile in the last one."""
    spread: Distribution = describe(histogram)
    low = min(histogram, default=0)
    width = max(1, math.ceil((spread.high - low + 1) / BARS))
    count = (spread.high - low) // width + 1
    heights = np.zeros(count)
    for value, occurs in histogram.items():
        heights[min((value - low) // width, count - 1)] += occurs
    bars = [
        {
            "x": round(220 * i / count, 1),
            "y": round(84 - 80 * height / heights.max(), 1),
            "width": round(220 / count - 1, 1),
            "height": round(80 * height / heights.max(), 1),
            "label": f"{low + i * width} to {low + (i + 1) * width - 1}: {height:.0f}",
        }
        for i, height in enumerate(heights)
        if height
    ]
    beyond = f"{spread.high} or more, up to {spread.most}" if spread.most > spread.high else str(spread.high)
    return {"title": title, "bars": bars, "low": low, "high": beyond}


def thumbnail(data: bytes) -> str:
    """Returns a small upright JPEG of an encoded image as a data URI."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))
        small = ImageOps.exif_transpose(images.as_rgb(image))
        small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
