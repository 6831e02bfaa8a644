"""The report's template, style sheet and script as one page that loads nothing and runs nothing but its own script."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent / "pages"


def render(contents: Mapping[str, Any]) -> str:
    """The page as HTML.

    Every text is escaped: the template's values by jinja2, those in the script's data by its `tojson`, where "<" is
    \\u003c. The script puts texts into the page as text. Were one to slip through, the browser would not run it: the
    page's policy allows the script and the styles with the hashes of ours alone, and pictures that lie in the page.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": True, "separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"number": "{:,}".format, "share": "{:.3f}".format, "percent": percent}
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return environment.get_template("report.html.jinja").render(
        contents,
        style=Markup(style),
        script=Markup(script),
        policy="; ".join(
            [
                "default-src 'none'",
                "img-src data:",
                f"style-src '{source_hash(style)}'",
                f"script-src '{source_hash(script)}'",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
    )


def source_hash(source: str) -> str:
    """What a content security policy calls an inline script or style sheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def percent(share: float) -> str:
    """A share in percent, with a decimal where it is small: 0.734 → "73%", 0.0047 → "0.5%"."""
    return f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{share:.1%}"
