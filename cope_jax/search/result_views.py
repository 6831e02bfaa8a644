"""Search results as a text table and as HTML."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from cope_jax.data.thumbnails import Card
from cope_jax.search.library import SearchResult
from cope_jax.search.moments import WEB, find_video, read_moment
from data_prep.common.html_pages import page_environment, render_page
from data_prep.common.text_table import text_table

PAGES = Path(__file__).parent / "pages"
TEMPLATES = page_environment(PAGES)
TEMPLATES.filters["moment"] = lambda card: read_moment(card.columns)


def results_table(result: SearchResult, *, width: int = 50) -> str:
    """Formats a result as text, with texts cut to `width` characters and without terminal control characters."""
    moments = [read_moment(hit.card.columns) for hit in result.hits]
    rows = [["rank", "domain", "item", "products (= the query's)", "score", "text"]]
    for rank, (hit, moment) in enumerate(zip(result.hits, moments, strict=True), 1):
        card = hit.card
        products = " ".join(map(str, card.product_ids)) + (" =" if hit.same_product else "")
        texts = [own_title(card)]
        if any(moments):
            texts = [moment.video[-width:] if moment else "", moment.span if moment else "", *texts]
        texts = ["".join(c if c.isprintable() else " " for c in text[:width]) for text in texts]
        rows.append([str(rank), card.domain, str(card.item_id), products, f"{hit.score:.3f}", *texts])
    if any(moments):
        rows[0][5:5] = ["video", "time"]
    return text_table(rows, left=(0, 1, 5, 6, 7))


def play_url(card: Card, videos: Path | None, *, served: bool = False) -> str:
    """Returns where a browser plays an item from its start on, "" if its video is not at hand.

    Args:
        card: The item.
        videos: Folder with the videos, or None.
        served: Return an address of the search server instead of the URL of a file.
    """
    if not (moment := read_moment(card.columns)):
        return ""
    if moment.video.startswith(WEB):
        return moment.video + moment.fragment
    if not (path := find_video(videos, moment.video)):
        return ""
    item = urlencode({"domain": card.domain, "item": card.item_id})
    return (f"/video?{item}" if served else path.as_uri()) + moment.fragment


def results_page(results: Sequence[SearchResult], title: str, videos: Path | None = None) -> str:
    """Renders results as one self-contained page, with links to the videos in a folder."""
    values = {"results": results, "heading": title, "title": own_title, "play": partial(play_url, videos=videos)}
    return render_page(TEMPLATES, "results.html", styles=[PAGES / "search.css"], **values)


def own_title(card: Card) -> str:
    """Returns the title of an item, or its text."""
    return str(card.columns.get("title") or card.text)


def search_page(videos: Path | None = None, **values: Any) -> str:
    """Renders the page of the server, which serves the videos in a folder."""
    values["play"] = partial(play_url, videos=videos, served=True)
    return TEMPLATES.get_template("search.html").render(**values)
