"""HTML pages in one file: templates, the style sheet that all pages share, and a policy that lets them load nothing."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

PAGES = Path(__file__).parent / "pages"
BASE_STYLE = PAGES / "base.css"


def page_environment(*folders: Path) -> jinja2.Environment:
    """Returns an environment with the templates of folders and the shared ones; it escapes all values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, PAGES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": True, "separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"number": "{:,}".format, "share": "{:.3f}".format, "percent": percent}
    return environment


def render_page(
    environment: jinja2.Environment, name: str, *, styles: Sequence[Path], script: Path | None = None, **values: Any
) -> str:
    """Renders a template that extends `base.html.jinja` into one page that loads nothing.

    All texts are escaped: values in the template by Jinja, those in the script's data by `tojson`. The scripts insert
    them as text nodes. If one slipped through, the browser still would not run it: the page's policy allows only the
    script and styles with the hashes of ours, and pictures embedded in the page.

    Args:
        environment: Environment that has the template.
        name: Name of the template.
        styles: Style sheets besides the shared one.
        script: Script of the page.
        values: Variables of the template.
    """
    style = "".join(path.read_text(encoding="utf-8") for path in (BASE_STYLE, *styles))
    source = script.read_text(encoding="utf-8") if script else ""
    rules = ["default-src 'none'", "img-src data:", f"style-src '{source_hash(style)}'"]
    rules += [f"script-src '{source_hash(source)}'"] if source else []
    policy = "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])
    values |= {"style": Markup(style), "script": Markup(source), "policy": policy}
    return environment.get_template(name).render(values)


def source_hash(source: str) -> str:
    """Returns the hash of an inline script or style sheet for a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def percent(share: float) -> str:
    """Formats a share in percent, with a decimal if it is small: 0.734 → "73%", 0.0047 → "0.5%"."""
    return f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{share:.1%}"
