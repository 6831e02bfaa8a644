"""An HTML page with tables, plots and some products of each split, in one file."""

import base64
import dataclasses
import functools
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.common.domains import find_data_set
from data_prep.common.html_pages import page_environment, render_page
from data_prep.common.payload import OWN_ITEM, OWN_PRODUCTS, parse_payload
from data_prep.common.process_pool import ProcessMap, process_map
from data_prep.common.text_table import text_table
from data_prep.images.decoding import open_image, upright_pixels
from data_prep.inspect import distributions
from data_prep.inspect.distributions import Histogram, describe
from data_prep.records.schema import Example, find_record_files, open_files, parse_example

HEADER = ("domain", "value", "5%", "median", "mean", "95%", "max")
ITEMS_SHOWN, FRAMES_SHOWN = 2, 8
THUMBNAIL = 96  # pixels
BARS = 24
BAR = 22.0  # largest width of a bar; few wide ones would look like a block
FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Split:
    """A split as shown on the page."""

    name: str
    rows: Sequence[Sequence[str]]  # of its table, with the columns `HEADER`
    plots: Sequence[Mapping[str, Any]]  # as returned by `plot`
    products: Sequence[Mapping[str, Any]]  # with their domains, the items in these, and images as data URIs


def inspect(data_dir: Path, *, items: int, products: int, processes: int | None = None) -> list[Split]:
    """Returns the contents of the page; the arguments are the flags of the command."""
    files = find_record_files(data_dir)
    with process_map(processes) as apply:
        return [
            _inspect_split(split, {name: own[split] for name, own in files.items()}, items, products, apply)
            for split in files["product"]
        ]


def render(data_dir: Path, splits: Sequence[Split]) -> str:
    """Returns the page of a data folder; all texts in it are escaped, and its policy lets it load and run nothing."""
    folder = find_data_set(data_dir).resolve()
    return render_page(
        page_environment(FOLDER),
        "inspect.html.jinja",
        styles=[FOLDER / "inspect.css"],
        title=folder.parent.name if folder.name == "rope" else folder.name,  # the default says nothing
        folder=str(data_dir),
        header=HEADER,
        splits=splits,
    )


def format_table(split: Split) -> str:
    """Returns the table of a split as text."""
    return text_table([HEADER, *split.rows], left=(0, 1))


def _inspect_split(
    split: str, files: Mapping[str, Mapping[Path, int]], items: int, products: int, apply: ProcessMap
) -> Split:
    histograms: dict[tuple[str, str], Histogram] = {}
    rows = []
    domains = [name for name in files if name != "product"]
    for domain in domains:
        total = sum(files[domain].values())
        step = max(1, total // items) if items else 1
        count = functools.partial(distributions.item_histograms, step=step)
        counts = distributions.add_up(dict(apply(count, list(files[domain]))).values())
        read = counts["frames"].total()
        rows.append((domain, f"{total:,} items" + (f" ({read:,} read)" if step > 1 else ""), *[""] * 5))
        histograms |= {(domain, name): histogram for name, histogram in counts.items()}
    count = functools.partial(distributions.product_histograms, domains=domains)
    per_product = distributions.add_up(dict(apply(count, list(files["product"]))).values())
    rows.append(("product", f"{sum(files['product'].values()):,} products", *[""] * 5))
    histograms |= {("product", f"{domain} items"): histogram for domain, histogram in per_product.items()}
    for (domain, name), histogram in histograms.items():
        found = describe(histogram)
        numbers = (found.low, found.median, round(found.mean, 1), found.high, found.maximum)
        rows.append((domain, name, *(f"{number:,}" for number in numbers)))
    plots = [plot(f"{domain}: {name}", histogram) for (domain, name), histogram in histograms.items()]
    return Split(split, rows, plots, list(_show_products(files, products)))


def _show_products(files: Mapping[str, Mapping[Path, int]], count: int) -> Iterator[dict[str, Any]]:
    sources = {name: open_files(own) for name, own in files.items()}
    total = len(sources["product"])
    for number in range(min(count, total)):
        product = parse_example(sources["product"][number * total // min(count, total)])
        product_id, domains = product.integers("product_id")[0], []
        for domain in files:
            if domain == "product":
                continue
            rows = product.integers(f"{domain}_rows")
            items = [parse_example(sources[domain][row]) for row in rows[:ITEMS_SHOWN]]
            domains.append({"name": domain, "count": len(rows), "items": list(map(_show_item, items))})
            for item in items:
                ids = item.integers("product_ids")
                own = dict(zip(ids, _payload(item).get(OWN_PRODUCTS, ids), strict=True))
                product_id = own.get(product_id, product_id)
        yield {"product_id": product_id, "domains": domains}


def _payload(item: Example) -> dict[str, Any]:
    return parse_payload(b"".join(item.byte_strings("payload")).decode())


def _show_item(item: Example) -> dict[str, Any]:
    return {
        "item_id": _payload(item).get(OWN_ITEM, item.integers("item_id")[0]),
        "text": item.byte_strings("text")[0].decode(),
        "images": [thumbnail(data) for data in item.byte_strings("frames")[:FRAMES_SHOWN]],
    }


def plot(title: str, histogram: Histogram) -> dict[str, Any]:
    """Returns the bars of a histogram; the last one includes all values above the 95th percentile."""
    found = describe(histogram)
    low = min(histogram, default=0)
    top = found.high if found.high > low else found.maximum  # nearly all values may be alike
    width = max(1, math.ceil((top - low + 1) / BARS))
    count = (top - low) // width + 1
    heights = np.zeros(count)
    for value, occurrences in histogram.items():
        heights[min((value - low) // width, count - 1)] += occurrences
    bars = [
        {
            "x": round(220 * (i + 0.5) / count - min(220 / count - 1, BAR) / 2, 1),
            "y": round(88 - 80 * height / heights.max(), 1),
            "width": round(min(220 / count - 1, BAR), 1),
            "height": round(80 * height / heights.max(), 1),
            "label": f"{low + i * width}{f' to {low + (i + 1) * width - 1}' if width > 1 else ''}: {height:,.0f}",
        }
        for i, height in enumerate(heights)
        if height
    ]
    high = f"{top} or more, up to {found.maximum}" if found.maximum > top else str(top)
    return {"title": title, "bars": bars, "low": low, "high": high}


def thumbnail(data: bytes) -> str:
    """Returns a small upright JPEG of an encoded image as a data URI."""
    with open_image(data) as image:
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))
        small = Image.fromarray(upright_pixels(image))
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
