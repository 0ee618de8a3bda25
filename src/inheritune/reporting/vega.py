"""Draw Vega-Lite descriptions as SVG and PNG, and pack them for the page's script."""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

_COLORS = {
    "light": {"paper": "#fdfdfc", "ink": "#1d1f22", "soft": "#565b63", "rule": "#dcdfe3"},
    "dark": {"paper": "#15171a", "ink": "#e6e7e9", "soft": "#a9adb4", "rule": "#3a3e45"},
}
_WIDTH = 760  # pixels, of the files; on the page a chart is as wide as its place
NARROW = 480  # of a figure whose text is to be read on a phone, too


def svg(spec: Mapping[str, Any]) -> str:
    """Draw a chart as SVG in light colours, without fetching anything."""
    import vl_convert

    drawn = _drawing(spec)
    # The names at both sides are wider where the reader's font is.
    drawn["vl_spec"]["padding"] = {"left": 40, "top": 12, "right": 40, "bottom": 12}
    drawing = str(vl_convert.vegalite_to_svg(**drawn))
    # Vega numbers clip paths and gradients through the whole process; the same chart must be the
    # same file.
    names = dict.fromkeys(re.findall(r'id="(clip\d+|gradient_\d+)"', drawing))
    renamed = {name: f"{name.rstrip('0123456789')}{index}" for index, name in enumerate(names)}
    return re.sub(r"\b(clip|gradient_)\d+\b", lambda m: renamed.get(m[0], m[0]), drawing)


def png(spec: Mapping[str, Any], theme: str = "light", width: int = _WIDTH) -> bytes:
    """Draw a chart as PNG at twice its size, on white or on dark, without fetching anything."""
    import vl_convert

    drawing = _drawing(spec, theme)
    drawing["vl_spec"]["width"] = width
    paper = "white" if theme == "light" else _COLORS[theme]["paper"]
    drawing["config"] |= {"background": paper}
    return bytes(vl_convert.vegalite_to_png(**drawing, scale=2))


def _drawing(spec: Mapping[str, Any], theme: str = "light") -> dict[str, Any]:
    """Make the arguments of `vl_convert` for a drawing of fixed width."""
    return {
        "vl_spec": {**spec, "width": _WIDTH, "padding": 12},
        "vl_version": _vega_lite_version(),
        "config": dict(_theme(theme)),
        "allowed_base_urls": [],
    }


@cache
def javascript() -> str:
    """Bundle Vega, Vega-Lite, Vega-Embed and their interpreter as one script, with notice."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", _vega_lite_version())
    notice = (files("inheritune.reporting") / "vega-notice.txt").read_text(encoding="utf-8")
    return f"/*!\n{notice}*/\n{bundle}"


def chart_data(charts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Collect what the page's script draws from: descriptions with packed data, both themes."""
    specs = {name: _packed(spec) for name, spec in charts.items()}
    return {"specs": specs, "light": _theme("light"), "dark": _theme("dark")}


def _packed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Store data by column, which takes a third of the space; page.js turns it back into rows."""
    layers = [
        {**layer, "data": {**layer["data"], "values": _columns(layer["data"]["values"])}}
        if "values" in layer.get("data", {})
        else layer
        for layer in spec.get("layer", [])
    ]
    return {**spec, "layer": layers} if layers else dict(spec)


def _columns(rows: Any) -> Any:
    """Turn rows of equal keys into columns; a column of equal values becomes one value."""
    if len(rows) < 4 or any(row.keys() != rows[0].keys() for row in rows):
        return rows
    columns: dict[str, Any] = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        columns[key] = values[0] if all(value == values[0] for value in values) else values
    return {"rows": len(rows), "columns": columns}


@cache
def _theme(name: str) -> dict[str, Any]:
    """Read the Vega-Lite configuration of a page that is ``"light"`` or ``"dark"``."""
    text = (files("inheritune.reporting") / "chart_theme.json").read_text("utf-8")
    theme: dict[str, Any] = json.loads(Template(text).substitute(_COLORS[name]))
    return theme


def _vega_lite_version() -> str:
    import altair

    return ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
