"""A page as one file: its policy, style, data and scripts around what it shows.

Vega: one chart description becomes the interactive chart, the SVG and the PNG.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from inheritune.reporting.embed import as_data_script

__all__ = ["chart_data", "document", "filled", "javascript", "png", "svg", "theme"]

_WIDTH = 760  # of the figures; on the page a chart is as wide as its place


def theme(dark: bool) -> dict[str, Any]:
    """Vega-Lite configuration for a light or a dark page."""
    ink, soft, rule = (
        ("#e6e7e9", "#a9adb4", "#3a3e45") if dark else ("#1d1f22", "#565b63", "#dcdfe3")
    )
    font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {
            "labelColor": soft,
            "titleColor": ink,
            "gridColor": rule,
            "domainColor": soft,
            "tickColor": soft,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 10,
        },
        "axisX": {"grid": False},
        "legend": {
            "labelColor": ink,
            "titleColor": ink,
            "labelFontSize": 13,
            "labelLimit": 300,
            "columnPadding": 24,
        },
        "text": {"color": soft, "fontSize": 12},
        "rule": {"color": soft},
    }


def svg(spec: Mapping[str, Any]) -> str:
    """The chart as SVG, in light colours; nothing is fetched to draw it."""
    import vl_convert

    drawing = str(
        vl_convert.vegalite_to_svg(
            _fixed_width(spec), vl_version=_vega_lite(), config=theme(False), allowed_base_urls=[]
        )
    )
    # Vega counts its clip paths through the whole process; the same chart is the same file.
    names = {name: f"clip{index}" for index, name in enumerate(_clip_paths(drawing))}
    return re.sub(r"\bclip\d+\b", lambda found: names.get(found[0], found[0]), drawing)


def png(spec: Mapping[str, Any]) -> bytes:
    """The chart as PNG at twice its size, on white; nothing is fetched to draw it."""
    import vl_convert

    return bytes(
        vl_convert.vegalite_to_png(
            _fixed_width(spec),
            vl_version=_vega_lite(),
            scale=2,
            config=theme(False) | {"background": "white"},
            allowed_base_urls=[],
        )
    )


@cache
def javascript() -> str:
    """Vega, Vega-Lite, Vega-Embed and the expression interpreter as one script."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", _vega_lite()))


def _clip_paths(drawing: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r'<clipPath id="(clip\d+)"', drawing)))


def _vega_lite() -> str:
    import altair

    return ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def _fixed_width(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {**spec, "width": _WIDTH, "padding": 12}


_HERE = "inheritune.reporting"


def document(
    title: str,
    main: Markup,
    charts: Mapping[str, Mapping[str, Any]],
    record: str,
    live: str = "",
) -> bytes:
    """A whole page that needs no other file.

    Args:
        title: In the tab.
        main: What it shows.
        charts: Vega-Lite descriptions by name; each is drawn into the element of that id.
        record: JSON to embed, safe within a script element.
        live: Tag of this version, on a page that asks the server it came from for changes, and for
            nothing else; empty: it asks for nothing.
    """
    scripts = [javascript(), _packaged("page.js")] if charts or live else []
    scripts += [_packaged("live.js")] if live else []
    context = {
        "policy": _policy(scripts, bool(live)),
        "style": Markup(_packaged("page.css")),
        "title": title,
        "main": main,
        "run_json": Markup(record),
        "chart_data": Markup(as_data_script(chart_data(charts))) if scripts else "",
        "scripts": [Markup(script) for script in scripts],
        "live": live,
    }
    return filled("document.html.j2", context).encode()


def chart_data(charts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the page's script draws from: descriptions, their data column by column, colours."""
    packed = {name: _packed(spec) for name, spec in charts.items()}
    return {"specs": packed, "light": theme(False), "dark": theme(True)}


def _packed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A description whose data sets take a third of the space; the page's script unfolds them."""
    layers = [
        {**layer, "data": {**layer["data"], "values": _columns(layer["data"]["values"])}}
        if "values" in layer.get("data", {})
        else layer
        for layer in spec.get("layer", [])
    ]
    return {**spec, "layer": layers} if layers else dict(spec)


def _columns(rows: Any) -> Any:
    """Rows as columns, one value for a column that has no other; rows that differ stay rows."""
    uniform = (
        isinstance(rows, list)
        and len(rows) >= 4
        and all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows)
    )
    if not uniform or any(isinstance(value, dict | list) for row in rows for value in row.values()):
        return rows
    columns: dict[str, Any] = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        columns[key] = values[0] if all(value == values[0] for value in values) else values
    return {"rows": len(rows), "columns": columns}


def filled(template: str, context: Mapping[str, Any]) -> Markup:
    """A packaged template with values, every text in them escaped."""
    # Its own texts are trusted, and what was put into them has been escaped.
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
    return (files(_HERE) / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str], live: bool) -> str:
    """Content security policy: these scripts and nothing else, from nowhere."""
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    ]
    return (
        f"default-src 'none'; script-src {' '.join(hashes) or chr(39) + 'none' + chr(39)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
        + ("; connect-src 'self'" if live else "")
    )
