"""Search results as HTML, by the templates in `pages/`; they escape every text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cope_jax.search.library import Answer

FOLDER = Path(__file__).parent / "pages"
TEMPLATES = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def answers_page(answers: Sequence[Answer], title: str) -> str:
    """One self-contained page with the answers to some queries."""
    style = Markup((FOLDER / "search.css").read_text(encoding="utf-8"))
    return TEMPLATES.get_template("answers.html").render(answers=answers, title=title, style=style)


def search_page(**values: Any) -> str:
    """The page of the server; `serve.Pages` gives the values."""
    return TEMPLATES.get_template("search.html").render(**values)
