"""Build a page as one file that loads nothing: security policy, style, data and scripts inside."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from inheritune.reporting.embed import as_data_script
from inheritune.reporting.section import Chart
from inheritune.reporting.vega import chart_data, javascript


def document(
    title: str, main: Markup, charts: Sequence[Chart], record: object, live_tag: str = ""
) -> bytes:
    """Build a whole page that needs no other file.

    Args:
        charts: Each is drawn into the element of ``main`` whose id is its name.
        record: JSON to embed for readers of the file.
        live_tag: Version tag of a live page, which asks its own server for changes and nothing
            else; empty: the page asks for nothing.
    """
    scripts = [javascript(), _packaged("page.js")] if charts or live_tag else []
    scripts += [_packaged("live.js")] if live_tag else []
    data = chart_data({chart.name: chart.spec for chart in charts})
    context = {
        "policy": _policy(scripts, bool(live_tag)),
        "style": Markup(_packaged("page.css")),
        "title": title,
        "main": main,
        "run_json": Markup(as_data_script(record)),
        "chart_data": Markup(as_data_script(data)) if scripts else "",
        "scripts": [Markup(script) for script in scripts],
        "live": live_tag,
    }
    return filled("document.html.j2", context).encode()


def filled(template: str, context: Mapping[str, Any]) -> Markup:
    """Fill a packaged template; every text in the values is escaped."""
    # The template's own texts are trusted, and what was put into them has been escaped.
    return Markup(_templates().get_template(template).render(context))


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("inheritune", "reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _packaged(name: str) -> str:
    return (files("inheritune.reporting") / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str], live: bool) -> str:
    """Write the content security policy: these scripts, by their hashes, and nothing else."""
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    ]
    return (
        f"default-src 'none'; script-src {' '.join(hashes) or chr(39) + 'none' + chr(39)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
        + ("; connect-src 'self'" if live else "")
    )
