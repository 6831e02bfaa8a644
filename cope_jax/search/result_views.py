"""Search results as a text table and as HTML."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cope_jax.evaluation.report.report import source_hash
from cope_jax.search.library import SearchResult
from data_prep.common.text_table import text_table

PAGES = Path(__file__).parent / "pages"
TEMPLATES = Environment(
    loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def results_table(result: SearchResult, *, width: int = 50) -> str:
    """Formats a result as text, with texts cut to `width` characters and without terminal control characters."""
    rows = [["rank", "domain", "item", "products (= the query's)", "score", "text"]]
    for rank, hit in enumerate(result.hits, 1):
        card = hit.card
        products = " ".join(map(str, card.product_ids)) + (" =" if hit.same_product else "")
        text = "".join(c if c.isprintable() else " " for c in (card.columns.get("title") or card.text)[:width])
        rows.append([str(rank), card.domain, str(card.item_id), products, f"{hit.score:.3f}", text])
    return text_table(rows, left=(0, 1, 5))


def results_page(results: Sequence[SearchResult], title: str) -> str:
    """Renders results as one self-contained page."""
    style = (PAGES / "search.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; img-src data:; style-src '{source_hash(style)}'; base-uri 'none'; form-action 'none'"
    template = TEMPLATES.get_template("results.html")
    return template.render(results=results, title=title, style=Markup(style), policy=policy)


def search_page(**values: Any) -> str:
    """Renders the page of the server."""
    return TEMPLATES.get_template("search.html").render(**values)
